"""Publishes events of the outbox again, into a stream that is new or has lost some.

What the stream still has within its duplicate window it drops by `Nats-Msg-Id`; what is older, consumers drop by their
inbox and the live stream by the aggregate's version.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from nats.js.api import Header
from sqlalchemy import Select, func, select

from shared.broker import Broker
from shared.database import Database
from shared.outbox import OutboxRow
from shared.relay import windows
from shared.streams import EVENTS, ensure

BATCH = 500
LONGEST_TRANSACTION = timedelta(minutes=5)
"""Events stand in the order in which they were written, and are selected by the time at which their transaction began."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events of the outbox: committed from `since` on and before `until`, on subjects that fit a NATS filter."""

    since: datetime
    until: datetime | None = None
    subject: str = "events.>"

    def fits(self, subject: str) -> bool:
        """Say whether a subject fits the filter (`*` is one token, `>` the rest)."""
        wanted, found = self.subject.split("."), subject.split(".")
        for place, part in enumerate(wanted):
            if part == ">":
                return len(found) > place
            if place >= len(found) or part not in ("*", found[place]):
                return False
        return len(found) == len(wanted)

    def query(self) -> Select[OutboxRow]:
        """Select the rows, in the order of their ids. What was never published is the relay's business."""
        rows = select(OutboxRow).where(
            OutboxRow.published_at.is_not(None),
            OutboxRow.created_at >= self.since,
            OutboxRow.subject.startswith("events.", autoescape=True),
        )
        if self.until is not None:
            rows = rows.where(OutboxRow.created_at < self.until)
        return rows.order_by(OutboxRow.id).limit(BATCH)


@dataclass
class Progress:
    """What has been done so far."""

    published: int = 0
    duplicates: int = 0
    """Of those published, what the stream had already."""
    by_type: Counter[str] = field(default_factory=Counter)
    reached: datetime | None = None
    """When the transaction of the last event that was dealt with began."""

    def resume(self, selection: Selection) -> datetime:
        """Return the time to go on from: what began before the last event may stand behind it, if it took longer."""
        if self.reached is None:
            return selection.since
        return max(selection.since, self.reached - LONGEST_TRANSACTION)


async def replay(
    database: Database,
    broker: Broker | None,
    selection: Selection,
    *,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Publish the selected events in order, each aggregate's one after the other. Without a broker, only count them.

    Memory stays that of one batch. `report` is called after each.

    Raises:
        NATSError, OSError, TimeoutError: NATS took no more; what `report` was told last has been published.
    """
    progress = Progress()
    if broker is not None:
        await ensure(broker.js, EVENTS)
    last_id = 0
    while True:
        async with database.reading() as session:
            rows = (await session.scalars(selection.query().where(OutboxRow.id > last_id))).all()
        wanted = [row for row in rows if selection.fits(row.subject)]
        for window in windows(wanted):
            if broker is not None:
                progress.duplicates += await _publish(broker, window)
            progress.published += len(window)
            progress.by_type.update(row.subject.rpartition(".")[0] for row in window)
        if rows:
            last_id, progress.reached = rows[-1].id, rows[-1].created_at
            report(progress)
        if len(rows) < BATCH:
            return progress


async def _publish(broker: Broker, window: Sequence[OutboxRow]) -> int:
    acknowledgements = await asyncio.gather(
        *(
            broker.js.publish(row.subject, row.payload, headers={Header.MSG_ID: row.event_id})
            for row in window
        )
    )
    return sum(bool(acknowledgement.duplicate) for acknowledgement in acknowledgements)


async def oldest_kept(database: Database) -> datetime | None:
    """Return when the oldest event that the outbox still has was committed."""
    async with database.reading() as session:
        return await session.scalar(
            select(func.min(OutboxRow.created_at)).where(OutboxRow.published_at.is_not(None))
        )
