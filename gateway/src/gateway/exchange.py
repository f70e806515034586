"""The data path: one exchange carries one request to its service and the response back.

Callbacks from the two connections drive it; nothing is buffered whole, and whichever side is slower pauses the other.
An exchange knows its client only as `Client`, so that the wire's rules stay in shared.edge.
"""

import asyncio
from time import perf_counter
from typing import Final, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.access import bearer_of, check_scopes
from gateway.connection import UpstreamConnection
from gateway.errors import UpgradeRequired
from gateway.headers import sane_request_id
from gateway.proxy import Proxy
from gateway.routes import IDEMPOTENT, Policy, Route
from gateway.tracing import end_span
from shared.edge_asgi import reset
from shared.errors import PROBLEM_JSON, BodyTooLarge, MethodNotAllowed, NotAuthenticated, Problem
from shared.ids import new_id
from shared.tokens import Principal
from shared.wire import RequestHead, ResponseHead

UPLOAD_HELD: Final = 64 * 1024
"""Bytes of a request body that are gathered before a connection to the service is taken, and kept until there is one."""

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(Protocol):
    """A client's connection, as an exchange sees it."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: FlowControl
    started: float
    head: RequestHead
    draining: bool
    forwarded: bytes
    """The X-Forwarded-For and -Proto fields of this request."""
    address: str
    """Whom this request counts against where its user is not known (shared.addresses)."""
    address_json: bytes
    """The same for the access log."""

    def response_written(self, *, keep_alive: bool) -> None:
        """The response has been written whole."""


class Exchange:
    """One proxied request. Implements upstream.Consumer."""

    __slots__ = (
        "_connection",
        "_done",
        "_flushed",
        "_gathering",
        "_has_body",
        "_held",
        "_held_bytes",
        "_limited",
        "_out",
        "_read_whole",
        "_received",
        "_rechunk",
        "_request",
        "_retries",
        "_span",
        "_trace_id",
        "_trace_lines",
        "_upstream",
        "_user_id",
        "_verifying",
        "client",
        "head",
        "keep_alive",
        "path",
        "proxy",
        "query",
        "request_id",
        "route",
        "status",
    )

    def __init__(self, proxy: Proxy, client: Client, route: Route, path: bytes, query: bytes) -> None:
        self.proxy = proxy
        self.client = client
        self.head = head = client.head
        self.route = route
        self.path = path
        self.query = query
        self.status = 0
        self.keep_alive = head.keep_alive
        given = head.noted.get(b"x-request-id")
        self.request_id = given if given is not None and sane_request_id(given) else new_id().encode()
        self._trace_id, self._trace_lines, self._span = proxy.traces.begin(
            head.noted, head.method, route.prefix
        )
        self._upstream = proxy.upstreams[route.upstream]
        self._connection: UpstreamConnection | None = None
        self._verifying: asyncio.Task[None] | None = None
        self._request = b""
        self._has_body = has_body = head.chunked or bool(head.content_length)
        self._read_whole = not has_body
        self._held: list[bytes] = []  # the body, as it goes to the service, until there is a connection
        self._held_bytes = 0
        self._gathering = False
        self._received = 0
        self._retries = route.retries if not has_body and head.method in IDEMPOTENT else 0
        self._out: list[bytes] = []
        self._limited = b""
        self._user_id: int | None = None
        self._rechunk = False
        self._flushed = False
        self._done = False

    # The client's side

    def start(self) -> None:
        """Judge the request and send it on its way."""
        head, route = self.head, self.route
        if head.method == b"OPTIONS":
            self._answer_options()
            return
        try:
            if head.method not in route.methods:
                raise MethodNotAllowed(headers={"Allow": self._allow()})
            if route.websocket:
                raise UpgradeRequired
            if head.content_length is not None and head.content_length > route.body_limit:
                raise BodyTooLarge(f"At most {route.body_limit} bytes are accepted here.")
            policy = route.policy(head.method, self.path)
            token = bearer_of(head.noted.get(b"authorization")) if policy.auth != "none" else None
            principal = self.proxy.verifier.cached(token) if token is not None else None
            self._spend(policy, principal, anonymous=token is None)
            if principal is not None:
                self.proxy.meters.tokens_cached += 1
                self._user_id = principal.id
                if policy.scopes:
                    check_scopes(principal, policy)
            elif token is not None:
                self._verifying = self.proxy.spawn(self._verify(token, policy))
                return
            elif policy.auth == "required":
                raise NotAuthenticated
        except Problem as problem:
            self.answer(problem)
            return
        self._forward()

    def _spend(self, policy: Policy, principal: Principal | None, *, anonymous: bool) -> None:
        """Count the request against its limits; keep the fields that tell the client."""
        now = self.client.loop.time()
        limit = policy.limit
        if principal is not None and not limit.per_address:
            self._limited = limit.take((principal.issuer, principal.id), now)
        else:
            self._limited = limit.take(self.client.address, now)
        if anonymous and self.route.anonymous_limit is not None:
            self.route.anonymous_limit.take(self.client.address, now)

    async def _verify(self, token: str, policy: Policy) -> None:
        """The slow path: the token is not in the cache."""
        try:
            principal = await self.proxy.verified(token)
            self._user_id = principal.id
            check_scopes(principal, policy)
        except Problem as problem:
            self._verifying = None
            self.answer(problem)
        else:
            self._verifying = None
            self._forward()

    def _forward(self) -> None:
        head, client = self.head, self.client
        if head.chunked:
            end = b"transfer-encoding: chunked\r\n\r\n"
        elif head.content_length is not None:
            end = b"content-length: %d\r\n\r\n" % head.content_length
        else:
            end = b"\r\n"
        self._request = b"".join(
            (
                head.method,
                b" ",
                self.path,
                self.query,
                self._upstream.host_line,
                head.passed,
                client.forwarded,
                b"x-forwarded-host: ",
                head.host,
                b"\r\nx-request-id: ",
                self.request_id,
                b"\r\n",
                self._trace_lines,
                end,
            )
        )
        if head.expects_continue and not self._read_whole:
            client.transport.write(_CONTINUE)
        # The service's connections are for requests that are there, not for clients that drip (SECURITY G7).
        if self._read_whole or self._held_bytes > UPLOAD_HELD:
            self._upstream.acquire(self)
        else:
            self._gathering = True

    def body(self, block: bytes, last: bool) -> None:
        """Take a piece of the request's body."""
        self._read_whole = last
        self._received += len(block)
        if self._received > self.route.body_limit:
            self._give_up()
            self._fail_client(BodyTooLarge(f"At most {self.route.body_limit} bytes are accepted here."))
            return
        if self.head.chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block) if block else b""
            if last:
                block += b"0\r\n\r\n"
        if self._connection is not None:
            self._connection.send(block, complete=last)
            return
        self._held.append(block)
        self._held_bytes += len(block)
        if self._gathering and (last or self._held_bytes > UPLOAD_HELD):
            self._gathering = False
            self._upstream.acquire(self)
        if self._held_bytes > UPLOAD_HELD and self._connection is None:
            self.client.flow.pause_reading()

    def abandon(self) -> bool:
        """The client is gone or out of favour; say whether a part of the response has reached it."""
        if not self._done:
            self._log(broken=True)
        self._give_up()
        return self._flushed

    def client_full(self) -> None:
        """The client does not read as fast as the service sends."""
        if self._connection is not None:
            self._connection.pause_reading()

    def client_ready(self) -> None:
        """It reads again."""
        if self._connection is not None:
            self._connection.resume_reading()

    def drain(self) -> None:
        """The gateway goes down: a stream without end must end here, others may finish."""
        self.keep_alive = False
        if self.route.streaming and self._flushed and self._connection is not None:
            self._connection.close()
            self.response_complete()

    # The service's side: upstream.Consumer

    def connected(self, connection: UpstreamConnection) -> None:
        """Send what there is of the request."""
        if self._done:
            connection.give_back()
            return
        self._connection = connection
        client = self.client
        data = self._request
        if self._held:
            data = b"".join((data, *self._held))
            self._held.clear()
        connection.begin(
            self,
            data,
            is_head=self.head.method == b"HEAD",
            complete=self._read_whole,
            until=client.loop.time() + self.route.timeout,
        )
        if self._has_body:
            client.flow.resume_reading()

    def response_head(self, head: ResponseHead) -> None:
        """Make the client's response head."""
        client = self.client
        self.status = status = head.status
        out = self._out
        out.append(STATUS_LINE[status])
        out.append(head.passed)
        if b"date" not in head.noted:
            out.append(self.proxy.date_line())
        if head.content_length is not None and status != 204:
            out.append(b"content-length: %d\r\n" % head.content_length)
        elif status not in (204, 304) and self.head.method != b"HEAD":
            if self.head.http_1_0:
                self.keep_alive = False  # the body ends with the connection
            else:
                self._rechunk = True
                out.append(b"transfer-encoding: chunked\r\n")
        self.keep_alive = self.keep_alive and self._read_whole and not client.draining
        out.append(self._own_lines())

    def response_body(self, block: bytes) -> None:
        """Pass a piece of the body on."""
        if self._rechunk:
            self._out += (b"%x\r\n" % len(block), block, b"\r\n")
        else:
            self._out.append(block)

    def flush(self) -> None:
        """Write what has gathered: one write for all that came in one piece."""
        if self._out:
            self._flushed = True
            self.client.transport.write(b"".join(self._out))
            self._out.clear()

    def response_complete(self) -> None:
        """Write the rest; the exchange is over."""
        self._connection = None
        if self._rechunk:
            self._out.append(b"0\r\n\r\n")
        self._end()

    def failed(self, problem: Problem, *, unseen: bool) -> None:
        """Try again where nobody can tell; else say what happened, or break off what was begun."""
        self._connection = None
        if self._done:
            return
        if unseen and self._retries and self._upstream.retries.withdraw():
            self._retries -= 1
            self._upstream.acquire(self, fresh=True)
        else:
            self._fail_client(problem)

    def pause_body(self) -> None:
        """The service must catch up."""
        self.client.flow.pause_reading()

    def resume_body(self) -> None:
        """It has."""
        self.client.flow.resume_reading()

    # Answers of the gateway itself

    def answer(self, problem: Problem) -> None:
        """Answer instead of the service."""
        body = problem.body(self.request_id.decode())
        self.keep_alive = self.keep_alive and self._read_whole and not self.client.draining
        self.status = problem.status
        self.proxy.meters.problem(problem)
        self._rechunk = False
        self._out[:] = (
            STATUS_LINE[problem.status],
            self.proxy.date_line(),
            b"content-type: %b\r\ncontent-length: %d\r\n" % (PROBLEM_JSON.encode(), len(body)),
            *(f"{name}: {value}\r\n".encode("latin-1") for name, value in problem.headers.items()),
            self._own_lines(),
            b"" if self.head.method == b"HEAD" else body,
        )
        self._end()

    def _answer_options(self) -> None:
        asked = {
            name: value for name, value in self.head.headers if name.startswith(b"access-control-request-")
        }
        self.status = 204
        self.keep_alive = self.keep_alive and self._read_whole and not self.client.draining
        self._out += (STATUS_LINE[204], b"allow: %b\r\n" % self._allow().encode())
        if b"access-control-request-method" in asked:
            headers = asked.get(b"access-control-request-headers")
            origin = self.head.noted.pop(b"origin", None)  # so that it is not said again
            self._out.append(self.proxy.cors.preflight_lines(origin, self.route.allow, headers))
        self._out.append(self._own_lines())
        self._end()

    def _allow(self) -> str:
        """Return the methods of the path, or of its route where no document tells."""
        return self.proxy.allow_of(self.path) or self.route.allow

    def _own_lines(self) -> bytes:
        """Return the gateway's own fields, and the end of the head."""
        noted = self.head.noted
        return b"%b%b%bx-request-id: %b\r\nx-process-time-ms: %.2f%b" % (
            self.proxy.own_lines,
            self._limited,
            self.proxy.cors.lines(noted[b"origin"]) if b"origin" in noted else b"",
            self.request_id,
            (perf_counter() - self.client.started) * 1000,
            b"\r\n\r\n" if self.keep_alive else b"\r\nconnection: close\r\n\r\n",
        )

    def _log(self, *, broken: bool = False) -> None:
        """`broken`: the exchange ends before its response does."""
        seconds = perf_counter() - self.client.started
        meter = self.proxy.meters.routes[self.route.prefix]
        if broken:
            meter.broken()
        else:
            meter.served(self.head.method, self.status, seconds)
        if self._span is not None:
            end_span(self._span, 0 if broken else self.status)
        self.proxy.access_log.request(
            b"request.broken" if broken else b"request.served",
            method=self.head.method,
            path=self.path,
            status=self.status,
            seconds=seconds,
            request_id=self.request_id,
            trace_id=self._trace_id,
            upstream=self._upstream.name,
            user_id=self._user_id,
            client=self.client.address_json,
        )

    def _fail_client(self, problem: Problem) -> None:
        if self._flushed:
            self._done = True
            self._log(broken=True)
            reset(self.client.transport)  # a response cut short must not look complete
        else:
            self.answer(problem)

    def _give_up(self) -> None:
        """Let go of the service and of everything waited for."""
        self._done = True
        if self._verifying is not None:
            self._verifying.cancel()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        else:
            self._upstream.withdraw(self)

    def _end(self) -> None:
        self._done = True
        self.flush()
        self._log()
        self.client.response_written(keep_alive=self.keep_alive)
