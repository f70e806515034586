"""`python -m items serve|migrate`."""

from shared import migrations, server

from items.settings import ItemsSettings


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
