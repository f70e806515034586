"""What the wire may do: uvicorn's HTTP protocol with the strict rules of DESIGN "The edge" (SECURITY G1, G2, G5, G7).

uvicorn's own protocol feeds everything that arrives to its parser and sees too late what was wrong. Here a connection
reads one message at a time, knows where it ends, and never looks at a byte behind a message that was refused or
answered before it was complete. Bytes of a pipelined request wait, bounded, until the response before it is written.

Only requests and responses to them live here; who serves a request is decided in `begin`, so that a subclass may take
it before any ASGI object exists.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote_to_bytes
from weakref import WeakKeyDictionary

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from shared.deadlines import NEVER, Sweep
from shared.edge_asgi import HELD_LIMIT, EdgeCycle, EdgeWebSocketProtocol, reset
from shared.errors import PROBLEM_JSON, Problem
from shared.ids import new_id
from shared.wire import (
    PLAIN,
    ChunkedBody,
    FieldSorter,
    HeadSizeError,
    HostError,
    RequestHead,
    WireError,
    find_head_end,
    parse_request_head,
)

LINGER_BYTES: Final = 1024 * 1024
"""Bytes discarded after an early answer, so that the client reads it instead of a reset, before the door is shut."""
LINGER_SECONDS: Final = 2.0
DRAIN_IDLE_SECONDS: Final = 0.5
"""How long an idle connection stays open when the server drains: a request may be on its way just now."""


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """How long a client may take, in seconds."""

    head: float = 10.0
    """From the first byte of a request to the end of its head (SECURITY G7)."""
    body_stall: float = 30.0
    """Between two pieces of a body that we are ready to read (SECURITY G7)."""
    write_stall: float = 30.0
    """For which a client may take nothing of a response that is ready for it."""


class MalformedRequest(Problem):
    """The bytes are not plainly one HTTP/1.1 request: conflicting lengths, folded or bare lines, control characters."""

    status = 400
    code = "malformed_request"
    title = "Malformed request"


class HostInvalid(Problem):
    """A request needs exactly one well-formed Host field."""

    status = 400
    code = "host_invalid"
    title = "Invalid Host"


class RequestTimeout(Problem):
    """The request did not arrive in time. Send it again on a new connection."""

    status = 408
    code = "request_timeout"
    title = "Request timeout"


class HeadersTooLarge(Problem):
    """Request line and header fields together are larger than 16 KiB."""

    status = 431
    code = "headers_too_large"
    title = "Header fields too large"


EDGE_PROBLEMS: tuple[type[Problem], ...] = (MalformedRequest, HostInvalid, RequestTimeout, HeadersTooLarge)

# What a connection does with the bytes that arrive.
_HEAD: Final = 0  # they belong to the next head
_BODY: Final = 1  # they belong to the body of the current request
_HELD: Final = 2  # the request is read whole; they wait for its response
_DISCARD: Final = 3  # the connection is given up; they are dropped

# One sweep per server. uvicorn hands its connections nothing else that they share and that could hold it.
_sweeps: WeakKeyDictionary[ServerState, Sweep] = WeakKeyDictionary()


class EdgeProtocol(HttpToolsProtocol):
    """One client connection."""

    limits: EdgeLimits = EdgeLimits()
    sorter: FieldSorter = PLAIN
    """What a subclass wants to know of a request's fields."""
    response_headers: Sequence[tuple[bytes, bytes]] = ()
    """Fields of every response made here, beside Date."""

    head: RequestHead
    """The request that is being read or answered."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if config.ws in ("auto", "websockets-sansio"):
            self.ws_protocol_class = EdgeWebSocketProtocol
        self.deadline = NEVER
        self.started = 0.0
        """When the first byte of the current request came (perf_counter)."""
        self._reading = _HEAD
        self._held = b""
        self._owes_reading = False  # the next request waits until the client has taken the last response
        self._cycle_begun = False
        self._body_left = 0
        self._chunked: ChunkedBody | None = None
        self._discarded = 0
        self.draining = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self.sweep = _sweeps.setdefault(self.server_state, Sweep(self.loop))
        self.sweep.add(self)
        self.deadline = self.loop.time() + self.limits.head

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading = _DISCARD
        self._held = b""
        self.sweep.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Drain: answer what is under way, then close. Called by the server."""
        self.draining = True
        if self._reading == _HEAD and not self._held:
            self.deadline = min(self.deadline, self.loop.time() + DRAIN_IDLE_SECONDS)
        elif self._serving:
            self.cycle.keep_alive = False

    def expire(self, now: float) -> None:
        """The client took too long."""
        if self.transport.is_closing() or (self._reading == _HELD and self.flow.write_paused):
            reset(self.transport)  # it does not even take what there is for it
        elif self._keeps_client_waiting():
            self.deadline = now + self.limits.body_stall
        elif self._reading == _HEAD and not self._held:
            self._close()  # an idle connection; a 408 nobody asked for confuses clients
        elif self._reading == _DISCARD:
            self.transport.abort()
        else:
            self.refuse(RequestTimeout())

    def _keeps_client_waiting(self) -> bool:
        """Whether it is we who do not read, so that the client is not late."""
        return self.flow.read_paused or (self._serving and self.cycle.waiting_for_100_continue)

    @property
    def _serving(self) -> bool:
        """Whether an ASGI application is at work on a request."""
        return self._cycle_begun and not self.cycle.response_complete

    # Reading

    def data_received(self, data: bytes) -> None:
        while data:
            if self._reading == _HEAD:
                data = self._read_head(data)
            elif self._reading == _BODY:
                data = self._read_body(data)
            elif self._reading == _HELD:
                self._held += data
                if len(self._held) > HELD_LIMIT:
                    self.flow.pause_reading()
                return
            else:
                self._discarded += len(data)
                if self._discarded > LINGER_BYTES:
                    self.transport.abort()
                return

    def _read_head(self, data: bytes) -> bytes:
        """Begin the request that `data` completes the head of, and return what follows the head."""
        searched = len(self._held)
        if searched:
            data = self._held + data
            self._held = b""
        else:
            self.started = perf_counter()
        try:
            end = find_head_end(data, searched)
            if not end:
                self._held = data
                if not searched:
                    self.deadline = self.loop.time() + self.limits.head
                return b""
            head = parse_request_head(data, end, self.sorter)
        except WireError as error:
            self.refuse(_problem_of(error))
            return b""
        self.head = head
        if head.chunked:
            self._chunked = ChunkedBody()
            self._reading = _BODY
            self.deadline = self.loop.time() + self.limits.body_stall
        elif head.content_length:
            self._body_left = head.content_length
            self._reading = _BODY
            self.deadline = self.loop.time() + self.limits.body_stall
        else:
            self._reading = _HELD
            self.deadline = NEVER
        if head.upgrade is not None and self._reading == _HELD and head.method == b"GET":
            return self.upgrade(head, data, end)
        self.begin(head)
        return data[end:]

    def _read_body(self, data: bytes) -> bytes:
        """Deliver the part of `data` that is body, and return what follows the body."""
        self.deadline = self.loop.time() + self.limits.body_stall
        rest = b""
        if self._chunked is not None:
            try:
                block = self._chunked.feed(data)
            except WireError as error:
                self.refuse(_problem_of(error))
                return b""
            last = self._chunked.complete
            if last:
                rest = self._chunked.rest
                self._chunked = None
        else:
            block = data
            if len(data) > self._body_left:
                block, rest = data[: self._body_left], data[self._body_left :]
            self._body_left -= len(block)
            last = not self._body_left
        if last:
            self._reading = _HELD
            self.deadline = NEVER
        self.body(block, last)
        return rest

    # Who serves a request. A subclass may take it here.

    def begin(self, head: RequestHead) -> None:
        """Start to serve a request; its body follows by `body`."""
        self._start_cycle(head)

    def body(self, block: bytes, last: bool) -> None:
        """Take a piece of the body."""
        cycle = self.cycle
        cycle.body += block
        if last:
            cycle.more_body = False
        elif len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def upgrade(self, head: RequestHead, data: bytes, end: int) -> bytes:
        """Serve a request for another protocol, whose head is `data[:end]`; return what is left to read of `data`."""
        if head.upgrade != b"websocket" or self.ws_protocol_class is None:
            self.begin(head)  # RFC 9110 section 7.8: an upgrade may be ignored
            return data[end:]
        fields = dict(head.headers)
        if not fields.get(b"sec-websocket-key") or fields.get(b"sec-websocket-version") != b"13":
            # RFC 6455 section 4.2.1; uvicorn's protocols would answer in plain text.
            self.refuse(MalformedRequest("A WebSocket handshake needs a key and version 13."))
            return b""
        self.connections.discard(self)
        self.sweep.discard(self)
        protocol = self.ws_protocol_class(  # type: ignore[call-arg]  # typed as a bare asyncio.Protocol
            config=self.config, server_state=self.server_state, app_state=self.app_state
        )
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        # Field names in lower case, as ASGI has them; uvicorn's WebSocket protocols pass them on as they come.
        lines = [name + b": " + value + b"\r\n" for name, value in head.headers]
        start = b"%b %b HTTP/1.1\r\n" % (head.method, head.target)
        # As one piece: frames in the handshake's own segment belong to the new protocol (uvicorn loses them).
        protocol.data_received(b"".join([start, *lines, b"\r\n", data[end:]]))
        return b""

    # Answering

    def refuse(self, problem: Problem) -> None:
        """Answer `problem`, if nothing was answered yet, and give the connection up."""
        if self._serving:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                reset(self.transport)  # a response cut short must not look complete
                return
        self.transport.write(self._problem_response(problem))
        self.close_after_response()

    def _problem_response(self, problem: Problem) -> bytes:
        request_id = new_id()
        body = problem.body(request_id)
        fields = [
            *self.server_state.default_headers,
            *self.response_headers,
            (b"content-type", PROBLEM_JSON.encode()),
            (b"content-length", b"%d" % len(body)),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()),
            (b"x-request-id", request_id.encode()),
            (b"x-process-time-ms", b"%.1f" % ((perf_counter() - self.started) * 1000)),
            (b"connection", b"close"),
        ]
        lines = [name + b": " + value + b"\r\n" for name, value in fields]
        return b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body])

    def response_written(self, *, keep_alive: bool) -> None:
        """The response is complete: read the next request, or give the connection up."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._reading == _DISCARD:
            return
        if not keep_alive or self._reading != _HELD:
            self.close_after_response()
            return
        if self.flow.write_paused:
            # Else a client that sends requests and takes no answers would have them all piled up here.
            self._owes_reading = True
            self.deadline = self.loop.time() + self.limits.write_stall
            return
        self._next_request()

    def _next_request(self) -> None:
        self._reading = _HEAD
        self.flow.resume_reading()
        wait = DRAIN_IDLE_SECONDS if self.draining else self.timeout_keep_alive
        self.deadline = self.loop.time() + wait
        if self._held:
            held, self._held = self._held, b""
            self.data_received(held)

    def close_after_response(self) -> None:
        """Close so that the client can read the answer, and run nothing of what it still sends.

        To close a socket with unread bytes resets the connection, and a reset can overtake the answer; so the write
        side is closed first and what still comes is dropped, for a bounded while.
        """
        whole = self._reading == _HELD and not self._held
        self._reading = _DISCARD
        self._held = b""
        if whole or self.transport.is_closing() or not self.transport.can_write_eof():
            self._close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self.deadline = self.loop.time() + LINGER_SECONDS

    def _close(self) -> None:
        """Close once what was written has been taken, for which the client has a while."""
        self.transport.close()
        self.deadline = self.loop.time() + self.limits.write_stall

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading == _HELD:
            self.deadline = self.loop.time() + self.limits.write_stall

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._owes_reading:
            self._owes_reading = False
            self._next_request()
        elif self._reading == _HELD:
            self.deadline = NEVER

    # ASGI

    def _start_cycle(self, head: RequestHead) -> None:
        raw_path, _, query = head.target.partition(b"?")
        path = unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path
        try:
            text = path.decode()
        except UnicodeDecodeError:
            self.refuse(MalformedRequest("The path is not UTF-8."))
            return
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.0" if head.http_1_0 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme or "http",
            "method": head.method.decode(),
            "root_path": self.root_path,
            "path": self.root_path + text,
            "raw_path": self.root_path.encode() + raw_path,
            "query_string": query,
            "headers": head.headers,
            "state": self.app_state.copy(),
        }
        self.cycle = cycle = EdgeCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,  # the app logs requests itself
            default_headers=[*self.server_state.default_headers, *self.response_headers],
            message_event=asyncio.Event(),
            expect_100_continue=head.expects_continue,
            keep_alive=head.keep_alive and not self.draining,
            on_response=self.on_response_complete,
        )
        cycle.more_body = self._reading == _BODY
        if not cycle.more_body:
            cycle.message_event.set()
        self._cycle_begun = True
        self._start_asgi_task(cycle, self.app)

    def on_response_complete(self) -> None:
        """Uvicorn's hook: the ASGI application has answered."""
        self.response_written(keep_alive=self.cycle.keep_alive)


def _problem_of(error: WireError) -> Problem:
    match error:
        case HeadSizeError():
            return HeadersTooLarge(str(error))
        case HostError():
            return HostInvalid(str(error))
        case _:
            return MalformedRequest(str(error))
