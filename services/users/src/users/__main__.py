"""`python -m users serve|migrate`."""

from shared import migrations, server
from users.settings import UsersSettings


def _serve(settings: UsersSettings) -> None:
    server.run(settings, "users.app:create")


if __name__ == "__main__":
    server.main(
        UsersSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
        },
    )
