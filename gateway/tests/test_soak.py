"""Long drills: nothing is left behind by clients that leave, and memory does not grow with what passes through."""

import asyncio
import gc
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gateway.proxy import Exchange
from gateway.testing import OK, GatewayFactory, Peer, ScriptedUpstream
from gateway.tunnel import Tunnel
from gateway.upstream import UpstreamConnection
from shared.testing import TokenIssuer, eventually, free_port
from shared.testing_wire import raw_connection

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
        await eventually(answers)
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
