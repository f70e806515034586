"""Deletes what has outlived its use."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from shared.database import Database
from shared.logs import get_logger
from users import audit, codes, sessions, throttle
from users.settings import UsersSettings

log = get_logger(__name__)

INTERVAL = 600.0
"""Seconds between two rounds; every replica makes them, which does no harm."""


async def keep_house(database: Database, settings: UsersSettings) -> None:
    """Make the rounds until cancelled."""
    while True:
        try:
            await make_round(database, settings)
        except (SQLAlchemyError, OSError) as error:
            log.warning("housekeeping.failed", error=type(error).__name__)
        await asyncio.sleep(INTERVAL)


async def make_round(database: Database, settings: UsersSettings) -> None:
    """Delete what is old enough."""
    async with database.transaction() as session:
        await throttle.prune(session, settings)
        await audit.prune(session, settings)
        await codes.prune(session)
    full = True
    while full:  # a little at a time: each session takes its refresh tokens along
        async with database.transaction() as session:
            full = await sessions.prune(session) == sessions.PRUNED_AT_ONCE
