"""Drills: a system under load loses processes, disks and brokers, and a checker counts what became of every write.

`make test-soak` runs the long ones, `make test` short ones of the same kind.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import checker
import httpx
import psutil
import psycopg
import pytest
from checker import Facts, Report, check, gather
from journey import System
from load import Load

from shared.broker import Broker
from shared.streams import EVENTS
from shared.testing import eventually
from stack import postgres
from stack import settings as ports
from tollhouse_live import AccessToken, Event, LiveStream

PROCESSES = ("gateway", "users", "items", "notifications", "nats", "postgres")
SETTLED_WITHIN = 75.0
"""Seconds until everything has arrived; what a killed consumer held comes again after its ACK_WAIT of 30 s."""

LOOK_INTERVAL = 1.0


async def settled(system: System, load: Load, *, within: float = SETTLED_WITHIN) -> Report:
    """Stop the load, wait until all has arrived, print the counts; AssertionError names the promises not kept."""
    await load.settle(within=within)
    report = Report()

    async def kept() -> bool:
        nonlocal report
        await asyncio.sleep(LOOK_INTERVAL)  # a look reads the whole stream
        with suppress(psycopg.Error):
            report = await verdict(system, load)
        assert report.counts, "the databases cannot be read"
        assert not report.broken, report
        return True

    try:
        await eventually(kept, within=within)
    finally:
        print(f"\n{report}")  # noqa: T201  # the counts are what a drill is for
    return report


async def verdict(system: System, load: Load) -> Report:
    """Compare what was answered and seen with what there is."""
    return check(load.ledger, await facts_of(system, load))


async def facts_of(system: System, load: Load) -> Facts:
    assert system.data_dir is not None
    assert load.ledger.began is not None
    return await gather(system.data_dir, system.offset, since=load.ledger.began)


@contextmanager
def unattended(system: System) -> Iterator[None]:
    """Stop the supervisor for the length of the block, so that nobody starts again what dies."""
    os.kill(system.supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(system.supervisor, signal.SIGCONT)


def secret(system: System, name: str) -> str:
    """Return a credential of the embedded stack."""
    assert system.data_dir is not None
    return str(json.loads((system.data_dir / "credentials.json").read_text())[name])


def operator(system: System) -> AbstractAsyncContextManager[Broker]:
    """Connect to NATS as the operator."""
    assert system.data_dir is not None
    return checker.operator(system.data_dir, system.offset)


async def kill_at_random(system: System, load: Load, *, times: int, pause: float) -> dict[str, int]:
    """Kill a random process `times` times, `pause` seconds apart on average; returns how often each died."""
    killed = dict.fromkeys(PROCESSES, 0)
    while sum(killed.values()) < times:
        await load.grows(1)  # a system that answers nothing has nothing to lose
        await asyncio.sleep(random.uniform(0, 2 * pause))  # noqa: S311  # a random moment is the point
        process = random.choice(PROCESSES)  # noqa: S311
        # One that has not been started again yet cannot die.
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            system.kill(process)
            killed[process] += 1
    await recovered(system)
    await load.grows(5)
    return killed


async def recovered(system: System) -> None:
    """Wait until every service is ready."""
    async with httpx.AsyncClient(trust_env=False) as http:

        async def ready() -> bool:
            with suppress(httpx.TransportError):
                answer = await http.get(f"{system.url}/health/ready")
                return answer.status_code == 200 and answer.json()["status"] == "ready"
            return False

        await eventually(ready, within=90)


async def test_kill_9_of_processes_at_random_moments(drilled: System) -> None:
    async with Load(drilled, clients=4) as load:
        await load.grows(20)
        killed = await kill_at_random(drilled, load, times=4, pause=1.0)
        report = await settled(drilled, load)
    assert sum(killed.values()) == 4
    assert report.counts["clients"] == 4


@pytest.mark.soak
@pytest.mark.timeout(2400)
async def test_kill_9_of_every_process_at_200_random_moments(drilled: System) -> None:
    async with Load(drilled, clients=10) as load:
        await load.grows(20)
        killed = await kill_at_random(drilled, load, times=200, pause=1.5)
        print(f"\nkilled: {killed}")  # noqa: T201
        await settled(drilled, load, within=300)
    assert min(killed.values()) > 0


async def test_events_published_again_beyond_the_duplicate_window_reach_nobody_twice(drilled: System) -> None:
    """What becomes of a relay's death between acknowledgement and mark, when the next one comes an hour later."""
    async with Load(drilled, clients=3) as load, operator(drilled) as broker:
        config = (await broker.js.stream_info(EVENTS)).config
        declared, config.duplicate_window = config.duplicate_window, 0.1
        await broker.js.update_stream(config)
        with superuser(drilled, "items") as database:
            with without_nats(drilled):
                await load.grows(20)
                # Two hours pass: what is in the outbox was written long ago.
                database.execute(
                    "UPDATE outbox SET payload = convert_to(regexp_replace(convert_from(payload, 'UTF8'),"
                    """ '"time":"[^"]*"', '"time":"2026-01-01T00:00:00+00:00"'), 'UTF8')"""
                    " WHERE published_at IS NULL"
                )
            late = "payload LIKE convert_to('%2026-01-01T00:00:00%', 'UTF8')"
            within_the_window = "(published_at IS NULL OR published_at > now() - interval '1 second')"
            await eventually(lambda: count(database, f"{within_the_window} AND {late}") == 0, within=60)
            again = database.execute(f"UPDATE outbox SET published_at = NULL WHERE {late}").rowcount  # noqa: S608
        await load.grows(10)
        report = await settled(drilled, load)
        config.duplicate_window = declared
        await broker.js.update_stream(config)
    assert again > 0
    assert report.counts["of those, repeated"] >= again


