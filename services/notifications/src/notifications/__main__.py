"""`python -m notifications serve|migrate|await-schema|events`."""

from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared import event_commands, migrations, server
from shared.event_tool import Consumers


def _serve(settings: NotificationsSettings) -> None:
    server.run(settings, "notifications.app:create", ws=SocketProtocol)


def _consumers() -> Consumers:
    from notifications.handlers import CONSUMERS

    return CONSUMERS


if __name__ == "__main__":
    server.main(
        NotificationsSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
            "await-schema": ("wait until the database has been migrated", migrations.await_schema),
            "events": event_commands.subcommands(_consumers),
        },
    )
