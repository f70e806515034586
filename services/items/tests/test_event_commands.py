"""`python -m items events …`: operators refill a stream and deal with dead letters."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy import insert, select, text

from items.events import ItemCreated, ItemDeleted
from items.handlers import CONSUMERS, HANDLERS, SUBSCRIPTION
from items.models import COLUMNS, Item, ItemState
from items.settings import ItemsSettings
from shared import consumer as consumer_module
from shared import event_commands, outbox, server
from shared.broker import Broker
from shared.consumer import Consumer
from shared.database import Database
from shared.dead_letters import DeadLetters
from shared.events import Envelope
from shared.relay import Relay
from shared.replay import LONGEST_TRANSACTION, Progress, Selection
from shared.streams import DEAD, EVENTS, declare
from shared.tasks import running
from shared.testing import eventually
from shared.times import utc_now
from stack.testing import ANY_KEY, DatabaseFactory, NATSServer

pytestmark = pytest.mark.integration


class Done(NamedTuple):
    """How a command ended."""

    code: int | None
    out: str
    err: str


Run = Callable[..., Awaitable[Done]]


@pytest.fixture
def settings(make_database: DatabaseFactory, nats_server: NATSServer) -> ItemsSettings:
    """Settings of items on servers of this test's own."""
    return ItemsSettings(
        database_url=SecretStr(make_database(ItemsSettings)),
        cursor_key=SecretStr(ANY_KEY),
        **nats_server.settings("items"),
    )


@pytest.fixture
async def database(settings: ItemsSettings) -> AsyncIterator[Database]:
    """The database of items."""
    database = Database(settings)
    yield database
    await database.close()


@pytest.fixture
async def operator(settings: ItemsSettings, nats_server: NATSServer) -> AsyncIterator[Broker]:
    """A connection that may do everything, with the streams declared."""
    async with Broker(settings.model_copy(update=nats_server.settings("operator"))) as broker:
        await broker.connected.wait()
        await declare(broker.js)
        yield broker


@pytest.fixture
def environment(settings: ItemsSettings, nats_server: NATSServer) -> Callable[[str], dict[str, str]]:
    """What the command line of items reads, for a NATS user."""

    def variables(user: str) -> dict[str, str]:
        return {
            "ITEMS_DATABASE_URL": settings.database_url.get_secret_value(),
            "ITEMS_CURSOR_KEY": ANY_KEY,
            **nats_server.environment(user),
        }

    return variables


@pytest.fixture
def events(
    environment: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """Run `python -m items events …` in a thread of this process, which is quicker."""
    logging = structlog.get_config()

    def main(arguments: tuple[str, ...]) -> int:
        commands = {"events": event_commands.subcommands(lambda: CONSUMERS)}
        with pytest.raises(SystemExit) as ended:
            server.main(ItemsSettings, commands, ["events", *arguments])
        return int(ended.value.code or 0)

    async def run(*arguments: str, user: str = "operator", **more: str) -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patched:
            for name, value in {**environment(user), **more}.items():
                patched.setenv(name, value)
            code = await asyncio.to_thread(main, arguments)
        structlog.configure(**logging)
        return Done(code, *capsys.readouterr())

    yield run
    structlog.configure(**logging)


async def _offer(
    database: Database, count: int, kind: type[ItemCreated | ItemDeleted] = ItemCreated
) -> list[int]:
    made = []
    for number in range(count):
        async with database.transaction() as session:
            offered = insert(Item).values(name=f"item {number}", price=Decimal(1), in_stock=True, owner_id=7)
            item = ItemState(*(await session.execute(offered.returning(*COLUMNS))).one())
            await outbox.add(session, kind.of(item, actor_id=7))
            made.append(item.id)
    return made


async def _relay_all(settings: ItemsSettings, database: Database) -> None:
    async with Broker(settings) as broker:
        await broker.connected.wait()
        await Relay(database, broker, service="items").flush()


async def _subjects(broker: Broker) -> list[str]:
    info = await broker.js.stream_info(EVENTS)
    return [
        str((await broker.js.get_msg(EVENTS, sequence)).subject)
        for sequence in range(info.state.first_seq, info.state.last_seq + 1)
    ]


async def test_replay_refills_a_stream_that_is_gone(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker
) -> None:
    ids = await _offer(database, 3)
    await _relay_all(settings, database)
    before = await _subjects(operator)
    await operator.js.delete_stream(EVENTS)

    done = await events("replay", "--since", "1h", user="items")

    assert done.code == 0, done.err
    assert "3  published, 0 of which the stream had already" in done.out
    assert "3  events.items.item.created.*" in done.out
    assert "3 events, up to" in done.err
    assert await _subjects(operator) == before == [f"events.items.item.created.{id_}" for id_ in ids]

    done = await events("replay", "--since", "1h", user="items")
    assert "3  published, 3 of which the stream had already" in done.out
    assert await _subjects(operator) == before


async def test_replay_takes_what_is_chosen_and_a_dry_run_publishes_nothing(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker
) -> None:
    (first, second) = await _offer(database, 2)
    await _offer(database, 1, ItemDeleted)
    await _offer(database, 1)
    await _relay_all(settings, database)
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE outbox SET created_at = created_at - interval '2 hours' WHERE id <= 3")
        )
    await operator.js.purge_stream(EVENTS)
    hour_ago = (utc_now() - timedelta(hours=1)).isoformat()
    chosen = ("replay", "--since", "1d", "--until", hour_ago, "--subject", "events.items.item.created.*")

    done = await events(*chosen, "--dry-run", user="items")
    assert (done.code, done.out.splitlines()[-1].split()) == (0, ["2", "would", "be", "published"])
    assert await _subjects(operator) == []

    # Beyond the duplicate window in effect: what was purged counts as known to the server for an hour.
    async with database.transaction() as session:
        await session.execute(text("UPDATE outbox SET event_id = event_id || '-late'"))
    assert (await events(*chosen, user="items")).code == 0
    assert await _subjects(operator) == [f"events.items.item.created.{item}" for item in (first, second)]


