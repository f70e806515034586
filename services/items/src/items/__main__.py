"""`python -m items serve|migrate`."""

from items.settings import ItemsSettings
from shared import migrations, server


def _serve(settings: ItemsSettings) -> None:
    server.run(settings, "items.app:create")


if __name__ == "__main__":
    server.main(
        ItemsSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
        },
    )
