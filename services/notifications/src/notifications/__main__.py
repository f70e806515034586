"""`python -m notifications serve|migrate`."""

from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared import migrations, server


def _serve(settings: NotificationsSettings) -> None:
    server.run(settings, "notifications.app:create", ws=SocketProtocol)


if __name__ == "__main__":
    server.main(
        NotificationsSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
        },
    )
