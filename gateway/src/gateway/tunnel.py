"""WebSockets: an authenticated handshake, then bytes spliced both ways.

Frames are not taken apart; only the heads of the service's frames are followed (frames.py).
"""

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.access import bearer_of, check_scopes, split_protocols
from gateway.errors import (
    OriginForbidden,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.frames import RESTART, FrameFollower
from gateway.headers import RESPONSE, sane_request_id
from gateway.proxy import Proxy
from gateway.routes import Route
from gateway.tracing import end_span
from shared.deadlines import NEVER, Sweep
from shared.errors import PROBLEM_JSON, InternalError, InvalidToken, NotAuthenticated, Problem
from shared.ids import new_id
from shared.logs import get_logger
from shared.wire import ResponseHead, WireError, find_head_end, parse_response_head

if TYPE_CHECKING:
    from gateway.edge import GatewayProtocol

log = get_logger(__name__)

IDLE_SECONDS: Final = 120.0
"""A tunnel on which nothing moves for so long is closed; services ping more often."""
CLOSE_SECONDS: Final = 5.0
"""How long a client may take to answer a close frame."""
EARLY_LIMIT: Final = 64 * 1024
"""Bytes of frames kept until the handshake is done; then the client must wait."""
REFUSAL_LIMIT: Final = 64 * 1024
"""Bytes of a service's answer other than 101 that are passed on."""


class _End(asyncio.Protocol):
    """One side of a tunnel."""

    def __init__(self, tunnel: "Tunnel") -> None:
        self.tunnel = tunnel
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream's transport is a Transport

    def pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()


class ClientEnd(_End):
    """The client's side. The server drains it by `shutdown`, as it does its own protocols."""

    def data_received(self, data: bytes) -> None:
        self.tunnel.from_client(data)

    def eof_received(self) -> bool:
        return self.tunnel.half_closed(self.tunnel.service)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.tunnel.client_lost()

    def pause_writing(self) -> None:
        if self.tunnel.service is not None:
            self.tunnel.service.pause_reading()

    def resume_writing(self) -> None:
        if self.tunnel.service is not None:
            self.tunnel.service.resume_reading()

    def shutdown(self) -> None:
        self.tunnel.drain()


class ServiceEnd(_End):
    """The service's side."""

    def data_received(self, data: bytes) -> None:
        self.tunnel.from_service(data)

    def eof_received(self) -> bool:
        return False  # closes; connection_lost tells the client properly

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.tunnel.service_lost()

    def pause_writing(self) -> None:
        self.tunnel.client.pause_reading()

    def resume_writing(self) -> None:
        self.tunnel.client.resume_reading()


class Tunnel:
    """One WebSocket between a client and a service."""

    def __init__(
        self, proxy: Proxy, edge: "GatewayProtocol", route: Route, path: bytes, query: bytes
    ) -> None:
        self.proxy = proxy
        self.route = route
        self.client = ClientEnd(self)
        self.service: ServiceEnd | None = None
        self.deadline = NEVER
        self._loop = edge.loop
        self._sweep: Sweep = edge.sweep
        self._connections = edge.connections
        self._head = edge.head
        self._forwarded = edge.forwarded
        self._address = edge.address
        self._transport = edge.transport
        self._started = edge.started
        self._path = path
        self._target = path + query
        self.upstream = proxy.upstreams[route.upstream]
        noted = edge.head.noted
        self._trace_id, self._trace_lines, self._span = proxy.traces.begin(noted, b"GET", route.prefix)
        given = noted.get(b"x-request-id")
        self._request_id = given if given is not None and sane_request_id(given) else new_id().encode()
        self._user_id: int | None = None
        self._early = b""
        self._answer = b""
        self._answered: asyncio.Future[tuple[ResponseHead, bytes]] = edge.loop.create_future()
        self._opening: asyncio.Task[None] | None = None
        self._open = False
        self._status = 0
        self._draining = False
        self._closing = False
        self._frames = FrameFollower()

    # Opening

    def start(self, early: bytes) -> None:
        """Take the connection over; `early` came behind the handshake."""
        self._early = early
        self.client.connection_made(self._transport)
        self._transport.set_protocol(self.client)
        self._connections.add(self.client)  # type: ignore[arg-type]  # typed as uvicorn's own protocols
        self._sweep.add(self)
        self.upstream.tunnels += 1
        self._opening = self.proxy.spawn(self._connect())

    async def _connect(self) -> None:
        try:
            handshake = await self._handshake()
            self.service = service = await self._service_end()
            service.transport.write(handshake)
            head, rest = await self._response()
        except Problem as problem:
            self._refuse(problem)
            return
        except Exception:
            log.exception("tunnel.failed")
            self._refuse(InternalError())  # the client must not wait for ever
            return
        finally:
            self._opening = None
        if head.status == 101:
            self._splice(head, rest)
        else:
            self._pass_refusal(head, rest)

    async def _service_end(self) -> ServiceEnd:
        if self.upstream.tunnels > self.upstream.settings.max_tunnels:
            raise UpstreamOverloaded("There are as many WebSockets as there may be.")
        service = ServiceEnd(self)
        await self.upstream.connect(service)
        return service

    async def _handshake(self) -> bytes:
        """Judge the handshake and make the one for the service.

        Raises:
            OriginForbidden, InvalidToken, NotAuthenticated, InsufficientScope, KeysUnavailable: see there.
        """
        head = self._head
        noted = head.noted
        origin = noted.get(b"origin")
        if origin is not None and not self._is_same_origin(origin):
            raise OriginForbidden(f"Pages of {origin.decode('latin-1')} may not open WebSockets here.")
        lines = [head.passed]
        protocols, token = split_protocols(noted.get(b"sec-websocket-protocol"))
        if protocols:
            lines += (b"sec-websocket-protocol: ", b", ".join(protocols), b"\r\n")
        if token is not None:
            if b"authorization" in noted:
                raise InvalidToken("Send one token: in Authorization or as a sub-protocol.")
            lines.append(b"authorization: Bearer %b\r\n" % token)
        await self._authenticate(token)
        return b"".join(
            (
                b"GET %b HTTP/1.1\r\nhost: %b\r\n" % (self._target, self.upstream.authority),
                b"connection: Upgrade\r\nupgrade: websocket\r\n",
                *lines,
                self._forwarded,
                b"x-forwarded-host: %b\r\nx-request-id: %b\r\n%b\r\n"
                % (head.host, self._request_id, self._trace_lines),
            )
        )

    async def _authenticate(self, subprotocol_token: bytes | None) -> None:
        policy = self.route.policy(b"GET", self._path)
        now = self._loop.time()
        policy.limit.take(self._address, now)
        if policy.auth == "none":
            return
        token = (
            subprotocol_token.decode("latin-1")
            if subprotocol_token is not None
            else bearer_of(self._head.noted.get(b"authorization"))
        )
        if token is None:
            if policy.auth == "required":
                raise NotAuthenticated
            if self.route.anonymous_limit is not None:
                self.route.anonymous_limit.take(self._address, now)
            return
        principal = self.proxy.verifier.cached(token)
        if principal is None:
            principal = await self.proxy.verified(token)
        else:
            self.proxy.meters.tokens_cached += 1
        self._user_id = principal.id
        check_scopes(principal, policy)

    def _is_same_origin(self, origin: bytes) -> bool:
        return self.proxy.cors.allows(origin) or origin.partition(b"://")[2] == self._head.host

    async def _response(self) -> tuple[ResponseHead, bytes]:
        try:
            async with asyncio.timeout(self.upstream.settings.first_byte_timeout):
                return await self._answered
        except TimeoutError:
            raise UpstreamTimeout("The service did not answer the handshake in time.") from None

    def _splice(self, head: ResponseHead, rest: bytes) -> None:
        self._transport.write(
            b"".join(
                (
                    STATUS_LINE[101],
                    b"connection: Upgrade\r\nupgrade: websocket\r\n",
                    head.passed,
                    self._own_lines(),
                    b"\r\n",
                )
            )
        )
        self._open = True
        self._status = 101
        # What only the handshake needed would take some KiB for as long as the socket is open.
        del self._head, self._forwarded, self._trace_lines, self._answered
        self._answer = b""
        if rest:
            self.from_service(rest)
        if self._early:
            early, self._early = self._early, b""
            self.from_client(early)
            self.client.resume_reading()

    def _pass_refusal(self, head: ResponseHead, body: bytes) -> None:
        """The service said no: so do we, in its words."""
        self._status = head.status
        body = body[: head.content_length] if head.content_length is not None else b""
        self._close_with(
            b"".join(
                (
                    STATUS_LINE[head.status],
                    head.passed,
                    b"content-length: %d\r\n" % len(body),
                    self._own_lines(),
                    b"connection: close\r\n\r\n",
                    body,
                )
            )
        )

    def _refuse(self, problem: Problem) -> None:
        self._status = problem.status
        self.proxy.meters.problem(problem)
        body = problem.body(self._request_id.decode())
        self._close_with(
            b"".join(
                (
                    STATUS_LINE[problem.status],
                    self.proxy.date_line(),
                    b"content-type: %b\r\ncontent-length: %d\r\n" % (PROBLEM_JSON.encode(), len(body)),
                    *(f"{name}: {value}\r\n".encode("latin-1") for name, value in problem.headers.items()),
                    self._own_lines(),
                    b"connection: close\r\n\r\n",
                    body,
                )
            )
        )

    def _own_lines(self) -> bytes:
        return b"%bx-request-id: %b\r\nx-process-time-ms: %.2f\r\n" % (
            self.proxy.own_lines,
            self._request_id,
            (perf_counter() - self._started) * 1000,
        )

    # Open

    def from_client(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._closing:
            return
        if self._open and self.service is not None:
            self.service.transport.write(data)
            self.deadline = self._loop.time() + IDLE_SECONDS
        else:
            self._early += data
            if len(self._early) > EARLY_LIMIT:
                self._transport.pause_reading()

    def from_service(self, data: bytes) -> None:
        """Bytes of the service."""
        if self._closing:
            return
        if not self._open:
            self._read_answer(data)
            return
        self.deadline = self._loop.time() + IDLE_SECONDS
        if not self._draining:
            self._frames.feed(data)
            self._transport.write(data)
            return
        end = self._frames.feed(data, stop=True)
        self._transport.write(data[:end])
        if self._frames.at_boundary:
            self._say_restart()

    def _read_answer(self, data: bytes) -> None:
        if self._answered.done():
            return
        self._answer += data
        try:
            end = find_head_end(self._answer)
            if not end:
                return
            head = parse_response_head(self._answer, end, RESPONSE)
        except WireError:
            self._answered.set_exception(UpstreamFailed("The service answered something that is not HTTP."))
            return
        rest = self._answer[end:]
        if head.status != 101 and len(rest) < min(head.content_length or 0, REFUSAL_LIMIT):
            return  # its body is still to come
        self._answered.set_result((head, rest))

    def half_closed(self, other: _End | None) -> bool:
        """One side will send no more: tell the other, keep its way open. Returns whether the transport stays open."""
        if not self._open or self._closing or other is None:
            return False
        other.transport.write_eof()
        return True

    # Closing

    def drain(self) -> None:
        """The gateway goes down: say 1012 at the next frame boundary."""
        self._draining = True
        if not self._open:
            self._refuse(UpstreamUnavailable("The gateway restarts."))
        elif self._frames.at_boundary:
            self._say_restart()

    def service_lost(self) -> None:
        """The service is gone: tell the client where that is possible."""
        if self._closing:
            return
        if not self._open:
            if not self._answered.done():
                self._answered.set_exception(
                    UpstreamFailed("The service closed the connection in the handshake.")
                )
        elif self._frames.closing:
            self._half_close()
        elif self._frames.at_boundary:
            self._say_restart()
        else:
            self._transport.abort()

    def client_lost(self) -> None:
        """The client is gone."""
        self._closing = True
        self.upstream.tunnels -= 1
        self.proxy.meters.clients -= 1
        self.proxy.meters.tunnel_ended(self.upstream.name, opened=self._open)
        if self._span is not None:
            end_span(self._span, self._status)
        self.proxy.access_log.note(
            "socket.served" if self._open else "socket.refused",
            path=self._path.decode(),
            s=round(perf_counter() - self._started, 2),
            request_id=self._request_id.decode(),
            trace_id=self._trace_id.decode(),
            upstream=self.upstream.name,
            user_id=self._user_id,
            client=self._address,
        )
        self._sweep.discard(self)
        self._connections.discard(self.client)
        if self._opening is not None:
            self._opening.cancel()
        if self.service is not None:
            self.service.transport.close()

    def expire(self, now: float) -> None:  # noqa: ARG002
        """Nothing moves any more."""
        self._transport.abort()

    def _say_restart(self) -> None:
        if not self._frames.closing and not self._closing:
            self._transport.write(RESTART)
        self._half_close()

    def _close_with(self, response: bytes) -> None:
        if self._closing:
            return
        self._transport.write(response)
        self._half_close()

    def _half_close(self) -> None:
        """Send what was written, then wait for the client to close: a reset could overtake it."""
        self._closing = True
        if self._opening is not None and self._opening is not asyncio.current_task():
            self._opening.cancel()
        if self.service is not None:
            self.service.transport.close()
        if not self._transport.is_closing():
            self._transport.write_eof()
            self.client.resume_reading()
        self.deadline = self._loop.time() + CLOSE_SECONDS
