"""The relay on real servers: what was committed is published, in order, whatever dies in between."""

import asyncio
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from nats.js.api import DiscardPolicy
from nats.js.errors import NotFoundError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from shared import relay as relay_module
from shared.broker import Broker
from shared.database import Database
from shared.outbox import OutboxRow, add
from shared.relay import RELAY_LOCK, Relay, Waiting
from shared.streams import EVENTS, declare
from shared.tasks import running
from shared.testing import eventually
from stack.testing import ANY_KEY, refusing_connections

pytestmark = pytest.mark.integration

Write = Callable[..., Awaitable[None]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once; never find anything by the sweep that was not announced."""
    monkeypatch.setattr(relay_module, "RETRY_INTERVAL", 0.05)
    monkeypatch.setattr(relay_module, "TAKEOVER_INTERVAL", 0.05)
    monkeypatch.setattr(relay_module, "SWEEP_INTERVAL", 600.0)


@asynccontextmanager
async def _relaying(
    settings: Any, nats_server: Any, database: Database | None = None
) -> AsyncIterator[Database]:
    """Run a relay as a replica of items does; yields the replica's database."""
    async with AsyncExitStack() as stack:
        if database is None:
            database = Database(settings)
            stack.push_async_callback(database.close)
        broker = await stack.enter_async_context(
            Broker(settings.model_copy(update=nats_server.settings("items")))
        )
        relay = Relay(database, broker, service="items")
        await stack.enter_async_context(running(relay.run()))
        yield database


async def _numbers(broker: Broker) -> list[tuple[int, int]]:
    """Return (aggregate, version) of every event in the stream, in its order."""
    try:
        count = (await broker.js.stream_info(EVENTS)).state.messages
    except NotFoundError:
        return []
    found: list[tuple[int, int]] = []
    sequence = (await broker.js.stream_info(EVENTS)).state.first_seq
    while len(found) < count:
        message = await broker.js.get_msg(EVENTS, sequence)
        data = orjson.loads(message.data or b"")["data"]
        found.append((data["of"], data["number"]))
        sequence += 1
    return found


async def _unpublished(database: Database) -> int:
    async with database.reading() as session:
        query = select(func.count()).select_from(OutboxRow).where(OutboxRow.published_at.is_(None))
        return await session.scalar(query) or 0


async def _all_published(database: Database) -> bool:
    return await _unpublished(database) == 0


async def test_versions_of_an_aggregate_never_overtake_each_other(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, counted: Any
) -> None:
    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await declare(operator.js)
        for number in range(1, 11):
            async with database.transaction() as session:
                await add(session, *(counted(of=of, number=number) for of in (1, 2, 3)))
        await eventually(lambda: _all_published(database))

        published = await _numbers(operator)
        assert len(published) == 30
        for of in (1, 2, 3):
            assert [number for aggregate, number in published if aggregate == of] == list(range(1, 11))


async def test_transaction_that_commits_late_is_published_too(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, counted: Any, write: Write
) -> None:
    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await declare(operator.js)
        async with database.transaction() as session:
            await add(session, counted(of=1, number=1))
            await write(1, of=2)  # a later id, committed earlier
            await eventually(lambda: _is(operator, [(2, 1)]))

        await eventually(lambda: _is(operator, [(2, 1), (1, 1)]))


async def _is(broker: Broker, expected: list[tuple[int, int]]) -> bool:
    found = await _numbers(broker)
    assert found == expected, found
    return True


async def test_more_than_a_batch_is_published_at_once(
    monkeypatch: pytest.MonkeyPatch,
    probe_settings: Any,
    nats_server: Any,
    connected: Any,
    database: Database,
    write: Write,
) -> None:
    monkeypatch.setattr(relay_module, "BATCH", 3)
    read: list[int] = []

    async def counting(
        relay: Relay, session: AsyncSession, published: list[Waiting], *, limit: int
    ) -> list[Waiting]:
        rows = await following(relay, session, published, limit=limit)
        read.append(len(rows))
        return rows

    following = Relay._next
    monkeypatch.setattr(Relay, "_next", counting)
    await write(*range(1, 11))

    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await eventually(lambda: _is(operator, [(1, number) for number in range(1, 11)]))
        await eventually(lambda: _all_published(database))
    assert [rows for rows in read if rows] == [3, 3, 3, 1]


async def test_one_relay_is_active_and_another_takes_over_when_its_connection_dies(
    probe_settings: Any,
    nats_server: Any,
    connected: Any,
    database: Database,
    database_url: str,
    postgres_dsn: str,
    write: Write,
) -> None:
    async with (
        connected("operator") as operator,
        _relaying(probe_settings, nats_server),
        _relaying(probe_settings, nats_server),
    ):
        await declare(operator.js)
        with psycopg.connect(postgres_dsn, autocommit=True) as admin:

            def holders() -> list[int]:
                return _lock_holders(admin, database_url)

            (first,) = await eventually(holders)
            admin.execute("SELECT pg_terminate_backend(%s)", [first])
            await eventually(lambda: holders() not in ([first], []))
            assert len(holders()) == 1

        await write(1, 2, 3)
        async with _relaying(probe_settings, nats_server, database):  # this one knows what was committed
            await eventually(lambda: _is(operator, [(1, 1), (1, 2), (1, 3)]))


def _lock_holders(admin: psycopg.Connection[Any], database_url: str) -> list[int]:
    name = database_url.rpartition("/")[2]
    rows = admin.execute(
        "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE locktype = 'advisory' AND granted AND d.datname = %s AND (classid::bigint << 32) + objid::bigint = %s",
        [name, RELAY_LOCK],
    )
    return [row[0] for row in rows]


async def test_lock_is_given_back_when_the_active_relay_stops(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, write: Write
) -> None:
    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await declare(operator.js)
        async with _relaying(probe_settings, nats_server):
            await write(1)
            await eventually(lambda: _is(operator, [(1, 1)]))
        await write(2)
        await eventually(lambda: _is(operator, [(1, 1), (1, 2)]))
    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await write(3)
        await eventually(lambda: _is(operator, [(1, 1), (1, 2), (1, 3)]))


async def test_commit_at_a_waiting_replica_wakes_the_active_one_once(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, counted: Any, postgres_dsn: str,
    database_url: str,
) -> None:  # fmt: skip
    async with (
        connected("operator") as operator,
        connected("items") as listener,
        _relaying(probe_settings, nats_server),
    ):
        await declare(operator.js)
        with psycopg.connect(postgres_dsn, autocommit=True) as admin:
            await eventually(lambda: _lock_holders(admin, database_url))
        async with _relaying(probe_settings, nats_server, database):
            pokes = Counter[str]()
            await listener.on_message("poke.items", lambda: pokes.update(["poke"]))
            commits = 20
            for number in range(1, commits + 1):
                async with database.transaction() as session:
                    await add(session, counted(of=1, number=number))
                await eventually(lambda: _all_published(database))

            assert pokes["poke"] <= commits


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_events_wait_while_nats_is_away(
    probe_settings: Any,
    nats_server: Any,
    connected: Any,
    database: Database,
    write: Write,
    number: signal.Signals,
) -> None:
    nats_server.stop()
    async with _relaying(probe_settings, nats_server, database):
        await write(1)
        assert await _unpublished(database) == 1
        nats_server.start()  # with no streams: the relay makes them
        await eventually(lambda: _all_published(database))

        nats_server.stop(number)
        await write(2, 3)
        nats_server.start()
        await eventually(lambda: _all_published(database))
        await write(4)
        await eventually(lambda: _all_published(database))

        async with connected("operator") as operator:
            await _is(operator, [(1, 1), (1, 2), (1, 3), (1, 4)])


async def test_events_go_on_when_nats_lost_its_store(
    probe_settings: Any,
    nats_server: Any,
    connected: Any,
    database: Database,
    write: Write,
    tmp_path: Path,
) -> None:
    async with _relaying(probe_settings, nats_server, database):
        await write(1)
        await eventually(lambda: _all_published(database))
        async with connected("operator") as operator:
            before = (await operator.js.stream_info(EVENTS)).config.metadata or {}

        nats_server.stop()
        shutil.rmtree(tmp_path / "nats-server" / "nats")
        nats_server.start()
        await write(2)
        await eventually(lambda: _all_published(database))

        async with connected("operator") as operator:
            after = (await operator.js.stream_info(EVENTS)).config.metadata or {}
            assert await _numbers(operator) == [(1, 2)]
            assert before["epoch"] != after["epoch"]


async def test_kill_between_publish_and_mark_publishes_once(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, database_url: str, write: Write
) -> None:
    await write(1, of=1)
    await write(1, of=2)
    async with connected("operator") as operator:
        await declare(operator.js)
        environment = {
            **os.environ,
            **nats_server.environment("items"),
            "ITEMS_DATABASE_URL": database_url,
            "ITEMS_CURSOR_KEY": ANY_KEY,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("crashing_relay.py")), env=environment
        )
        assert await process.wait() == -signal.SIGKILL
        assert await _unpublished(database) == 2
        assert await _numbers(operator) == [(1, 1), (2, 1)]

        async with _relaying(probe_settings, nats_server, database):
            await eventually(lambda: _all_published(database))
            await write(2, of=1)
            await eventually(lambda: _all_published(database))

        assert await _numbers(operator) == [(1, 1), (2, 1), (1, 2)]


