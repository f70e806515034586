"""The outbox relay: publishes committed events to JetStream, in order, at least once.

One relay per database is active at a time: it holds a session advisory lock on the connection it works with, so that
losing the connection is losing the lock. Every replica runs one and waits for its turn (docs/adr/0004).
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeVar, cast

from nats.errors import Error as NATSError
from nats.js.api import Header, PubAck
from nats.js.errors import NotFoundError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.broker import Broker
from shared.database import Database, execute
from shared.logs import get_logger
from shared.metrics import Metrics
from shared.streams import COMMANDS, EVENTS, ensure
from shared.tasks import end

log = get_logger(__name__)

BATCH = 500
SWEEP_INTERVAL = 5.0
"""Seconds after which the outbox is looked at even if nobody said that there is something."""
TAKEOVER_INTERVAL = 1.0
"""Seconds between two tries to become the active relay."""
RETRY_INTERVAL = 1.0
PUBLISH_TIMEOUT = 5.0
HUNG_AFTER = 30
"""Seconds of silence after which PostgreSQL drops an active relay's connection, and with it the lock: a process that
hangs, or whose machine is gone, is replaced. Every wait between two statements is shorter."""
RELAY_LOCK = 7_305_811_002


# One round trip: what was published is marked (commands, which may carry secrets and are never replayed, are forgotten), and
# what waits is read. The parts of the statement do not see each other's effects.
_NEXT = b"""
WITH marked AS (
    UPDATE outbox SET published_at = now()
    WHERE id = ANY(%(published)s::bigint[]) AND NOT subject LIKE 'commands.%%'
), forgotten AS (
    DELETE FROM outbox
    WHERE id = ANY(%(published)s::bigint[]) AND subject LIKE 'commands.%%'
)
SELECT id, event_id, subject, aggregate, payload FROM outbox
WHERE published_at IS NULL AND id <> ALL(%(published)s::bigint[])
ORDER BY id LIMIT %(limit)s
"""


class Waiting(NamedTuple):
    """A row of the outbox that is to be published."""

    id: int
    event_id: str
    subject: str
    aggregate: str
    payload: bytes


class NotPublished(ConnectionError):
    """Some events of a batch could not be published; they stay in the outbox."""


class Relay:
    """Publishes one database's outbox while it is the active one, and pokes the active one while it is not."""

    def __init__(
        self, database: Database, broker: Broker, *, service: str, metrics: Metrics | None = None
    ) -> None:
        self._metrics = metrics = metrics or Metrics()
        self._leads = metrics.gauge(
            "outbox_relay_active", "Processes whose relay is the active one: 1 in all."
        )
        self._published = metrics.counter("outbox_published_total", "Events and commands published.")
        self._failures = metrics.counter("outbox_publish_failures_total", "Batches that NATS did not take.")
        self._database = database
        self._broker = broker
        self._poke = f"poke.{service}"
        self._wake = database.outbox_written
        self._active = False

    async def run(self) -> None:
        """Run until cancelled."""
        listening = asyncio.create_task(self._broker.on_message(self._poke, self._on_poke), name="relay-poke")
        try:
            while True:
                try:
                    await self._lead_when_possible()
                except (SQLAlchemyError, NATSError, OSError) as error:
                    log.warning("relay.interrupted", error=type(error).__name__)
                    await asyncio.sleep(RETRY_INTERVAL)
        finally:
            await end(listening)

    def _on_poke(self) -> None:
        # Those that wait for their turn hear the pokes too, their own included: answering would never end.
        if self._active:
            self._wake.set()

    async def flush(self) -> None:
        """Publish what is left, at the end of a drain: the next relay would do it, but later.

        While other replicas go on writing that does not end; it is left to them after PUBLISH_TIMEOUT seconds.
        """
        with suppress(SQLAlchemyError, OSError, TimeoutError):
            async with asyncio.timeout(PUBLISH_TIMEOUT), self._database.reading() as session:
                if self._broker.connected.is_set() and await self._try_lock(session):
                    await self._publish_all(session)

    async def _lead_when_possible(self) -> None:
        await self._broker.connected.wait()
        async with self._database.reading() as session:
            if await self._try_lock(session):
                log.info("relay.active")
                with suppress(TimeoutError):
                    await self._lead(session)
        # Another replica is active: tell it at once about what this one commits.
        with suppress(TimeoutError):
            async with asyncio.timeout(TAKEOVER_INTERVAL):
                await self._wake.wait()
                await self._broker.connected.wait()
                self._wake.clear()
                await self._broker.publish(self._poke)

    async def _try_lock(self, session: AsyncSession) -> bool:
        return bool(await session.scalar(select(func.pg_try_advisory_lock(RELAY_LOCK))))

    async def _lead(self, session: AsyncSession) -> None:
        self._active = True
        self._metrics.cells[self._leads] = 1
        try:
            await session.execute(text(f"SET idle_session_timeout = '{HUNG_AFTER}s'"))
            # A mark that a crash takes back costs a repeat that is dropped; waiting for the disk would cost every batch.
            await session.execute(text("SET synchronous_commit = off"))
            await self._ensure_streams()
            while True:
                # Without NATS for longer than a moment, a replica that has it may be active instead.
                async with asyncio.timeout(TAKEOVER_INTERVAL):
                    await self._broker.connected.wait()
                self._wake.clear()
                try:
                    await self._publish_all(session)
                except (NotPublished, NATSError) as error:
                    self._metrics.cells[self._failures] += 1
                    log.warning("relay.publish_failed", error=str(error) or type(error).__name__)
                    await asyncio.sleep(RETRY_INTERVAL)
                    continue
                with suppress(TimeoutError):
                    async with asyncio.timeout(SWEEP_INTERVAL):
                        await self._wake.wait()
        finally:
            self._active = False
            self._metrics.cells[self._leads] = 0
            await self._unlock(session)

    async def _unlock(self, session: AsyncSession) -> None:
        try:
            await session.execute(text("RESET idle_session_timeout"))
            await session.execute(text("RESET synchronous_commit"))
            await session.execute(select(func.pg_advisory_unlock(RELAY_LOCK)))
        except (SQLAlchemyError, OSError):
            # The connection may be well enough to live on in the pool, and the lock with it: close it for good.
            await session.invalidate()

    async def _publish_all(self, session: AsyncSession) -> None:
        """Publish until nothing waits, in windows that hold each aggregate once: its versions never overtake each other."""
        published: list[Waiting] = []
        while rows := await self._next(session, published, limit=BATCH):
            published = []
            for window in windows(rows):
                await self._mark(session, published)
                published, error = await self._publish(window)
                if error is not None:
                    await self._mark(session, published)
                    await self._ensure_streams()
                    raise NotPublished(str(error) or type(error).__name__)

    async def _mark(self, session: AsyncSession, published: list[Waiting]) -> None:
        if published:
            await self._next(session, published, limit=0)

    async def _next(self, session: AsyncSession, published: list[Waiting], *, limit: int) -> list[Waiting]:
        """Mark rows as published, and read those that wait, in order."""
        rows = await execute(session, _NEXT, {"published": [row.id for row in published], "limit": limit})
        if published:
            self._metrics.cells[self._published] += len(published)
            log.info("outbox.relayed", count=len(published))
        return [Waiting(*row) for row in await rows.fetchall()]

    async def _publish(self, window: list[Waiting]) -> tuple[list[Waiting], Exception | None]:
        """Return the rows that JetStream has, and why it has not the others."""
        sent: list[tuple[Waiting, asyncio.Future[PubAck]]] = []
        error: Exception | None = None
        try:
            for row in window:
                headers = {Header.MSG_ID: row.event_id}
                acknowledged = await self._broker.js.publish_async(
                    row.subject, row.payload, headers=headers, wait_stall=PUBLISH_TIMEOUT
                )
                sent.append((row, acknowledged))
        except NATSError as refused:  # the rest of the window was not sent
            error = refused
        published = []
        if sent:
            await asyncio.wait([future for _, future in sent], timeout=PUBLISH_TIMEOUT)
        for row, future in sent:
            if future.cancel():
                error = error or TimeoutError("no acknowledgement in time")
            elif (failure := future.exception()) is not None:
                error = error or cast("Exception", failure)
            else:
                published.append(row)
        return published, error

    async def _ensure_streams(self) -> None:
        """Create streams that are missing, on a new or wiped server."""
        with suppress(NATSError, NotFoundError, TimeoutError):
            for name in (EVENTS, COMMANDS):
                await ensure(self._broker.js, name)


class OfAggregate(Protocol):
    """Whatever belongs to an aggregate."""

    @property
    def aggregate(self) -> str: ...


Row = TypeVar("Row", bound=OfAggregate)


def windows(rows: Iterable[Row]) -> list[list[Row]]:
    """Cut rows, kept in order, into runs in which no aggregate appears twice."""
    cut: list[list[Row]] = []
    seen: set[str] = set()
    for row in rows:
        if not cut or row.aggregate in seen:
            cut.append([])
            seen = set()
        cut[-1].append(row)
        seen.add(row.aggregate)
    return cut