@pytest.mark.parametrize("since", ["yesterday", "99999999999d", "900000d", "2026-13-01"])
async def test_a_time_that_is_none_is_a_usage_error(events: Run, since: str) -> None:
    done = await events("replay", "--since", since)
    assert (done.code, "is no time" in done.err, "Traceback" in done.err) == (2, True, False)


def test_an_interrupted_replay_goes_on_where_no_longer_transaction_is_passed_over() -> None:
    now = utc_now()
    selection = Selection(since=now - timedelta(hours=1))
    assert Progress().resume(selection) == selection.since
    assert Progress(reached=now).resume(selection) == now - LONGEST_TRANSACTION
    assert Progress(reached=selection.since).resume(selection) == selection.since


@pytest.mark.usefixtures("operator")
async def test_replay_says_how_far_the_outbox_goes_back(
    events: Run, settings: ItemsSettings, database: Database
) -> None:
    assert "keeps no published event" in (await events("replay", "--since", "1h")).err
    await _offer(database, 1)
    await _relay_all(settings, database)
    assert "goes back to" in (await events("replay", "--since", "1h")).err


async def test_replayed_events_take_effect_once(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker, publisher: Any
) -> None:
    """Nothing of a replay may be applied twice: the inbox knows it, also beyond the duplicate window."""
    received: list[str] = []

    async def take(_session: Any, event: Envelope) -> None:
        received.append(event.id)

    await _offer(database, 3)
    await _relay_all(settings, database)
    notifications = settings.model_copy(update=publisher._nats_server.settings("notifications"))
    async with Broker(notifications) as broker:
        every = consumer_module.Subscription(EVENTS, "notifications", "events.>")
        consumer = Consumer(broker, database, every, {ItemCreated.type: take}, service="notifications")
        async with running(consumer.run()):
            await eventually(lambda: len(received) == 3)
            await operator.js.delete_stream(EVENTS)  # and with it what it knew of duplicates
            assert (await events("replay", "--since", "1h", user="items")).code == 0
            (last,) = await _offer(database, 1)
            await _relay_all(settings, database)
            await eventually(lambda: len(received) == 4)
    assert len(set(received)) == 4
    assert last


@pytest.mark.usefixtures("operator")
async def test_the_command_is_part_of_the_service(environment: Callable[[str], dict[str, str]]) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "items", "events", "status", "--json"),
        env={**os.environ, **environment("items")},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(out) == {
        "outbox": {"waiting": 0, "oldest_waiting": None, "replay_possible_since": None},
        "consumers": {"items": None},
        "dead_letters": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "required: action"),
        (("replay",), "required: --since"),
        (("replay", "--since", "yesterday"), "'yesterday' is no time"),
        (("dead",), "required: verb"),
        (("dead", "show", "x"), "invalid int value"),
    ],
    ids=str,
)
async def test_wrong_command_line_is_explained(events: Run, arguments: tuple[str, ...], said: str) -> None:
    done = await events(*arguments)
    assert done.code == 2
    assert said in done.err


@pytest.mark.usefixtures("operator")
async def test_failures_are_sentences(events: Run) -> None:
    away = await events("status", ITEMS_DATABASE_URL="postgresql://items@127.0.0.1:1/items")
    assert (away.code, away.err) == (1, "items: the database cannot be worked with (OperationalError).\n")
    for arguments in (("show", "7"), ("drop", "7"), ("redrive", "7")):
        done = await events("dead", *arguments)
        assert (done.code, done.err) == (1, "items: there is no dead letter 7.\n")
    for unclear in (("drop",), ("redrive", "7", "--all")):
        done = await events("dead", *unclear)
        assert (done.code, done.err) == (1, "items: name the letters by their numbers, or say --all.\n")


@pytest.mark.usefixtures("operator")
async def test_dead_letters_are_the_operators_alone(events: Run) -> None:
    done = await events("dead", "list", user="items")
    assert done.code == 1
    assert "the user operator's alone" in done.err


