"""Reads without a session: one statement, one round trip, no transaction, straight on the driver.

Statements are SQLAlchemy's, compiled once; a session, its transaction and its results cost four times what the driver
does (docs/adr/0009).
"""

from collections.abc import Mapping
from typing import Any, Self

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import make_url

from shared.database import CONNECT_TIMEOUT, RECYCLE_AFTER, is_closed
from shared.errors import DatabaseUnavailable
from shared.logs import get_logger
from shared.settings import DatabaseSettings

log = get_logger(__name__)

RECONNECT_TIMEOUT = 1.0
"""Seconds after which the pool gives up a connection that it cannot make, for the next read to ask for another: left to
itself it would double its pauses, and after an outage be blind for as long again."""

Row = tuple[Any, ...]


class Reader:
    """A pool of connections for reads."""

    def __init__(self, settings: DatabaseSettings) -> None:
        url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql")
        self._pool = AsyncConnectionPool(
            url.render_as_string(hide_password=False),
            min_size=1,
            max_size=settings.database_pool_size,
            timeout=settings.database_pool_timeout,
            max_lifetime=RECYCLE_AFTER,
            reconnect_timeout=RECONNECT_TIMEOUT,
            open=False,
            kwargs={
                "autocommit": True,
                "connect_timeout": CONNECT_TIMEOUT,
                "application_name": f"tollhouse-{settings.service}-reads",
            },
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def rows(self, statement: bytes, parameters: Mapping[str, Any], *, prepare: bool) -> list[Row]:
        """Return what a statement finds; `prepare` it where the same plan is good for all parameters.

        Raises:
            DatabaseUnavailable: there is no connection, or it broke, or the statement took too long.
        """
        try:
            while True:
                async with self._pool.connection() as connection:
                    if is_closed(connection):
                        # Not by the pool's own check, which waits a second and longer between two of them.
                        await connection.close()
                        continue
                    cursor = connection.cursor(binary=True)
                    await cursor.execute(statement, parameters, prepare=prepare)
                    return await cursor.fetchall()
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            log.warning("database.unavailable", error=type(error).__name__, cause=str(error))
            raise DatabaseUnavailable("Nothing was changed. Try again.") from error
