"""What a client can do to the WebSocket protocol without saying anything: tiny frames, without end."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from notifications import protocol
from notifications.protocol import SLICE, SocketProtocol
from shared.tasks import running
from shared.testing import serving

from .live_client import closed, receive, ws

pytestmark = pytest.mark.integration

EMPTY_PING = b"\x89\x80\0\0\0\0"
LONG_PING = b"\x89\xfd\0\0\0\0" + bytes(125)
MUCH = 64 * 1024 * 1024


@contextlib.asynccontextmanager
async def raw_socket(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open the echo, which asks for no token, for frames that no library sends."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    try:
        writer.write(
            b"GET /v1/ws/echo HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask_without_end(writer: asyncio.StreamWriter) -> None:
    """Send pings until it is enough, or the other side does not want any more."""
    for _ in range(MUCH // (1000 * len(LONG_PING))):
        writer.write(LONG_PING * 1000)
        async with asyncio.timeout(20):
            await writer.drain()


async def test_a_flood_of_tiny_frames_is_parsed_in_turns_and_all_answered(app: FastAPI) -> None:
    turn = 0
    pings: list[int] = []

    class Recorded(SocketProtocol):
        def handle_ping(self) -> None:
            pings.append(turn)
            super().handle_ping()

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    sent = 60_000 // len(EMPTY_PING)
    async with serving(app, ws=Recorded) as url, raw_socket(url) as (reader, writer), running(others()):
        writer.write(EMPTY_PING * sent)
        async with asyncio.timeout(20):
            assert await reader.readexactly(2 * sent) == b"\x8a\0" * sent
    assert max(pings.count(one) for one in set(pings)) <= SLICE // len(EMPTY_PING) + 1


async def test_messages_longer_than_a_turn_arrive_whole_and_in_order(url: str) -> None:
    texts = [os.urandom(SLICE).hex() + str(number) for number in range(10)]
    async with connect(ws(url, "/v1/ws/echo"), proxy=None) as socket:
        for text in texts:
            await socket.send(text)
        assert [(await receive(socket))["echo"] for _ in texts] == texts


async def test_who_asks_for_pongs_and_reads_none_is_let_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT", 0.1)
    async with raw_socket(url) as (_, writer):
        with pytest.raises(ConnectionError):
            await ask_without_end(writer)


async def test_a_message_of_empty_fragments_without_end_closes_with_1009(url: str) -> None:
    async with connect(ws(url, "/v1/ws/echo"), proxy=None) as socket:
        with contextlib.suppress(ConnectionClosed):
            await socket.send([""] * (protocol.MAX_FRAGMENTS + 10))
        assert await closed(socket) == 1009