async def test_relay_that_hangs_loses_its_lock_and_what_it_does_later_repeats_nothing(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, database_url: str, write: Write
) -> None:
    await write(1, 2)
    async with connected("operator") as operator:
        await declare(operator.js)
        environment = {
            **os.environ,
            **nats_server.environment("items"),
            "ITEMS_DATABASE_URL": database_url,
            "ITEMS_CURSOR_KEY": ANY_KEY,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(__file__).with_name("hanging_relay.py")), env=environment
        )
        try:
            await eventually(lambda: _is_stopped(process.pid))  # with the rows read, and nothing published
            async with _relaying(probe_settings, nats_server, database):
                await eventually(lambda: _is(operator, [(1, 1), (1, 2)]))
                await write(3)
                await eventually(lambda: _is(operator, [(1, 1), (1, 2), (1, 3)]))

                process.send_signal(signal.SIGCONT)
                assert await process.wait() == 0  # it has published what it held, and found its lock gone
                assert await _numbers(operator) == [(1, 1), (1, 2), (1, 3)]
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def test_relay_goes_on_after_the_database_was_away(
    probe_settings: Any,
    nats_server: Any,
    connected: Any,
    database: Database,
    database_url: str,
    postgres_dsn: str,
    write: Write,
) -> None:
    async with connected("operator") as operator, _relaying(probe_settings, nats_server, database):
        await declare(operator.js)
        await write(1)
        await eventually(lambda: _is(operator, [(1, 1)]))
        with refusing_connections(postgres_dsn, database_url):
            pass
        await write(2)
        await eventually(lambda: _is(operator, [(1, 1), (1, 2)]))


