"""Upkeep of outbox and inbox: what waits is measured, what has outlived its use is deleted in small batches.

Every process measures; one at a time deletes: the one that gets a transaction's advisory lock.
"""

import asyncio
from datetime import timedelta
from time import monotonic
from typing import Any, cast

from sqlalchemy import CursorResult, TextClause, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from shared.database import Database
from shared.logs import get_logger
from shared.metrics import Metrics
from shared.outbox import OutboxRow
from shared.settings import MAX_OUTBOX_RETENTION_DAYS, DatabaseSettings
from shared.streams import MAX_EVENT_AGE

log = get_logger(__name__)

MEASURE_INTERVAL = 5.0
"""Seconds between two looks at what waits."""
MAX_COUNTED = 100_000
"""Waiting events that are counted; a longer backlog shows as this many."""
PRUNE_INTERVAL = 60.0
"""Seconds between two rounds of deleting."""
PRUNE_BATCH = 1000
"""Rows that one transaction deletes: its locks and its WAL stay small."""
PRUNE_PAUSE = 0.05
"""Seconds between two batches, for others to get at the disk."""
INBOX_RETENTION = MAX_EVENT_AGE + timedelta(days=MAX_OUTBOX_RETENTION_DAYS + 3)
"""How long an event that was received is remembered. It may come again as long as the stream has it, and once more when an
outbox refills the stream: that of another service, whose retention this one does not know."""
PRUNE_LOCK = 7_305_811_003

# Rows of an age are neither changed nor read by anybody else: their place (ctid) names them.
_PRUNE_OUTBOX = text(
    "DELETE FROM outbox WHERE ctid = ANY(ARRAY(SELECT ctid FROM outbox"
    " WHERE published_at < now() - :retention ORDER BY published_at LIMIT :batch))"
)
_PRUNE_INBOX = text(
    "DELETE FROM inbox WHERE ctid = ANY(ARRAY(SELECT ctid FROM inbox"
    " WHERE received_at < now() - :retention ORDER BY received_at LIMIT :batch))"
)


class Upkeep:
    """Looks after the event tables of one service."""

    def __init__(self, database: Database, settings: DatabaseSettings, metrics: Metrics) -> None:
        self._database = database
        self._metrics = metrics
        self._outbox_retention = timedelta(days=settings.outbox_retention_days)
        self._backlog = metrics.level(
            "outbox_backlog", "Committed events that are not published yet, at most 100 000."
        )
        self._oldest = metrics.level("outbox_oldest_seconds", "Age of the oldest of them.")
        self._pruned = {
            table: metrics.counter("events_pruned_total", "Rows deleted after their retention.", table=table)
            for table in ("outbox", "inbox")
        }

    async def run(self) -> None:
        """Run until cancelled."""
        prune_at = monotonic()
        while True:
            try:
                await self.measure()
                if monotonic() >= prune_at:
                    await self.prune()
                    prune_at = monotonic() + PRUNE_INTERVAL
            except (SQLAlchemyError, OSError) as error:
                log.warning("upkeep.interrupted", error=type(error).__name__)
            await asyncio.sleep(MEASURE_INTERVAL)

    async def measure(self) -> None:
        """Look at what waits to be published."""
        waiting = (
            select(OutboxRow.created_at)
            .where(OutboxRow.published_at.is_(None))
            .order_by(OutboxRow.id)
            .limit(MAX_COUNTED)
            .subquery()
        )
        age = func.extract("epoch", func.clock_timestamp() - func.min(waiting.c.created_at))
        async with self._database.reading() as session:
            count, oldest = (await session.execute(select(func.count(), age).select_from(waiting))).one()
        self._metrics.cells[self._backlog] = count
        self._metrics.cells[self._oldest] = float(oldest or 0)

    async def prune(self) -> None:
        """Delete what is old, batch by batch, unless another process is at it."""
        for table, statement, retention in (
            ("outbox", _PRUNE_OUTBOX, self._outbox_retention),
            ("inbox", _PRUNE_INBOX, INBOX_RETENTION),
        ):
            while (deleted := await self._delete_batch(statement, retention)) > 0:
                self._metrics.cells[self._pruned[table]] += deleted
                log.info("upkeep.pruned", table=table, rows=deleted)
                await asyncio.sleep(PRUNE_PAUSE)

    async def _delete_batch(self, statement: TextClause, retention: timedelta) -> int:
        async with self._database.transaction() as session:
            if not await session.scalar(select(func.pg_try_advisory_xact_lock(PRUNE_LOCK))):
                return 0
            result = await session.execute(statement, {"retention": retention, "batch": PRUNE_BATCH})
            return cast("CursorResult[Any]", result).rowcount
