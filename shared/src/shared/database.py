"""PostgreSQL sessions: one transaction per request, owned by the entry point; reads without one."""

import asyncio
import select
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import psycopg
from fastapi import Depends, Request
from sqlalchemy import ClauseElement, make_url, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.event import listen
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from shared.settings import DatabaseSettings

_AFTER_COMMIT = "after_commit"
_OUTBOX_WRITTEN = "outbox_written"

CONNECT_TIMEOUT = 5
RECYCLE_AFTER = 1800

_DIALECT = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]


def wake_after_commit(session: AsyncSession, event: asyncio.Event) -> None:
    """Set `event` once the session's transaction has committed; not at all if it does not."""
    session.info.setdefault(_AFTER_COMMIT, set()).add(event)


def wake_relay_after_commit(session: AsyncSession) -> None:
    """Tell the relay, once the transaction has committed, that the outbox has something."""
    wake_after_commit(session, session.info[_OUTBOX_WRITTEN])


def database_is_away(error: Exception) -> bool:
    """Say whether an error is of the connection (or of having none), not of what was asked of the database.

    SQLSTATE classes 08, 57P and 53 (PostgreSQL, appendix A): connection, shutdown, out of resources.
    """
    if isinstance(error, PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state is None or state.startswith(("08", "57P", "53"))


def compiled(statement: ClauseElement) -> bytes:
    """Return the text of a statement for `execute`, with its parameters as psycopg names them."""
    return str(statement.compile(dialect=_DIALECT)).encode()


async def execute(
    session: AsyncSession, statement: bytes, parameters: Mapping[str, Any]
) -> psycopg.AsyncCursor[tuple[Any, ...]]:
    """Run a compiled statement, prepared, straight on the driver, within the session's transaction.

    For statements that every request runs: the session's own way costs four times what the driver does (docs/adr/0009).

    Raises:
        SQLAlchemyError: as the session's own `execute` does.
    """
    connection = await session.connection()
    driver = cast("psycopg.AsyncConnection[Any]", (await connection.get_raw_connection()).driver_connection)
    try:
        return await driver.cursor(binary=True).execute(statement, parameters, prepare=True)
    except psycopg.Error as error:
        raise DBAPIError.instance(
            statement.decode(), None, error, psycopg.Error, connection_invalidated=driver.closed
        ) from error


def is_closed(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Say whether the server has closed an idle connection: then its socket has something to say, and only then.

    It costs a system call where a question to the server would cost each request a round trip.
    """
    socket = select.poll()
    socket.register(connection.fileno(), select.POLLIN)
    return bool(socket.poll(0))


def _refuse_closed(connection: DBAPIConnection, *_: object) -> None:
    """Let the pool connect anew in place of a connection that has ended while it was idle."""
    driver: psycopg.AsyncConnection[Any] = connection.driver_connection
    if driver.closed or is_closed(driver):
        raise DisconnectionError


class Database:
    """The connection pool of one process."""

    def __init__(self, settings: DatabaseSettings) -> None:
        url = make_url(settings.database_url.get_secret_value()).set(drivername="postgresql+psycopg")
        self._engine = create_async_engine(
            url,
            pool_size=settings.database_pool_size,
            max_overflow=0,
            pool_timeout=settings.database_pool_timeout,
            pool_recycle=RECYCLE_AFTER,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT,
                "application_name": f"tollhouse-{settings.service}",
            },
        )
        listen(self._engine.sync_engine, "checkout", _refuse_closed)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.outbox_written = asyncio.Event()
        """Set after each commit that wrote to the outbox; the relay waits for it."""

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Open a session whose work commits when the block ends, and not at all when it raises."""
        info = {_OUTBOX_WRITTEN: self.outbox_written}
        async with AsyncSession(self._engine, expire_on_commit=False, info=info) as session:
            async with session.begin():
                yield session
            for event in session.info.get(_AFTER_COMMIT, ()):
                event.set()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """Open a session for reads: autocommit saves the round trips of BEGIN and COMMIT."""
        async with AsyncSession(self._autocommit, expire_on_commit=False, autoflush=False) as session:
            yield session

    async def check_ready(self) -> None:
        """Readiness check: a connection can be had and answers."""
        async with self.reading() as session:
            await session.execute(text("SELECT 1"))


async def _unit_of_work(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    async with database.transaction() as session:
        yield session


async def _read_only(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    async with database.reading() as session:
        yield session


# Function scope: the commit comes before the response, so that no 201 can stand for a failed commit.
Session = Annotated[AsyncSession, Depends(_unit_of_work, scope="function")]
ReadSession = Annotated[AsyncSession, Depends(_read_only, scope="function")]