async def test_window_that_nats_refuses_in_part_is_published_in_order_later(
    probe_settings: Any, nats_server: Any, connected: Any, database: Database, write: Write
) -> None:
    async with connected("operator") as operator:
        await declare(operator.js)
        full = (await operator.js.stream_info(EVENTS)).config
        full.max_msgs, full.discard = 1, DiscardPolicy.NEW
        await operator.js.update_stream(full)
        await write(1, of=1)
        await write(1, of=2)
        await write(2, of=1)
        async with _relaying(probe_settings, nats_server, database):
            await eventually(lambda: _is(operator, [(1, 1)]))
            await eventually(lambda: _are_left(database, 2))

            full.max_msgs = -1
            await operator.js.update_stream(full)
            await eventually(lambda: _is(operator, [(1, 1), (2, 1), (1, 2)]))


async def _are_left(database: Database, count: int) -> bool:
    return await _unpublished(database) == count


async def test_flush_publishes_what_is_left_at_the_end_of_a_drain(
    connected: Any, database: Database, write: Write
) -> None:
    async with connected("operator") as operator, connected("items") as broker:
        await declare(operator.js)
        await write(1, 2)
        relay = Relay(database, broker, service="items")

        await relay.flush()

        assert await _numbers(operator) == [(1, 1), (1, 2)]


async def test_flush_without_nats_leaves_the_rows(
    nats_server: Any, connected: Any, database: Database, write: Write
) -> None:
    async with connected("items") as broker:
        nats_server.stop()
        await eventually(lambda: not broker.connected.is_set())
        await write(1)

        await Relay(database, broker, service="items").flush()

        assert await _unpublished(database) == 1
