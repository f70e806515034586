"""Long drills: nothing is left behind by clients that leave, and memory does not grow with what passes through."""

import asyncio
import gc
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from gateway.connection import UpstreamConnection
from gateway.exchange import Exchange
from gateway.testing import OK, GatewayFactory, Peer, ScriptedUpstream
from gateway.tunnel import Tunnel
from shared.testing import TokenIssuer, eventually, free_port
from shared.testing_wire import RawConnection, raw_connection

MIB = 1024 * 1024
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def hesitates(peer: Peer) -> None:
    """A service that sends half a response, or nothing, and waits."""
    while True:
        received = await peer.request()
        if received.head.target.endswith(b"half"):
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await peer.more()


@pytest.mark.parametrize(
    "cancels", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    start: GatewayFactory, cancels: int
) -> None:
    options = {
        "first_byte_timeout": 60.0,
        "idle_timeout": 60.0,
        "max_connections": 50,
        "max_queue": 50,
        "pool_idle": 0.1,
    }
    gateway = await start(hesitates, options=options)
    rng = random.Random(1)  # noqa: S311
    requests = [
        b"GET /open/wait HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /open/half HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /open/wait HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        b"POST /open/half HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        HANDSHAKE,
    ]

    async def leave() -> None:
        async with raw_connection(gateway.url) as raw:
            data = rng.choice(requests)
            await raw.send(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data)
            await asyncio.sleep(rng.random() * 0.02)

    for _ in range(cancels // 50):
        await asyncio.gather(*(leave() for _ in range(50)))
    pool = gateway.pool
    await eventually(lambda: pool.connections == 0 and pool.waiting == 0 and pool.tunnels == 0)
    await eventually(lambda: gateway.upstream.open == 0)

    def left() -> list[object]:
        gc.collect()
        return [
            thing for thing in gc.get_objects() if isinstance(thing, (Exchange, Tunnel, UpstreamConnection))
        ]

    await eventually(lambda: left() == [])


@asynccontextmanager
async def process(
    upstream: ScriptedUpstream, issuer: TokenIssuer, folder: Path
) -> AsyncIterator[tuple[str, psutil.Process]]:
    """A gateway in a process of its own, whose memory can be watched."""
    table = folder / "routes.toml"
    table.write_text(
        "[limits]\ndefault = { quota = 1000000, window = 1 }\n"
        f'[upstreams.a]\nurl = "{upstream.url}"\n[[routes]]\nprefix = "/big"\nupstream = "a"\nauth = "none"\n'
        "body_limit = 10000000000\n"
    )
    port = free_port()
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        env={
            **os.environ,
            "GATEWAY_ROUTES": str(table),
            "GATEWAY_PORT": str(port),
            "JWKS_URL": issuer.jwks_url,
            "LOG_LEVEL": "warning",
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        async with raw_connection(url) as raw:
            await raw.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            return (await raw.response()).status == 200

    try:
        await eventually(answers, within=60)
        yield url, psutil.Process(running.pid)
    finally:
        running.terminate()
        await running.wait()


async def mirror(peer: Peer) -> None:
    """Take a body of any length and send as much back."""
    while True:
        head = await peer.head()
        length = head.content_length or 0
        received = len(peer.rest)
        while received < length:
            peer.rest = b""
            received += len(await peer.more())
        peer.rest = b""
        if not length:
            await peer.send(OK)
            continue
        peer.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        for _ in range(0, length, MIB):
            peer.writer.write(b"x" * MIB)
            await peer.writer.drain()


async def exchange(url: str, size: int) -> None:
    async with raw_connection(url) as raw:
        raw.writer.write(b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(0, size, MIB):
            raw.writer.write(b"x" * MIB)
            await raw.writer.drain()
        await raw.until(b"\r\n\r\n")
        left = size - len(raw.received)
        while left > 0:
            left -= len(await raw.reader.read(MIB))


@pytest.mark.parametrize("bodies", [4, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
async def test_memory_does_not_grow_with_bodies(issuer: TokenIssuer, tmp_path: Path, bodies: int) -> None:
    async with (
        ScriptedUpstream(mirror).serving() as upstream,
        process(upstream, issuer, tmp_path) as (url, gateway),
    ):
        await exchange(url, 8 * MIB)  # what is allocated once
        before = gateway.memory_info().rss
        for _ in range(bodies):
            await exchange(url, 64 * MIB)
        assert gateway.memory_info().rss - before < 8 * MIB


# Slow clients

SLOW_CLIENTS = 500
_SLOW_HEAD = b"GET /big HTTP/1.1\r\nHost: a\r\nX-Drip: "
_SLOW_BODY = b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
_DRIPS = (_SLOW_BODY, _SLOW_HEAD)


@asynccontextmanager
async def slow_clients(url: str, count: int) -> AsyncIterator[None]:
    """Hold connections on which a byte comes now and then."""

    async def drip(beginning: bytes) -> None:
        while True:
            with suppress(EOFError, ConnectionError):
                async with raw_connection(url) as raw:
                    await raw.send(beginning)
                    held.add(raw)
                    try:
                        while not raw.reader.at_eof():
                            await raw.send(b"x")
                            await asyncio.sleep(1.0)
                    finally:
                        held.discard(raw)

    held: set[RawConnection] = set()
    tasks = [asyncio.create_task(drip(_DRIPS[number % len(_DRIPS)])) for number in range(count)]
    try:
        await eventually(lambda: len(held) >= count * 9 // 10)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def latencies(url: str, requests: int) -> list[float]:
    """Ask in turn on one connection, and return how long each took, in milliseconds, sorted."""
    taken = []
    async with raw_connection(url) as raw:
        for _ in range(requests):
            begun = time.perf_counter()
            await raw.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await raw.response()).status == 200
            taken.append((time.perf_counter() - begun) * 1000)
    return sorted(taken)


@pytest.mark.parametrize("requests", [100, pytest.param(5000, marks=pytest.mark.soak)])
async def test_g7_500_slow_connections_do_not_keep_the_others_waiting(
    issuer: TokenIssuer, tmp_path: Path, requests: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asserted is that all are answered; the p99 with and without them is printed by the soak."""
    async with (
        ScriptedUpstream(mirror).serving() as upstream,
        process(upstream, issuer, tmp_path) as (url, _),
    ):
        alone = await latencies(url, requests)
        async with slow_clients(url, SLOW_CLIENTS):
            beside = await latencies(url, requests)
        assert len(beside) == requests
    p99 = requests * 99 // 100
    with capsys.disabled():
        print(f"p99 alone {alone[p99]:.2f} ms, beside {SLOW_CLIENTS} slow clients {beside[p99]:.2f} ms")  # noqa: T201


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_memory_is_flat_under_slow_clients_cancels_and_big_bodies(
    issuer: TokenIssuer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For SOAK_SECONDS (600): the gateway's memory after the first fifth is its memory in the end."""
    duration = float(os.environ.get("SOAK_SECONDS", "600"))
    begun = time.monotonic()
    rng = random.Random(1)  # noqa: S311

    async def cancel(url: str) -> None:
        async with raw_connection(url) as raw:
            await raw.send(b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
            await asyncio.sleep(rng.random() * 0.05)

    async with (
        ScriptedUpstream(mirror).serving() as upstream,
        process(upstream, issuer, tmp_path) as (url, gateway),
        slow_clients(url, 100),
    ):
        settled: list[int] = []
        late: list[int] = []
        while (passed := time.monotonic() - begun) < duration:
            await asyncio.gather(
                exchange(url, 8 * MIB), latencies(url, 20), *(cancel(url) for _ in range(20))
            )
            share = passed / duration
            if share > 0.8:
                late.append(gateway.memory_info().rss)
            elif share > 0.2:
                settled.append(gateway.memory_info().rss)
        growth = (statistics.median(late) - statistics.median(settled[: len(late)])) / MIB
        with capsys.disabled():
            print(f"{len(settled) + len(late)} rounds, grown by {growth:.1f} MiB")  # noqa: T201
        assert growth < 8
