"""A client that speaks raw bytes, for tests of what the wire may do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import orjson

from shared.wire import ChunkedBody, Headers, find_head_end, parse_response_head

PATIENCE = 10.0
"""Seconds that an answer may take; generous, because test machines are busy."""


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A response as it came."""

    status: int
    headers: Headers
    body: bytes

    def field(self, name: str) -> str | None:
        """Return the value of a field; several are joined."""
        found = [value.decode("latin-1") for key, value in self.headers if key == name.lower().encode()]
        return ", ".join(found) if found else None

    def json(self) -> Any:
        """Return the body, parsed."""
        return orjson.loads(self.body)


class RawConnection:
    """One connection, fed with bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    async def send(self, *pieces: bytes) -> None:
        """Send each piece as a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.005 if len(pieces) > 1 else 0)

    async def response(self, *, to_head: bool = False) -> RawResponse:
        """Read one final response (`to_head`: to a HEAD request).

        Raises:
            EOFError: the connection ended before the response was complete.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                while not (end := find_head_end(self.received)):
                    await self._more()
                head = parse_response_head(self.received, end)
                self.received = self.received[end:]
                if head.status >= 200 or head.status == 101:
                    break
            if to_head or head.status in (101, 204, 304):
                body = b""
            elif head.chunked:
                body = await self._chunked()
            elif head.content_length is not None:
                missing = max(head.content_length - len(self.received), 0)
                self.received += await self.reader.readexactly(missing)
                body, self.received = (
                    self.received[: head.content_length],
                    self.received[head.content_length :],
                )
            else:
                body, self.received = self.received + await self.reader.read(), b""
            return RawResponse(head.status, head.headers, body)

    async def until(self, ending: bytes) -> bytes:
        """Read raw bytes up to and including `ending`."""
        async with asyncio.timeout(PATIENCE):
            while ending not in self.received:
                await self._more()
        found, _, self.received = self.received.partition(ending)
        return found + ending

    async def rest(self) -> bytes:
        """Read until the other side closes (or resets), and return what came."""
        async with asyncio.timeout(PATIENCE):
            try:
                received = self.received + await self.reader.read()
            except ConnectionError:
                received = self.received
        self.received = b""
        return received

    async def _chunked(self) -> bytes:
        chunks = ChunkedBody()
        body = chunks.feed(self.received)
        while not chunks.complete:
            self.received = b""
            await self._more()
            body += chunks.feed(self.received)
        self.received = chunks.rest
        return body

    async def _more(self) -> None:
        data = await self.reader.read(65536)
        if not data:
            raise EOFError(f"the connection ended after {self.received!r}")
        self.received += data


@asynccontextmanager
async def raw_connection(url: str) -> AsyncIterator[RawConnection]:
    """Connect to the server at `url`."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