def count(database: psycopg.Connection[Any], condition: str) -> int:
    """Return how many rows of the outbox fulfil a condition."""
    row = database.execute(f"SELECT count(*) FROM outbox WHERE {condition}").fetchone()  # noqa: S608
    return int(row[0]) if row else 0


@contextmanager
def without_nats(system: System) -> Iterator[None]:
    """Kill NATS, and let it be started again at the end of the block."""
    pid = system.pid("nats")
    with unattended(system):
        os.kill(pid, signal.SIGKILL)
        yield


@contextmanager
def superuser(system: System, database: str) -> Iterator[psycopg.Connection[Any]]:
    """Connect to a service's database as one who may do everything."""
    dsn = postgres.dsn("postgres", secret(system, "postgres"), ports.POSTGRES + system.offset, database)
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_nats_is_away_for_three_minutes(drilled: System) -> None:
    """Longer than nats-py has patience by default."""
    async with Load(drilled, clients=3) as load:
        await load.grows(10)
        with without_nats(drilled):
            await load.grows(10)
            await asyncio.sleep(180)
            await load.grows(10)
        await recovered(drilled)
        await settled(drilled, load, within=300)


async def test_nats_loses_its_store(drilled: System) -> None:
    assert drilled.data_dir is not None
    async with Load(drilled, clients=3) as load:
        await load.grows(10)
        with without_nats(drilled):
            shutil.rmtree(drilled.data_dir / "nats")
        await recovered(drilled)
        assert load.ledger.began is not None
        # What was published and not yet received went with the store: the outbox has it.
        replayed = await stack_exec(
            drilled, "items", "events", "replay", "--since", load.ledger.began.isoformat()
        )
        assert replayed.returncode == 0, replayed.stderr
        await load.grows(10)
        report = await settled(drilled, load)
    assert report.counts["gaps told"] > 0, "a client whose cursor is of the lost stream is told"


