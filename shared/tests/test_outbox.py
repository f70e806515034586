"""The outbox: state and event share a commit, and nothing is left of a rollback."""

import asyncio
from typing import Any, ClassVar

import orjson
import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from shared import outbox, telemetry
from shared.database import Database
from shared.events import MAX_EVENT_BYTES, Envelope, Event, encode
from shared.outbox import OutboxRow
from shared.relay import windows


async def _rows(database: Database) -> list[OutboxRow]:
    async with database.reading() as session:
        return list(await session.scalars(select(OutboxRow).order_by(OutboxRow.id)))


@pytest.mark.integration
async def test_commit_stores_the_event_and_says_so(database: Database, counted: Any) -> None:
    async with database.transaction() as session:
        await outbox.add(session, counted(of=7, number=1), counted(of=8, number=1))
        assert not database.outbox_written.is_set()

    assert database.outbox_written.is_set()
    rows = await _rows(database)
    assert [row.aggregate for row in rows] == ["items.item.7", "items.item.8"]
    assert all(row.published_at is None for row in rows)


@pytest.mark.integration
async def test_commit_without_an_event_wakes_nobody(database: Database) -> None:
    async with database.transaction() as session:
        await outbox.add(session)
        await session.execute(text("INSERT INTO effects (note) VALUES ('quiet')"))

    assert not database.outbox_written.is_set()
    assert await _rows(database) == []


@pytest.mark.integration
@pytest.mark.parametrize(
    "failure", [ValueError("refused"), asyncio.CancelledError()], ids=["error", "cancelled"]
)
async def test_rollback_leaves_nothing(database: Database, counted: Any, failure: BaseException) -> None:
    async def work() -> None:
        async with database.transaction() as session:
            await session.execute(text("INSERT INTO effects (note) VALUES ('never')"))
            await outbox.add(session, counted(of=7, number=1))
            raise failure

    with pytest.raises(type(failure)):
        await work()

    assert await _rows(database) == []
    async with database.reading() as session:
        assert await session.scalar(text("SELECT count(*) FROM effects")) == 0
    assert not database.outbox_written.is_set()


@pytest.mark.integration
async def test_failed_commit_leaves_nothing(database: Database, counted: Any) -> None:
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))

    async def work() -> None:
        async with database.transaction() as session:
            await outbox.add(session, counted(of=7, number=1))
            await session.execute(text("INSERT INTO once VALUES (1), (1)"))  # noticed at COMMIT

    with pytest.raises(IntegrityError):
        await work()

    assert await _rows(database) == []
    assert not database.outbox_written.is_set()


def test_event_is_a_cloud_event(counted: Any) -> None:
    outgoing = encode(counted(of=7, number=3))
    document = orjson.loads(outgoing.payload)

    assert outgoing.subject == "events.items.item.counted.7"
    assert outgoing.aggregate == "items.item.7"
    assert document.pop("id") == outgoing.event_id
    assert document.pop("time").endswith("+00:00")
    assert document == {
        "specversion": "1.0",
        "source": "/tollhouse/items",
        "type": "items.item.counted.v1",
        "subject": "7",
        "datacontenttype": "application/json",
        "dataschema": "urn:tollhouse:event:items.item.counted.v1",
        "sequence": 3,
        "data": {"of": 7, "number": 3},
    }
    assert Envelope.model_validate_json(outgoing.payload).data == {"of": 7, "number": 3}


class Wordy(Event):
    type: ClassVar[str] = "items.item.described.v1"

    note: str

    def aggregate_id(self) -> int:
        return 1

    def aggregate_version(self) -> int:
        return 1


def test_event_that_could_never_be_published_is_refused(counted: Any) -> None:
    for unfit in ("", "a.b", "a b", "*", ">", "ü", "x" * 129):
        with pytest.raises(ValueError, match="cannot stand in a subject"):
            encode(counted.model_construct(of=unfit, number=1))
    with pytest.raises(ValueError, match="more than an event may have"):
        encode(Wordy(note="x" * MAX_EVENT_BYTES))


def test_event_carries_the_trace_context_of_the_request(counted: Any) -> None:
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    telemetry.remember([(b"traceparent", traceparent.encode())])

    assert Envelope.model_validate_json(encode(counted(of=1, number=1)).payload).traceparent == traceparent


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    ],
)
def test_malformed_trace_context_is_not_passed_on(counted: Any, traceparent: bytes) -> None:
    telemetry.remember([(b"traceparent", traceparent)])

    assert Envelope.model_validate_json(encode(counted(of=1, number=1)).payload).traceparent is None


@pytest.mark.parametrize(
    ("aggregates", "cut"),
    [
        ("", []),
        ("a", ["a"]),
        ("abc", ["abc"]),
        ("aa", ["a", "a"]),
        ("abab", ["ab", "ab"]),
        ("abca", ["abc", "a"]),
        ("aabbcc", ["a", "ab", "bc", "c"]),
    ],
)
def test_window_holds_each_aggregate_once_and_keeps_the_order(aggregates: str, cut: list[str]) -> None:
    found = windows([OutboxRow(aggregate=aggregate) for aggregate in aggregates])

    assert ["".join(row.aggregate for row in window) for window in found] == cut
