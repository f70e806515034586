"""Durable consumers on real servers: every effect once, whatever dies, and poison set aside."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.testing import capture_logs

from shared import consumer as consumer_module
from shared import pull as pull_module
from shared import streams as streams_module
from shared.broker import Broker
from shared.consumer import Consumer, Handler, Result, Subscription
from shared.database import Database
from shared.dead_letters import DeadLetter
from shared.events import Envelope, encode
from shared.ids import new_id
from shared.metrics import Collector, Metrics, exposition
from shared.pull import Pull
from shared.streams import DEAD, EVENTS, declare
from shared.tasks import running
from shared.testing import eventually
from shared.times import utc_now
from stack.testing import ANY_KEY, refusing_connections

pytestmark = pytest.mark.integration

SUBSCRIPTION = Subscription(EVENTS, "notifications", "events.>")
COUNTED = "items.item.counted.v1"
RESULTS = ("applied", "repeated", "ignored", "failed", "dead")

Publish = Callable[..., Awaitable[str]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "BACKOFF", (0.02, 0.05))
    monkeypatch.setattr(consumer_module, "RECONNECT_INTERVAL", 0.05)
    monkeypatch.setattr(consumer_module, "DATABASE_RETRY", (0.05,))
    monkeypatch.setattr(pull_module, "SILENCE", 1.2)
    monkeypatch.setattr(pull_module, "HEARTBEAT", 0.5)


@pytest.fixture
async def operator(connected: Any) -> AsyncIterator[Broker]:
    """A connection that may do everything, with the streams declared."""
    async with connected("operator") as broker:
        await declare(broker.js)
        yield broker


@pytest.fixture
def publish(operator: Broker, counted: Any) -> Publish:
    """Publish one event; `message` replaces the whole of it, `attributes` parts of its envelope."""

    async def publish(
        number: int = 1,
        *,
        message: bytes | None = None,
        headers: dict[str, str] | None = None,
        **attributes: Any,
    ) -> str:
        outgoing = encode(counted(of=1, number=number))
        payload = (
            orjson.dumps({**orjson.loads(outgoing.payload), **attributes}) if message is None else message
        )
        # No Nats-Msg-Id: the same event may be published again, as beyond the duplicate window.
        await operator.js.publish(outgoing.subject, payload, headers=headers)
        return str(attributes.get("id", outgoing.event_id))

    return publish


async def take_note(session: AsyncSession, event: Envelope) -> None:
    await session.execute(text("INSERT INTO effects (note) VALUES (:note)"), {"note": event.id})


@asynccontextmanager
async def consuming(
    nats_server: Any,
    database: Database,
    handler: Handler = take_note,
    *,
    kind: type[Consumer] = Consumer,
    settings: Any,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a consumer as a replica of notifications does; yields its task."""
    async with Broker(settings.model_copy(update=nats_server.settings("notifications"))) as broker:
        consumer = kind(broker, database, SUBSCRIPTION, {COUNTED: handler}, service="notifications")
        task = asyncio.create_task(consumer.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.fixture
def consume(nats_server: Any, database: Database, probe_settings: Any) -> Callable[..., Any]:
    """`async with consume(handler):` runs a consumer."""

    def start(handler: Handler = take_note, kind: type[Consumer] = Consumer) -> Any:
        return consuming(nats_server, database, handler, kind=kind, settings=probe_settings)

    return start


@pytest.fixture
def notes(database: Database) -> Callable[[], Awaitable[list[str]]]:
    """The effects so far, in the order they were made."""

    async def read() -> list[str]:
        async with database.reading() as session:
            return list(await session.scalars(text("SELECT note FROM effects ORDER BY id")))

    return read


async def _state(operator: Broker) -> ConsumerInfo:
    state: ConsumerInfo = await operator.js.consumer_info(EVENTS, SUBSCRIPTION.durable)
    return state


async def _settled(operator: Broker) -> bool:
    """Say whether every message has been acknowledged."""
    try:
        state = await _state(operator)
    except Exception as error:  # not declared yet, or the server is just coming back
        raise LookupError(str(error)) from error
    return state.num_pending == 0 and state.num_ack_pending == 0


async def _dead(operator: Broker) -> list[Any]:
    count = (await operator.js.stream_info(DEAD)).state.messages
    return [await operator.js.get_msg(DEAD, sequence) for sequence in range(1, count + 1)]


async def test_every_event_takes_effect_once_in_order(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    sent = [await publish(number) for number in range(1, 21)]

    async with consume():
        await eventually(lambda: _settled(operator))

        assert await notes() == sent


async def test_event_that_is_published_again_takes_effect_once(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    event_id = new_id()
    for _ in range(3):
        await publish(id=event_id)

    async with consume():
        await eventually(lambda: _settled(operator))

    assert await notes() == [event_id]


async def test_lost_acknowledgement_does_not_repeat_the_effect(
    consume: Any, publish: Publish, notes: Any, operator: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 0.3)
    lost: list[Msg] = []

    class Forgetful(Consumer):
        async def _acknowledge(self, message: Msg) -> None:
            if not lost:
                lost.append(message)
                return
            await super()._acknowledge(message)

    event_id = await publish()
    async with consume(kind=Forgetful):
        await eventually(lambda: len(lost) == 1)
        await eventually(lambda: _settled(operator))

    assert await notes() == [event_id]


async def test_kill_between_commit_and_acknowledgement_takes_effect_once(
    consume: Any,
    publish: Publish,
    notes: Any,
    operator: Broker,
    nats_server: Any,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 1.0)
    first, second = await publish(1), await publish(2)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("crashing_consumer.py")),
        env={
            **os.environ,
            **nats_server.environment("notifications"),
            "ITEMS_DATABASE_URL": database_url,
            "ITEMS_CURSOR_KEY": ANY_KEY,
        },
    )
    assert await process.wait() == -signal.SIGKILL
    assert await notes() == [first]
    assert not await _settled(operator)

    async with consume():
        await eventually(lambda: _settled(operator))

    assert await notes() == [first, second]


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[]", b"{}", b"\xff\xfe", b'{"id": "secret-value", "type": 5}', b"[" * 10_000],
    ids=["empty", "text", "array", "bare", "not utf-8", "wrong types", "nested"],
)
async def test_message_that_cannot_be_understood_is_set_aside_with_its_cause(
    consume: Any, publish: Publish, notes: Any, operator: Broker, data: bytes
) -> None:
    await publish(message=data)
    good = await publish()

    async with consume():
        await eventually(lambda: _settled(operator))

    assert await notes() == [good]
    (dead,) = await _dead(operator)
    assert dead.subject == "dead.notifications.notifications"
    assert (dead.data or b"") == data
    assert dead.headers["Tollhouse-Subject"] == "events.items.item.counted.1"
    assert dead.headers["Tollhouse-Sequence"] == "1"
    assert dead.headers["Tollhouse-Cause"]
    assert "secret-value" not in dead.headers["Tollhouse-Cause"]


async def test_data_that_a_handler_cannot_understand_is_set_aside(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    class Data(BaseModel):
        number: int

    async def strict(session: AsyncSession, event: Envelope) -> None:
        Data.model_validate(event.data)
        await take_note(session, event)

    await publish(data={"number": "many"})
    good = await publish()

    async with consume(strict):
        await eventually(lambda: _settled(operator))

    assert await notes() == [good]
    (dead,) = await _dead(operator)
    assert "number" in dead.headers["Tollhouse-Cause"]
    assert "many" not in dead.headers["Tollhouse-Cause"]


async def test_failing_event_is_tried_again_while_its_neighbours_go_on(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    first, second, third = [await publish(number) for number in (1, 2, 3)]
    failures = 0

    async def fail_three_times(session: AsyncSession, event: Envelope) -> None:
        nonlocal failures
        await take_note(session, event)
        if event.id == first and failures < 3:
            failures += 1
            raise RuntimeError("not now")

    async with consume(fail_three_times):
        await eventually(lambda: _settled(operator))

    assert failures == 3
    assert await notes() == [second, third, first]  # nothing stayed of the failures
    assert await _dead(operator) == []


async def test_delivery_limit_sets_aside_before_the_handler_runs_again(
    consume: Any, publish: Publish, notes: Any, operator: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "MAX_DELIVERIES", 3)
    calls = 0

    async def fail(_session: AsyncSession, _event: Envelope) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("never")

    await publish(headers={"Traceparent": "as it came"})
    sent = [(await operator.js.get_msg(EVENTS, 1)).data]
    async with consume(fail):
        await eventually(lambda: _settled(operator))

    assert calls == 3
    assert await notes() == []
    (dead,) = await _dead(operator)
    letter = DeadLetter.from_headers(dead.headers)
    assert letter.deliveries == 4
    assert letter.cause.startswith(
        "delivered 3 times without success; last: RuntimeError at tests/test_consumer.py:"
    )
    assert letter.first_failure_at is not None
    assert letter.last_failure_at is not None
    assert letter.published_at <= letter.first_failure_at < letter.last_failure_at
    assert letter.headers == {"Traceparent": "as it came"}
    assert dead.data == sent[0]


async def test_letters_of_a_stream_that_was_made_anew_are_others(operator: Broker) -> None:
    first = DeadLetter(
        consumer="notes",
        cause="poison",
        stream=EVENTS,
        subject="events.probe.happened.1",
        sequence=1,
        deliveries=1,
        published_at=utc_now(),
        first_failure_at=None,
        last_failure_at=None,
        headers={},
    )
    again = replace(first, published_at=first.published_at + timedelta(minutes=1))
    for letter in (first, first, again):
        await operator.js.publish("dead.probe.notes", b"", headers=letter.to_headers())
    assert len(await _dead(operator)) == 2


async def test_a_pull_that_ends_without_a_connection_leaves_no_subscription(operator: Broker) -> None:
    before = set(operator.client._subs)
    async with Pull(operator, EVENTS, "nobody", batch=1):
        assert set(operator.client._subs) > before
        operator.connected.clear()
    assert set(operator.client._subs) == before
    operator.connected.set()


async def test_dead_letter_waits_until_it_can_be_stored(
    consume: Any, publish: Publish, operator: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = asyncio.Event()
    original = streams_module.ensure

    async def ensure_without_dead(js: Any, name: str) -> Any:
        if name != DEAD or refused.is_set():
            return await original(js, name)
        await operator.js.delete_stream(DEAD)
        refused.set()
        return None

    monkeypatch.setattr(consumer_module, "ensure", ensure_without_dead)
    await publish(message=b"poison")
    async with consume():
        await refused.wait()
        await eventually(lambda: _was_delivered_again(operator))
        await declare(operator.js)
        await eventually(lambda: _settled(operator))

    assert len(await _dead(operator)) == 1


async def _was_delivered_again(operator: Broker) -> bool:
    try:
        return bool((await _state(operator)).num_redelivered)
    except Exception as error:  # not declared yet
        raise LookupError(str(error)) from error


async def test_message_is_held_while_the_database_is_away(
    consume: Any,
    publish: Publish,
    notes: Any,
    operator: Broker,
    postgres_dsn: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer_module, "MAX_DELIVERIES", 1)
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 5.0)
    attempts = asyncio.Semaphore(0)

    class Attentive(Consumer):
        async def _apply(self, event: Envelope) -> Result:
            attempts.release()
            return await super()._apply(event)

    async with consume(kind=Attentive):
        await eventually(lambda: _settled(operator))
        with refusing_connections(postgres_dsn, database_url):
            event_id = await publish()
            for _ in range(3):
                await attempts.acquire()
        await eventually(lambda: _settled(operator))

    assert await notes() == [event_id]
    assert await _dead(operator) == []


async def test_stopping_ends_in_time_though_the_database_is_away(
    consume: Any,
    publish: Publish,
    notes: Any,
    operator: Broker,
    postgres_dsn: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer_module, "FINISH_TIMEOUT", 0.1)
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 1.0)
    tried = asyncio.Event()

    class Attentive(Consumer):
        async def _apply(self, event: Envelope) -> Result:
            tried.set()
            return await super()._apply(event)

    async with consume(kind=Attentive) as task:
        await eventually(lambda: _settled(operator))
        with refusing_connections(postgres_dsn, database_url):
            event_id = await publish()
            await tried.wait()
            task.cancel()
            async with asyncio.timeout(5):
                await asyncio.wait({task})

    assert task.cancelled()
    async with consume():
        await eventually(lambda: _settled(operator))
    assert await notes() == [event_id]


async def test_stopping_finishes_the_message_in_work_and_hands_back_the_others(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    first, second = await publish(1), await publish(2)
    begun, finish = asyncio.Event(), asyncio.Event()

    async def slow(session: AsyncSession, event: Envelope) -> None:
        await take_note(session, event)
        begun.set()
        await finish.wait()

    async with consume(slow) as task:
        await begun.wait()
        task.cancel()
        finish.set()
        await asyncio.wait({task})

    assert task.cancelled()
    assert await notes() == [first]
    async with consume():  # the other one comes at once, not after ACK_WAIT
        await eventually(lambda: _settled(operator), within=consumer_module.ACK_WAIT / 2)
    assert await notes() == [first, second]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_restart_of_nats_needs_no_restart_of_ours(
    consume: Any,
    publish: Publish,
    notes: Any,
    operator: Broker,
    nats_server: Any,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer_module, "ACK_WAIT", 1.0)  # a killed server forgets acknowledgements
    async with consume():
        before = await publish(1)
        await eventually(lambda: _settled(operator))

        nats_server.stop(number)
        await eventually(lambda: not operator.connected.is_set())
        nats_server.start()
        await eventually(operator.connected.is_set)
        after = await publish(2)
        await eventually(lambda: _settled(operator))
        await eventually(lambda: _are(notes, [before, after]))


async def _are(notes: Any, expected: list[str]) -> bool:
    assert await notes() == expected
    return True


async def test_deleted_consumer_is_declared_anew_and_nothing_repeats(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    async with consume():
        before = await publish(1)
        await eventually(lambda: _settled(operator))

        await operator.js.delete_consumer(EVENTS, SUBSCRIPTION.durable)
        after = await publish(2)
        await eventually(lambda: _are(notes, [before, after]))
        await eventually(lambda: _settled(operator))


async def test_unknown_types_and_attributes_are_ignored(
    consume: Any, publish: Publish, notes: Any, operator: Broker
) -> None:
    await publish(type="items.item.renamed.v7")
    await publish(type="items.price_list.counted.v1")
    known = await publish(extension="new", data={"of": 1, "number": 1, "colour": "red"})

    async with consume():
        await eventually(lambda: _settled(operator))

    assert await notes() == [known]
    assert await _dead(operator) == []


async def test_declaration_that_changed_is_brought_to_the_consumer_and_nothing_repeats(
    consume: Any, publish: Publish, notes: Any, operator: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await publish(1)
    async with consume():
        await eventually(lambda: _settled(operator))

    monkeypatch.setattr(consumer_module, "ACK_WAIT", 45.0)
    async with consume():
        after = await publish(2)
        await eventually(lambda: _are(notes, [before, after]))
        assert (await _state(operator)).config.ack_wait == 45.0


async def test_declaration_that_conflicts_is_refused_in_a_sentence(
    consume: Any, publish: Publish, notes: Any, operator: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "CONFLICT_INTERVAL", 0.05)
    config = ConsumerConfig(
        durable_name=SUBSCRIPTION.durable,
        filter_subject=SUBSCRIPTION.subject,
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.NEW,
    )
    await operator.js.add_consumer(EVENTS, config)
    event_id = await publish()

    with capture_logs() as logs:
        async with consume():
            await eventually(lambda: [entry for entry in logs if entry["event"] == "consumer.conflict"])
            assert (await _state(operator)).config.deliver_policy == DeliverPolicy.NEW
            await operator.js.delete_consumer(EVENTS, SUBSCRIPTION.durable)
            await eventually(lambda: _are(notes, [event_id]))

    said = next(entry["error"] for entry in logs if entry["event"] == "consumer.conflict")
    assert said.startswith("Consumer notifications of stream EVENTS cannot be changed: ")
    assert "deliver policy" in said


async def test_consumer_shows_what_it_does_and_how_far_it_is_behind(
    nats_server: Any, database: Database, probe_settings: Any, publish: Publish, operator: Broker,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(consumer_module, "MEASURE_INTERVAL", 0.05)
    monkeypatch.setattr(consumer_module, "MAX_DELIVERIES", 2)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def fail_on_five(session: AsyncSession, event: Envelope) -> None:
        begun.set()
        await go_on.wait()
        if event.data["number"] == 5:
            raise RuntimeError
        await take_note(session, event)

    for number in range(1, 6):
        await publish(number)
    await publish(1, type="items.item.unheard_of.v1")
    repeated = await publish(6)
    await publish(6, id=repeated)

    def numbers() -> dict[str, float]:
        return {
            line.rpartition(" ")[0].replace('consumer="notifications"', "").strip("{},"): float(
                line.rpartition(" ")[2]
            )
            for line in exposition(Collector(tmp_path).collect()).decode().splitlines()
            if not line.startswith("#")
        }

    with closing(Metrics(tmp_path)) as metrics:
        async with Broker(probe_settings.model_copy(update=nats_server.settings("notifications"))) as broker:
            consumer = Consumer(
                broker,
                database,
                SUBSCRIPTION,
                {COUNTED: fail_on_five},
                service="notifications",
                metrics=metrics,
            )
            async with running(consumer.run()):
                await begun.wait()
                await eventually(lambda: numbers()["consumer_ack_pending"] == 8)
                go_on.set()
                await eventually(lambda: _settled(operator))
                await eventually(lambda: numbers()["consumer_ack_pending"] == 0)

        found = numbers()
    assert found["consumer_pending"] == 0
    results = {name: found[f'consumer_events_total{{,result="{name}"'] for name in RESULTS}
    assert results == {"applied": 5, "ignored": 1, "repeated": 1, "failed": 2, "dead": 1}
    assert found["consumer_redeliveries_total"] == 2
    assert found["consumer_delay_seconds_count"] == 5
