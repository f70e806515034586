"""WebSockets for the tunnel's row: a service that echoes, and clients that each wait for their echo before they send again.

`python -m bench.sockets serve PORT`; `python -m bench.sockets load PORT CONNECTIONS SECONDS`, with a token on each line of standard
input, writes JSON. Frames are masked, as clients must, by a key of zeros, which leaves a payload as it is: what is measured is the
proxy between the two, so these two do as little as they can.
"""

import asyncio
import base64
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import cast

import uvloop

PATH = "/v1/ws"
PAYLOAD = b"x" * 120
FROM_CLIENT = bytes([0x81, 0x80 | len(PAYLOAD), 0, 0, 0, 0]) + PAYLOAD
FROM_SERVER = bytes([0x81, len(PAYLOAD)]) + PAYLOAD
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_HEAD_END = b"\r\n\r\n"
_DOCUMENT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PATIENCE = 20.0
"""Seconds that opening all sockets may take."""


class Echo(asyncio.Protocol):
    """The service: answers FROM_SERVER to each FROM_CLIENT, and an empty document to plain requests."""

    def __init__(self) -> None:
        self._received = b""
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to answer."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self._received += data
        while not self._open and _HEAD_END in self._received:
            head, _, self._received = self._received.partition(_HEAD_END)
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._open = b"sec-websocket-key" in fields
            self._transport.write(_handshake(head) if self._open else _DOCUMENT)
        count, rest = divmod(len(self._received), len(FROM_CLIENT))
        if self._open and count:
            if self._received[: len(FROM_CLIENT)] != FROM_CLIENT:
                self._transport.abort()  # the proxy has changed a frame
                return
            self._received = self._received[-rest:] if rest else b""
            self._transport.write(FROM_SERVER * count)


def _handshake(head: bytes) -> bytes:
    key = next(
        line.split(b": ", 1)[1]
        for line in head.split(b"\r\n")
        if line.lower().startswith(b"sec-websocket-key")
    )
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455 says so
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
        % accept
    )


class Client(asyncio.Protocol):
    """One socket; counts echoes once it is `open`."""

    def __init__(self, port: int, token: str) -> None:
        self.open = asyncio.get_running_loop().create_future()
        self.echoes = 0
        self._missing = len(FROM_SERVER)
        self._head = b""
        self._request = (
            f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for a WebSocket."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class, which is no subclass
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Send again when the echo is complete."""
        if self.open.done():
            self._missing -= len(data)
            if self._missing <= 0:
                self._missing = len(FROM_SERVER)
                self.echoes += 1
                self._transport.write(FROM_CLIENT)
            return
        self._head += data
        if _HEAD_END in self._head:
            if self._head.startswith(b"HTTP/1.1 101 "):
                self.open.set_result(None)
            else:
                self.open.set_exception(RuntimeError(self._head.decode("latin-1")))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail where nobody expects it."""
        if not self.open.done():
            self.open.set_exception(exc or ConnectionResetError("closed before it was a WebSocket"))

    def begin(self) -> None:
        """Send the first frame."""
        self._transport.write(FROM_CLIENT)

    @property
    def closed(self) -> bool:
        """Whether it broke."""
        return self._transport.is_closing()


async def serve(port: int) -> None:
    """Echo for ever."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


async def load(port: int, connections: int, seconds: float, tokens: Sequence[str]) -> dict[str, float]:
    """Let all sockets send for `seconds`; returns the number of messages both ways."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        clients = [Client(port, tokens[number % len(tokens)]) for number in range(connections)]
        for client in clients:
            await loop.create_connection(partial(_itself, client), "127.0.0.1", port)
        await asyncio.gather(*(client.open for client in clients))
    began = time.perf_counter()
    for client in clients:
        client.begin()
    await asyncio.sleep(seconds)
    messages = 2 * sum(client.echoes for client in clients)
    if any(client.closed or not client.echoes for client in clients):
        sys.exit(f"sockets through port {port} broke or were starved")
    return {"messages": messages, "seconds": time.perf_counter() - began}


def _itself(client: Client) -> Client:
    return client


def main() -> None:
    """Run a command line."""
    if sys.argv[1] == "serve":
        uvloop.run(serve(int(sys.argv[2])))
    else:
        tokens = [line.strip() for line in sys.stdin]
        print(json.dumps(uvloop.run(load(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), tokens))))


if __name__ == "__main__":
    main()
