"""Services with several addresses: each gets its share, a dead one is avoided, a new one is found."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gateway import addresses
from gateway.addresses import AVOID_SECONDS, RESOLVE_SECONDS, Addresses, resolve
from gateway.errors import UpstreamUnavailable
from gateway.routes import UpstreamSettings
from gateway.upstream import Upstream
from shared.testing import free_port
from shared.wire import ResponseHead


class Names:
    """A name service whose answers a test decides."""

    def __init__(self, *found: str) -> None:
        self.found = list(found)
        self.asked = 0

    async def __call__(self, _host: str, _port: int) -> list[str]:
        self.asked += 1
        if not self.found:
            raise OSError("no such name")
        return self.found


async def test_addresses_take_turns_and_are_asked_for_again() -> None:
    names = Names("10.0.0.1", "10.0.0.2", "10.0.0.1")
    found = Addresses("service", 80, resolve=names)
    assert Counter([await found.take(0.0) for _ in range(10)]) == {"10.0.0.1": 5, "10.0.0.2": 5}
    assert names.asked == 1
    names.found = ["10.0.0.2", "10.0.0.3"]
    assert {await found.take(RESOLVE_SECONDS) for _ in range(4)} == {"10.0.0.2", "10.0.0.3"}
    assert not found.has("10.0.0.1")


async def test_unreachable_address_is_avoided_for_a_while_but_never_all() -> None:
    found = Addresses("service", 80, resolve=Names("10.0.0.1", "10.0.0.2"))
    await found.take(0.0)
    found.avoid("10.0.0.1", 0.0)
    assert {await found.take(1.0) for _ in range(4)} == {"10.0.0.2"}
    found.avoid("10.0.0.2", 0.0)
    assert await found.take(1.0) in ("10.0.0.1", "10.0.0.2")
    assert {await found.take(AVOID_SECONDS) for _ in range(4)} == {"10.0.0.1", "10.0.0.2"}


async def test_last_good_answer_outlives_the_name_service() -> None:
    names = Names("10.0.0.1")
    found = Addresses("service", 80, resolve=names)
    await found.take(0.0)
    names.found = []
    assert await found.take(1000.0) == "10.0.0.1"
    with pytest.raises(OSError, match="no such name"):
        await Addresses("service", 80, resolve=names).take(0.0)


async def test_literal_address_is_never_asked_for() -> None:
    names = Names()
    assert await Addresses("127.0.0.1", 80, resolve=names).take(0.0) == "127.0.0.1"
    assert names.asked == 0
    assert "127.0.0.1" in await resolve("localhost", 80)


class Waiting:
    """An exchange that wants a connection and nothing else."""

    def __init__(self) -> None:
        self.result: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def connected(self, connection: object) -> None:
        self.result.set_result(connection)

    def failed(self, problem: Exception, *, unseen: bool) -> None:
        assert not unseen
        self.result.set_exception(problem)

    def response_head(self, head: ResponseHead) -> None:  # noqa: ARG002
        raise AssertionError

    def response_body(self, block: bytes) -> None:  # noqa: ARG002
        raise AssertionError

    def response_complete(self) -> None:
        raise AssertionError

    flush = pause_body = resume_body = response_complete


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[int, Counter[str], AsyncExitStack]]:
    """Two replicas that listen on one port of two loopback addresses, and how many connections each has seen."""
    seen: Counter[str] = Counter()
    port = free_port()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen[writer.get_extra_info("sockname")[0]] += 1
        await reader.read()
        writer.close()

    async with AsyncExitStack() as stack:
        for address in ("127.0.0.1", "127.0.0.2"):
            stack.push_async_callback(_stopped, await asyncio.start_server(connected, address, port))
        yield port, seen, stack


async def _stopped(server: asyncio.Server) -> None:
    server.close()


async def connect(upstream: Upstream) -> object:
    waiting = Waiting()
    upstream.acquire(waiting)
    return await waiting.result


async def test_connections_are_shared_out_and_a_dead_replica_costs_no_request(
    replicas: tuple[int, Counter[str], AsyncExitStack], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, seen, _ = replicas
    monkeypatch.setattr(addresses, "RESOLVE_SECONDS", 0.0)
    names = Names("127.0.0.1", "127.0.0.2")
    settings = UpstreamSettings(url=f"http://service:{port}")
    upstream = Upstream("service", settings, asyncio.get_running_loop(), resolve=names)
    for _ in range(6):
        await connect(upstream)
    assert seen == {"127.0.0.1": 3, "127.0.0.2": 3}
    names.found = ["127.0.0.1", "127.0.0.3"]  # nobody listens there
    for _ in range(6):
        await connect(upstream)
    assert seen == {"127.0.0.1": 9, "127.0.0.2": 3}
    names.found = ["127.0.0.3"]
    with pytest.raises(UpstreamUnavailable):
        await connect(upstream)
    await upstream.aclose()