async def stack_exec(system: System, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stack exec …` against the system."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "stack", "exec", *words],
        env={**os.environ, **system.environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
@pytest.mark.soak
async def test_the_disk_of_nats_is_full(drilled: System) -> None:
    assert drilled.data_dir is not None
    store = drilled.data_dir / "nats"
    kept = drilled.data_dir / "nats.kept"
    async with Load(drilled, clients=3, pause=0.02) as load:
        await load.grows(10)
        with moved_to_small_disk(drilled, store, kept):
            await recovered(drilled)
            filler = store / "filler"
            with filler.open("wb") as file, suppress(OSError):
                while True:
                    file.write(bytes(64 * 1024))
                    file.flush()
            await load.grows(100)
            with superuser(drilled, "items") as database:
                await eventually(lambda: count(database, "published_at IS NULL") > 50, within=60)
            filler.unlink()
            await recovered(drilled)
            await load.grows(10)
            await settled(drilled, load)


def _as_root(*words: str) -> None:
    subprocess.run(words, check=True)  # noqa: S603  # mount and umount, with what this file says


@contextmanager
def moved_to_small_disk(system: System, store: Path, kept: Path) -> Iterator[None]:
    """Let NATS have its store on a disk of 64 MiB for the length of the block."""

    def restart(change: Any) -> None:
        with without_nats(system):
            change()

    def to_small() -> None:
        store.rename(kept)
        store.mkdir()
        _as_root("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(store))
        shutil.copytree(kept, store, dirs_exist_ok=True)

    def back() -> None:
        shutil.rmtree(kept)
        shutil.copytree(store, kept)
        _as_root("umount", "-l", str(store))
        store.rmdir()
        kept.rename(store)

    try:
        restart(to_small)
        yield
    finally:
        restart(back)


async def test_poison_is_set_aside_while_its_neighbours_progress(drilled: System) -> None:
    """A message that nobody can understand: its consumer goes on, the letter is found by the operator's command."""
    async with Load(drilled, clients=2) as load, operator(drilled) as broker:
        await load.grows(5)
        await broker.js.publish("events.users.user.registered.1", b"poison")
        await load.grows(5)
        await settled(drilled, load)
        listed = await stack_exec(drilled, "notifications", "events", "dead", "list")
        assert "events.users.user.registered.1" in listed.stdout, listed.stderr
        dropped = await stack_exec(drilled, "notifications", "events", "dead", "drop", "--all")
        assert (dropped.returncode, "dropped" in dropped.stdout) == (0, True), dropped.stderr


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_a_message_that_always_fails_dies_while_its_neighbours_progress(drilled: System) -> None:
    """Its handler fails ten times over four minutes; nobody waits for it."""
    body = (
        b'{"id": "01942a60-7b85-7000-8000-00000000dead", "type": "users.user.registered.v1", "subject": "1",'
        b' "time": "2026-01-02T03:04:05Z", "sequence": 1, "data": {"id": 9223372036854775808, "version": 1}}'
    )
    async with Load(drilled, clients=2, pause=0.5) as load, operator(drilled) as broker:
        await load.grows(5)
        await broker.js.publish("events.users.user.registered.1", body)

        async def dead() -> bool:
            listed = await stack_exec(drilled, "notifications", "events", "dead", "list")
            return "delivered 10 times" in listed.stdout

        await load.grows(50)
        assert not (await verdict(drilled, load)).counts["items whose owner was told twice"]
        await eventually(dead, within=600)
        await settled(drilled, load)
        dropped = await stack_exec(drilled, "notifications", "events", "dead", "drop", "--all")
        assert dropped.returncode == 0, dropped.stderr


def workers_of(main: psutil.Process) -> list[psutil.Process]:
    """Return the replicas that a main process runs."""
    with suppress(psutil.NoSuchProcess):
        return [child for child in main.children() if "spawn_main" in " ".join(child.cmdline())]
    return []


def _is_replaced(replica: psutil.Process, main: psutil.Process) -> bool:
    workers = workers_of(main)
    return replica not in workers and len(workers) == 2


@pytest.mark.parametrize(
    ("sockets", "people"),
    [(20, 2), pytest.param(500, 20, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
async def test_sockets_through_a_rolling_restart_miss_nothing(
    drilled: System, sockets: int, people: int
) -> None:
    async with Load(drilled, clients=sockets, people=people, writers=2, pause=0.1) as load:
        await load.grows(10)
        main = psutil.Process(drilled.pid("notifications"))
        for replica in workers_of(main):
            replica.terminate()  # it drains; its main process starts another one
            await eventually(partial(_is_replaced, replica, main), within=60)
            await load.grows(10)
        report = await settled(drilled, load)
    assert all(load.ledger.reconnects[client.name] for client in load.clients), "every replica was replaced"
    assert report.counts["gaps told"] == 0
    assert report.counts["events seen by clients"] == sockets * report.counts["events in the outbox"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_backlog_of_hours_takes_no_more_memory_than_one_of_minutes(hoarding: System) -> None:
    """100 000 events wait for NATS in the outbox; then they are published, consumed and fanned out to a client."""
    backlog, allowance = 100_000, 48 * 2**20
    async with Load(hoarding, clients=3) as load:
        await load.grows(100)
        await settled(hoarding, load)
    seen = 0

    async def follow() -> None:
        nonlocal seen
        async for message in stream:
            assert isinstance(message, Event), "nothing is missing"
            seen += 1

    async with (
        LiveStream(hoarding.url, AccessToken(load.people[0].token), topics=["items"]) as stream,
        operator(hoarding) as broker,
        asyncio.TaskGroup() as tasks,
    ):
        await stream.ready()
        following = tasks.create_task(follow())
        with superuser(hoarding, "items") as database:
            with without_nats(hoarding):
                database.execute(
                    "INSERT INTO outbox (event_id, subject, aggregate, payload)"
                    " SELECT fresh, subject, fresh, convert_to(replace(convert_from(payload, 'UTF8'), event_id, fresh), 'UTF8')"
                    " FROM (SELECT * FROM outbox WHERE published_at IS NOT NULL ORDER BY id DESC LIMIT 1) AS template,"
                    " LATERAL (SELECT gen_random_uuid()::text AS fresh FROM generate_series(1, %s)) AS numbers",
                    [backlog],
                )
                assert count(database, "published_at IS NULL") == backlog
                before = memory_of(hoarding)
            peak = dict(before)

            async def arrived() -> bool:
                for name, used in memory_of(hoarding).items():
                    peak[name] = max(peak.get(name, 0), used)
                await broker.connected.wait()
                consumer = await broker.js.consumer_info(EVENTS, "notifications")
                return seen >= backlog and not consumer.num_pending and not consumer.num_ack_pending

            await eventually(arrived, within=1200)
            assert count(database, "published_at IS NULL") == 0
        following.cancel()
    print({name: f"{before.get(name, 0) >> 20} -> {used >> 20} MiB" for name, used in peak.items()})  # noqa: T201
    assert peak.keys() == before.keys(), "nobody was replaced"
    assert all(used < before[name] + allowance for name, used in peak.items())


def memory_of(system: System) -> dict[str, int]:
    """Return the resident bytes of every process of the services and the gateway."""
    used = {}
    for name in ("gateway", "items", "notifications", "users"):
        main = psutil.Process(system.pid(name))
        for process in (main, *main.children(recursive=True)):
            used[f"{name} {process.pid}"] = process.memory_info().rss
    return used
