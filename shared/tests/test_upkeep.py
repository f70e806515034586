"""Outbox and inbox keep what is needed and no more, and show what waits."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import func, select, text

from shared import upkeep as upkeep_module
from shared.database import Database
from shared.metrics import Metrics
from shared.settings import MAX_OUTBOX_RETENTION_DAYS
from shared.streams import MAX_EVENT_AGE
from shared.tasks import running
from shared.testing import eventually
from shared.upkeep import PRUNE_LOCK, Upkeep

pytestmark = pytest.mark.integration

Write = Callable[..., Awaitable[None]]


@pytest.fixture
def upkeep(database: Database, probe_settings: Any, monkeypatch: pytest.MonkeyPatch) -> Upkeep:
    """The upkeep of the test's database, in batches of three."""
    monkeypatch.setattr(upkeep_module, "PRUNE_BATCH", 3)
    monkeypatch.setattr(upkeep_module, "PRUNE_PAUSE", 0.0)
    return Upkeep(database, probe_settings.model_copy(update={"outbox_retention_days": 2}), Metrics())


async def _run(database: Database, statement: str, **parameters: object) -> None:
    async with database.transaction() as session:
        await session.execute(text(statement), parameters)


async def _scalars(database: Database, query: str) -> list[Any]:
    async with database.reading() as session:
        return list(await session.scalars(text(query)))


def _number(upkeep: Upkeep, family: str, **labels: str) -> float:
    metrics = upkeep._metrics
    (index,) = (
        index
        for cell, index in metrics._indexes.items()
        if cell.family == family and labels.items() <= dict(cell.labels).items()
    )
    return float(metrics.cells[index])


async def test_published_events_go_after_their_retention_and_waiting_ones_never(
    database: Database, upkeep: Upkeep, write: Write
) -> None:
    await write(*range(1, 11))
    await _run(database, "UPDATE outbox SET created_at = now() - interval '9 days'")
    await _run(database, "UPDATE outbox SET published_at = now() - interval '49 hours' WHERE id <= 7")
    await _run(database, "UPDATE outbox SET published_at = now() - interval '47 hours' WHERE id = 8")

    await upkeep.prune()

    assert await _scalars(database, "SELECT id FROM outbox ORDER BY id") == [8, 9, 10]
    assert _number(upkeep, "events_pruned_total", table="outbox") == 7


async def test_received_events_are_remembered_as_long_as_they_can_come_again(
    database: Database, upkeep: Upkeep
) -> None:
    # The stream keeps an event for MAX_EVENT_AGE, and another service's outbox may refill the stream for longer than this one's.
    for name, days in (
        ("new", 0),
        ("may come again", MAX_EVENT_AGE.days + MAX_OUTBOX_RETENTION_DAYS),
        ("gone", MAX_EVENT_AGE.days + MAX_OUTBOX_RETENTION_DAYS + 4),
    ):
        await _run(
            database,
            "INSERT INTO inbox VALUES ('probe', :name, now() - make_interval(days => :days))",
            name=name,
            days=days,
        )

    await upkeep.prune()

    assert set(await _scalars(database, "SELECT event_id FROM inbox")) == {"new", "may come again"}


async def test_one_process_prunes_at_a_time(database: Database, upkeep: Upkeep, write: Write) -> None:
    await write(1)
    await _run(database, "UPDATE outbox SET published_at = now() - interval '9 days'")
    async with database.transaction() as another:
        await another.execute(select(func.pg_advisory_xact_lock(PRUNE_LOCK)))
        await upkeep.prune()
        assert await _scalars(database, "SELECT count(*) FROM outbox") == [1]

    await upkeep.prune()
    assert await _scalars(database, "SELECT count(*) FROM outbox") == [0]


async def test_what_waits_is_shown_with_its_age(database: Database, upkeep: Upkeep, write: Write) -> None:
    await upkeep.measure()
    assert (_number(upkeep, "outbox_backlog"), _number(upkeep, "outbox_oldest_seconds")) == (0, 0)

    await write(1, 2, 3)
    await _run(database, "UPDATE outbox SET published_at = now() WHERE id = 1")
    await _run(database, "UPDATE outbox SET created_at = now() - interval '90 seconds' WHERE id <= 2")
    await upkeep.measure()

    assert _number(upkeep, "outbox_backlog") == 2
    assert _number(upkeep, "outbox_oldest_seconds") >= 90


async def test_upkeep_goes_on_after_the_database_was_away(
    database: Database, upkeep: Upkeep, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep_module, "MEASURE_INTERVAL", 0.02)
    await _run(database, "ALTER TABLE outbox RENAME TO elsewhere")  # any error of the database
    async with running(upkeep.run()):
        await _run(database, "ALTER TABLE elsewhere RENAME TO outbox")
        await write(1, 2)
        await eventually(lambda: _number(upkeep, "outbox_backlog") == 2)
