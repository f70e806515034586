"""What an operator does to the database from a shell; docs/users.md says when."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial

from sqlalchemy.exc import OperationalError

from shared.database import Database
from shared.errors import StartupRefused
from users import key_ring, sessions
from users.settings import UsersSettings

Work = Callable[[Database, UsersSettings], Awaitable[str]]


def _command(work: Work) -> Callable[[UsersSettings], None]:
    """Make a command that prints what was done, or why it could not be in one sentence."""
    return partial(_run, work)


def _run(work: Work, settings: UsersSettings) -> None:
    async def run() -> str:
        database = Database(settings)
        try:
            return await work(database, settings)
        finally:
            await database.close()

    try:
        print(asyncio.run(run()))  # noqa: T201
    except StartupRefused as error:
        sys.exit(f"{settings.service}: {error}")
    except OperationalError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        sys.exit(f"{settings.service}: the database could not be worked with: {reason}")


async def _rotate(database: Database, settings: UsersSettings) -> str:
    async with database.transaction() as session:
        key = await key_ring.rotate(session, settings)
    return f"Key {key.kid} signs from {key.signs_from.isoformat(timespec='seconds')}."


async def _replace(database: Database, settings: UsersSettings) -> str:
    async with database.transaction() as session:
        key = await key_ring.replace_all(session, settings)
    return f"Key {key.kid} signs from now on; tokens that others signed are refused."


async def _end_sessions(database: Database, settings: UsersSettings) -> str:
    return f"{await sessions.end_everybodys(database, settings)} sessions were ended."


rotate_key = _command(_rotate)
replace_keys = _command(_replace)
end_sessions = _command(_end_sessions)
