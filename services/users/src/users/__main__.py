"""`python -m users serve|migrate|events|rotate-key`."""

import asyncio

from shared import event_commands, migrations, server
from shared.database import Database
from users import key_ring
from users.settings import UsersSettings


def _serve(settings: UsersSettings) -> None:
    server.run(settings, "users.app:create")


def _rotate_key(settings: UsersSettings) -> None:
    async def rotate() -> None:
        database = Database(settings)
        try:
            async with database.transaction() as session:
                key = await key_ring.rotate(session, settings)
        finally:
            await database.close()
        print(f"Key {key.kid} signs from {key.signs_from.isoformat(timespec='seconds')}.")  # noqa: T201

    asyncio.run(rotate())


if __name__ == "__main__":
    server.main(
        UsersSettings,
        {
            "serve": ("answer requests until SIGTERM", _serve),
            "migrate": ("bring the database to the newest revision", migrations.upgrade),
            "events": event_commands.subcommands(),
            "rotate-key": ("publish a new signing key, which soon takes over", _rotate_key),
        },
    )
