"""`python -m items serve|migrate|await-schema|events`."""

from items.settings import ItemsSettings
from shared import event_commands, migrations, server
from shared.event_tool import Consumers


def _serve(settings: ItemsSettings) -> None:
    server.run(settings, "items.app:create")


def _consumers() -> Consumers:
    from items.handlers import CONSUMERS

    return CONSUMERS


if __name__ == "__main__":
    server.main(
        ItemsSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
            "await-schema": ("wait until the database has been migrated", migrations.await_schema),
            "events": event_commands.subcommands(_consumers),
        },
    )