@asynccontextmanager
async def _consuming(settings: ItemsSettings, database: Database, fail: list[bool]) -> AsyncIterator[None]:
    """Run the consumer of items; its handler fails while `fail` says so."""

    async def disown(session: Any, event: Envelope) -> None:
        if fail[0]:
            raise RuntimeError("no secrets here")
        await HANDLERS[event.type](session, event)

    async with Broker(settings) as broker:
        handlers = {"users.user.deleted.v1": disown}
        async with running(Consumer(broker, database, SUBSCRIPTION, handlers, service="items").run()):
            yield


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_module, "BACKOFF", (0.02,))
    monkeypatch.setattr(consumer_module, "MAX_DELIVERIES", 2)


async def _owner(database: Database, item_id: int) -> int | None:
    async with database.reading() as session:
        return await session.scalar(select(Item.owner_id).where(Item.id == item_id))


DELETED = "events.users.user.deleted.7"


def _deleted(user_id: object = 7, event_id: str = "01942a60-7b85-7000-8000-000000000000") -> bytes:
    return json.dumps(
        {
            "id": event_id,
            "type": "users.user.deleted.v1",
            "subject": "7",
            "time": "2026-01-02T03:04:05Z",
            "sequence": 4,
            "data": {"id": user_id, "version": 4},
        }
    ).encode()


async def _dead_count(operator: Broker) -> int:
    return (await operator.js.stream_info(DEAD)).state.messages


@pytest.mark.usefixtures("_impatient")
async def test_dead_letter_is_listed_shown_redriven_by_its_consumer_and_gone(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker
) -> None:
    (item,) = await _offer(database, 1)
    await operator.js.publish(DELETED, _deleted(), headers={"Traceparent": "as it came"})
    async with _consuming(settings, database, [True]):
        await eventually(lambda: _is_dead(operator, 1))
    assert await _owner(database, item) == 7

    listed = await events("dead", "list")
    assert listed.code == 0, listed.err
    assert DELETED in listed.out
    assert "delivered 2 times without success; last: RuntimeError at tests/" in listed.out
    assert "no secrets" not in listed.out

    (letter,) = json.loads((await events("dead", "list", "--json")).out)
    assert (letter["consumer"], letter["deliveries"], letter["stream"]) == ("items", 3, EVENTS)
    assert letter["headers"] == {"Traceparent": "as it came"}
    assert letter["published_at"] <= letter["first_failure_at"] <= letter["last_failure_at"]

    shown = await events("dead", "show", str(letter["number"]))
    assert _deleted().decode() in shown.out
    assert "Traceparent" in shown.out

    assert json.loads((await events("status", "--json")).out)["dead_letters"] == 1
    redriven = await events("dead", "redrive", str(letter["number"]))
    assert (redriven.code, redriven.out) == (0, f"{letter['number']}: applied\n")
    assert await _owner(database, item) is None
    assert await _dead_count(operator) == 0
    assert (await operator.js.stream_info(EVENTS)).state.messages == 1, "no other consumer hears of it"


async def _is_dead(operator: Broker, count: int) -> bool:
    return await _dead_count(operator) == count


@pytest.mark.usefixtures("_impatient")
async def test_redrive_applies_nothing_twice_and_keeps_what_fails_again(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker
) -> None:
    await operator.js.publish(DELETED, _deleted("not a number", "event-1"))
    await operator.js.publish(DELETED, _deleted(8, "event-2"))
    async with _consuming(settings, database, [True]):
        await eventually(lambda: _is_dead(operator, 2))
    async with database.transaction() as session:  # somebody has applied it meanwhile
        await session.execute(text("INSERT INTO inbox (consumer, event_id) VALUES ('items', 'event-2')"))

    done = await events("dead", "redrive", "--all", "--consumer", "items")

    assert done.code == 1
    numbers = {stored.letter.cause: stored.number async for stored in DeadLetters(operator.js, "items").all()}
    assert len(numbers) == 1
    assert "repeated" in done.out
    assert "it still cannot be understood" in done.err

    (left,) = numbers.values()
    assert (await events("dead", "drop", str(left))).out == f"{left}: dropped\n"
    assert await _dead_count(operator) == 0
    assert (await events("dead", "list")).out == "0 dead letters\n"


async def test_status_shows_what_waits(
    events: Run, settings: ItemsSettings, database: Database, operator: Broker
) -> None:
    await _offer(database, 2)
    fresh = await events("status")
    assert fresh.code == 0, fresh.err
    assert "2 waiting, the oldest since" in fresh.out
    assert "items: not declared yet" in fresh.out

    await _relay_all(settings, database)
    async with _consuming(settings, database, [False]):
        await operator.js.publish(DELETED, _deleted(99))
        await eventually(lambda: _nothing_pending(operator))
    status = await events("status", user="items")  # the service's own user may ask, too
    assert "outbox        0 waiting" in status.out
    assert "consumer      items: 0 pending, 0 ack_pending, 0 redelivered" in status.out
    assert "dead letters  0" in status.out


async def _nothing_pending(operator: Broker) -> bool:
    try:
        info = await operator.js.consumer_info(EVENTS, "items")
    except Exception as error:  # not declared yet
        raise LookupError from error
    return info.delivered is not None and info.delivered.stream_seq > 0 and info.num_ack_pending == 0
