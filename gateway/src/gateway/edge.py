"""A client's connection at the gateway: the strict wire, and from there straight to the data path.

A request for a service never becomes an ASGI object (docs/adr/0002); what the gateway itself owns goes to FastAPI.
"""

import asyncio
from typing import Any

import orjson
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.errors import PathAmbiguous, UpstreamUnavailable
from gateway.exchange import Exchange
from gateway.headers import REQUEST
from gateway.paths import canonical
from gateway.proxies import plain_address
from gateway.proxy import Proxy
from gateway.tunnel import Tunnel
from shared.addresses import address_key
from shared.edge import EdgeProtocol
from shared.edge_asgi import reset
from shared.errors import Problem
from shared.wire import RequestHead


class GatewayProtocol(EdgeProtocol):
    """One client connection. The application keeps the data path in `app.state.proxy`."""

    sorter = REQUEST

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.proxy: Proxy = config.loaded_app.state.proxy
        self.exchange: Exchange | None = None
        self.address = self._peer = ""
        self.address_json = b'""'
        self.forwarded = b""
        self._behind_proxy = False
        self.response_headers = self.proxy.own_headers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.proxy.meters.clients += 1
        self._peer = plain_address(self.client[0]) if self.client else ""
        self._behind_proxy = self.proxy.trusted_proxies.trusts(self._peer)
        self._name_client(self._peer, self.scheme or "http")

    def _name_client(self, address: str, scheme: str) -> None:
        self.address = address_key(address)
        self.address_json = orjson.dumps(self.address)
        self.forwarded = f"x-forwarded-for: {address}\r\nx-forwarded-proto: {scheme}\r\n".encode()

    def _ask_proxy(self, head: RequestHead) -> None:
        proxies = self.proxy.trusted_proxies
        self._name_client(*proxies.origin_of(head.noted, self._peer, self.scheme or "http"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.proxy.meters.clients -= 1
        if self.exchange is not None:
            self.exchange.abandon()
            self.exchange = None
        super().connection_lost(exc)

    def begin(self, head: RequestHead) -> None:
        """Serve a request: a service's by an exchange, our own by FastAPI."""
        try:
            path, query = canonical(head.target)
        except PathAmbiguous as problem:
            self.refuse(problem)
            return
        route = self.proxy.routes.find(path)
        if route is None:
            head.target = path + query
            self.response_headers = self.proxy.headers_for(head)
            super().begin(head)
        else:
            if self._behind_proxy:
                self._ask_proxy(head)
            if self.draining and route.streaming:
                self.refuse(UpstreamUnavailable("The gateway restarts."))  # it would hold the drain up
                return
            self.exchange = exchange = Exchange(self.proxy, self, route, path, query)
            exchange.start()

    def body(self, block: bytes, last: bool) -> None:
        """Pass a piece of the body on."""
        if self.exchange is not None:
            self.exchange.body(block, last)
        elif self._serving:
            super().body(block, last)

    def upgrade(self, head: RequestHead, data: bytes, end: int) -> bytes:
        """Open a tunnel where the route is a WebSocket; anywhere else an upgrade is ignored (RFC 9110 section 7.8)."""
        try:
            path, query = canonical(head.target)
        except PathAmbiguous as problem:
            self.refuse(problem)
            return b""
        route = self.proxy.routes.find(path)
        if head.upgrade != b"websocket" or route is None or not route.websocket:
            self.begin(head)
            return data[end:]
        if self._behind_proxy:
            self._ask_proxy(head)
        if self.draining:
            self.refuse(UpstreamUnavailable("The gateway restarts."))
            return b""
        self.sweep.discard(self)
        self.connections.discard(self)
        tunnel = Tunnel(self.proxy, self, route, path, query)
        tunnel.start(data[end:])
        return b""

    def response_written(self, *, keep_alive: bool) -> None:
        """The exchange is over."""
        self.exchange = None
        super().response_written(keep_alive=keep_alive)

    def refuse(self, problem: Problem) -> None:
        """Answer `problem`, if nothing was answered yet, and give the connection up."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None and exchange.abandon():
            reset(self.transport)  # a response cut short must not look complete
            return
        self.proxy.meters.problem(problem)
        super().refuse(problem)

    def shutdown(self) -> None:
        """Drain."""
        super().shutdown()
        if self.exchange is not None:
            self.exchange.drain()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.exchange is not None:
            self.exchange.client_full()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.exchange is not None:
            self.exchange.client_ready()
