"""Helpers for tests of the gateway: a service that speaks raw bytes, and a gateway before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from gateway.app import create_app
from gateway.edge import GatewayProtocol
from gateway.settings import GatewaySettings
from gateway.upstream import Upstream
from shared.edge import EdgeLimits
from shared.testing import TokenIssuer, serving
from shared.testing_wire import RawConnection, raw_connection
from shared.wire import ChunkedBody, RequestHead, find_head_end, parse_request_head


@dataclass
class Received:
    """A request as the service got it."""

    head: RequestHead
    body: bytes

    def field(self, name: str) -> str | None:
        """Return a field's value; several are joined."""
        found = [value.decode("latin-1") for key, value in self.head.headers if key == name.lower().encode()]
        return ", ".join(found) if found else None


class Peer:
    """The service's side of one connection."""

    def __init__(
        self, upstream: "ScriptedUpstream", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.upstream = upstream
        self.reader = reader
        self.writer = writer
        self.rest = b""

    async def is_control(self) -> bool:
        """Whether the next request is one by which the gateway looks at a service."""
        while not (end := find_head_end(self.rest)):
            await self.more()
        return parse_request_head(self.rest, end).target in (b"/health", b"/openapi.json", b"/errors")

    async def head(self) -> RequestHead:
        """Read the next request's head.

        Raises:
            EOFError: there is none.
        """
        while not (end := find_head_end(self.rest)):
            await self.more()
        head = parse_request_head(self.rest, end)
        self.rest = self.rest[end:]
        return head

    async def request(self) -> Received:
        """Read the next request whole."""
        head = await self.head()
        if head.chunked:
            chunks = ChunkedBody()
            body = chunks.feed(self.rest)
            while not chunks.complete:
                self.rest = b""
                await self.more()
                body += chunks.feed(self.rest)
            self.rest = chunks.rest
        else:
            length = head.content_length or 0
            while len(self.rest) < length:
                await self.more()
            body, self.rest = self.rest[:length], self.rest[length:]
        received = Received(head, body)
        self.upstream.requests.append(received)
        return received

    async def send(self, *pieces: bytes) -> None:
        """Send each piece as a segment of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.01 if len(pieces) > 1 else 0)

    async def more(self) -> bytes:
        """Read what comes."""
        data = await self.reader.read(65536)
        if not data:
            raise EOFError
        self.rest += data
        return data


Script = Callable[[Peer], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def answer_ok(peer: Peer) -> None:
    """Answer every request of a connection with 200."""
    while True:
        await peer.request()
        await peer.send(OK)


async def answer_control(peer: Peer) -> None:
    """Be alive, and have no documents."""
    while True:
        await peer.head()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@dataclass
class ScriptedUpstream:
    """A service that speaks raw bytes: `script` is run for every connection."""

    script: Script = answer_ok
    control: Script = answer_control
    """Serves connections by which the gateway looks at the service."""
    url: str = ""
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedUpstream"]:
        """Listen while the block runs."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Close the listener and every connection."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]  # this is a task
        try:
            with suppress(EOFError, ConnectionError, asyncio.CancelledError):
                await self._serve(Peer(self, reader, writer))
        finally:
            writer.close()

    async def _serve(self, peer: Peer) -> None:
        if await peer.is_control():  # the gateway's directory has connections of its own
            await self.control(peer)
            return
        self.connections += 1
        self.open += 1
        try:
            await self.script(peer)
        finally:
            self.open -= 1


class ImpatientProtocol(GatewayProtocol):
    """The gateway with deadlines that a test can wait for."""

    limits = EdgeLimits(head=0.3, body_stall=0.3, write_stall=0.3)


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    app: FastAPI
    issuer: TokenIssuer
    upstream: ScriptedUpstream

    def connect(self) -> AbstractAsyncContextManager[RawConnection]:
        """Open a raw connection."""
        return raw_connection(self.url)

    @property
    def pool(self) -> Upstream:
        """The pool of the scripted service."""
        pool: Upstream = self.app.state.proxy.upstreams["scripted"]
        return pool


OPTIONS: dict[str, float] = {
    "max_connections": 4,
    "max_queue": 2,
    "queue_timeout": 0.3,
    "connect_timeout": 1.0,
    "first_byte_timeout": 0.5,
    "idle_timeout": 0.5,
}
ROUTES = """
[limits]
default = {{ quota = 10000, window = 1 }}
tight = {{ quota = 3, window = 60 }}
tight-address = {{ quota = 3, window = 60, per_address = true }}
shadow = {{ quota = 3, window = 60, shadow = true }}

[upstreams.scripted]
url = "{url}"
{options}

[[routes]]
prefix = "/open"
upstream = "scripted"
auth = "optional"
body_limit = 1000
timeout = 3.0

[[routes]]
prefix = "/big"
upstream = "scripted"
auth = "none"
body_limit = 100000000

[[routes]]
prefix = "/brief"
upstream = "scripted"
auth = "none"
body_limit = 100000000
timeout = 0.5

[[routes]]
prefix = "/closed"
upstream = "scripted"
auth = "required"

[[routes.rules]]
paths = ["/admin", "/admin/*"]
scopes = ["things:admin"]

[[routes]]
prefix = "/limited"
upstream = "scripted"
auth = "optional"
limit = "tight"

[[routes.rules]]
paths = ["/address"]
limit = "tight-address"
auth = "optional"

[[routes.rules]]
paths = ["/shadow"]
limit = "shadow"
auth = "optional"

[[routes]]
prefix = "/ws/limited"
upstream = "scripted"
auth = "optional"
websocket = true
anonymous_limit = "tight-address"

[[routes]]
prefix = "/stream"
upstream = "scripted"
auth = "none"
streaming = true

[[routes]]
prefix = "/ws"
upstream = "scripted"
auth = "optional"
websocket = true

[[routes]]
prefix = "/ws/closed"
upstream = "scripted"
auth = "required"
websocket = true
"""


class GatewayFactory:
    """Starts gateways for a test."""

    def __init__(self, folder: Path, stack: AsyncExitStack, issuer: TokenIssuer) -> None:
        self._folder = folder
        self._stack = stack
        self._issuer = issuer

    async def __call__(
        self,
        script: Script = answer_ok,
        *,
        control: Script = answer_control,
        protocol: type[GatewayProtocol] = GatewayProtocol,
        options: dict[str, float] | None = None,
        routes_url: str = "",
        stack: AsyncExitStack | None = None,
        **settings: Any,
    ) -> Gateway:
        stack = stack or self._stack
        upstream = await stack.enter_async_context(ScriptedUpstream(script, control).serving())
        routes = self._folder / "routes.toml"
        routes.write_text(
            ROUTES.format(
                url=routes_url or upstream.url,
                options="\n".join(
                    f"{name} = {value}" for name, value in {**OPTIONS, **(options or {})}.items()
                ),
            )
        )
        app = create_app(
            GatewaySettings(
                routes=routes,
                jwks_url=self._issuer.jwks_url,
                token_issuer=self._issuer.issuer,
                token_audience=self._issuer.audience,
                log_level="warning",
                **settings,
            )
        )
        url = await stack.enter_async_context(serving(app, http=protocol, ws="none"))
        await app.state.verifier.refresh()
        return Gateway(url, app, self._issuer, upstream)
