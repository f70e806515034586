"""One connection to a service: writes requests, reads responses, strictly.

It serves one exchange at a time, and goes back to the pool only when the request was sent whole, the response was read
whole, nothing followed it, and neither side asked to close. Everything is callbacks on the loop: no task and no queue
per request (docs/adr/0002).
"""

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.headers import RESPONSE
from shared.deadlines import NEVER
from shared.edge import RequestTimeout
from shared.errors import Problem
from shared.logs import get_logger
from shared.wire import ChunkedBody, ResponseHead, WireError, find_head_end, parse_response_head

if TYPE_CHECKING:
    from gateway.upstream import Upstream

log = get_logger(__name__)

MAX_INFORMATIONAL: Final = 8
"""1xx responses that may precede a response."""

# What a connection expects to read.
_NOTHING: Final = 0
_HEAD: Final = 1
_LENGTH: Final = 2
_CHUNKS: Final = 3
_UNTIL_CLOSE: Final = 4


class Consumer(Protocol):
    """An exchange, as its upstream connection sees it. Nothing is called after `failed` or `response_complete`."""

    def connected(self, connection: "UpstreamConnection") -> None:
        """A connection is assigned: write the request."""

    def response_head(self, head: ResponseHead) -> None:
        """The final response's head has come (1xx are dropped)."""

    def response_body(self, block: bytes) -> None:
        """A piece of the body, without any framing."""

    def response_complete(self) -> None:
        """The response has been read whole."""

    def flush(self) -> None:
        """All that has arrived so far was delivered."""

    def failed(self, problem: Problem, *, unseen: bool) -> None:
        """There will be no (complete) response.

        `unseen`: the connection broke before anything came, so another may do and a retry cannot be noticed. Where the
        pool itself has nothing to offer (its queue, its breaker, no replica that can be reached), it would wait twice.
        """

    def pause_body(self) -> None:
        """The service does not read as fast as the client sends."""

    def resume_body(self) -> None:
        """It reads again."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a service."""

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.settings = upstream.settings
        self.deadline = NEVER
        self.address = ""
        self._transport: asyncio.Transport
        self._consumer: Consumer | None = None
        self._expects = _NOTHING
        self._received = b""
        self._left = 0
        self._chunks: ChunkedBody | None = None
        self._request_complete = False
        self._full = False
        self._paused = False
        self._seen = False
        self._keep_alive = False
        self._bodiless_request = False
        self._until = NEVER
        self._best_before = NEVER

    def usable(self, now: float) -> bool:
        """Whether it may be used again: not closed, as far as is known here, not too old, its replica still there."""
        return (
            now < self._best_before
            and not self._transport.is_closing()
            and self.upstream.addresses.has(self.address)
        )

    # The exchange's side

    def begin(self, consumer: Consumer, data: bytes, *, is_head: bool, complete: bool, until: float) -> None:
        """Send the beginning of a request, or all of it (`complete`).

        `until` is when the whole exchange must have ended, on the loop's clock.
        """
        self._consumer = consumer
        self._expects = _HEAD
        self._received = b""
        self._seen = False
        self._bodiless_request = is_head
        self._request_complete = complete
        self._until = until
        self.deadline = until
        if complete:
            self._due_in(self.settings.first_byte_timeout)
        self._transport.write(data)

    def send(self, data: bytes, *, complete: bool) -> None:
        """Send more of the request."""
        self._transport.write(data)
        if complete:
            self._request_complete = True
            if self._expects == _HEAD:
                self._due_in(self.settings.first_byte_timeout)

    def pause_reading(self) -> None:
        """The client does not read; the service must wait."""
        self._paused = True
        self._transport.pause_reading()
        self._due_in(self.settings.idle_timeout)

    def resume_reading(self) -> None:
        """The client reads again."""
        self._paused = False
        self._transport.resume_reading()
        self._due_in(self.settings.idle_timeout)

    def give_back(self) -> None:
        """It is not needed after all."""
        self.deadline = self.upstream.loop.time() + self.settings.pool_idle
        self.upstream.released(self)

    def close(self) -> None:
        """Give the connection up, whatever it is at. The exchange is not called back."""
        self._consumer = None
        self._expects = _NOTHING
        self._keep_alive = False
        self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes a Transport
        self._best_before = self.upstream.loop.time() + self.settings.pool_age
        if self.upstream.closed:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        consumer = self._consumer
        self.upstream.lost(self)
        if consumer is None:
            return
        if self._expects == _UNTIL_CLOSE and exc is None:
            self._consumer = None
            consumer.response_complete()
        else:
            self._fail(UpstreamFailed("The service closed the connection before its response was complete."))

    def data_received(self, data: bytes) -> None:
        consumer = self._consumer
        if consumer is None:
            self.close()  # nobody asked for anything
            return
        self._seen = True
        try:
            self._read(data, consumer)
        except WireError as error:
            log.warning("upstream.malformed", upstream=self.upstream.name, error=str(error))
            self._fail(UpstreamFailed("The service answered something that is not HTTP."))

    def pause_writing(self) -> None:
        if self._consumer is not None:
            self._full = True
            self._due_in(self.settings.idle_timeout)
            self._consumer.pause_body()

    def resume_writing(self) -> None:
        self._full = False
        if self._consumer is None:
            return
        if not self._request_complete:
            self.deadline = self._until
        elif self._expects == _HEAD:
            self._due_in(self.settings.first_byte_timeout)
        self._consumer.resume_body()

    def expire(self, now: float) -> None:
        """What was waited for has not come."""
        if self._consumer is None:
            self.close()
        elif self._expects == _HEAD and not self._request_complete and not self._full:
            # The service waits for the client, as we do: it has failed nobody.
            consumer = self._consumer
            self.close()
            consumer.failed(RequestTimeout("The request did not come to its end in time."), unseen=False)
        else:
            detail = (
                "The service did not answer in time." if now < self._until else "The request took too long."
            )
            self._seen = True  # it may be at work on the request still
            self._fail(UpstreamTimeout(detail))

    def _due_in(self, seconds: float) -> None:
        due = self.upstream.loop.time() + seconds
        self.deadline = due if due < self._until else self._until  # noqa: FURB136  # min() takes thrice as long

    def _read(self, data: bytes, consumer: Consumer) -> None:
        if self._expects == _HEAD:
            data = self._read_head(data, consumer)
            if self._expects == _HEAD:
                return
        rest, complete = b"", False
        if self._expects == _LENGTH:
            if len(data) > self._left:
                data, rest = data[: self._left], data[self._left :]
            self._left -= len(data)
            complete = not self._left
        elif self._chunks is not None:
            data = self._chunks.feed(data)
            rest, complete = self._chunks.rest, self._chunks.complete
        if data:
            consumer.response_body(data)
        if complete:
            self._end(consumer, clean=not rest)
        else:
            self._due_in(self.settings.idle_timeout)
            consumer.flush()

    def _read_head(self, data: bytes, consumer: Consumer) -> bytes:
        """Read up to the final response's head; return what follows it."""
        searched = len(self._received)
        if searched:
            data = self._received + data
        informational = 0
        while True:
            end = find_head_end(data, searched)
            if not end:
                self._received = data
                return b""
            head = parse_response_head(data, end, RESPONSE)
            data = data[end:]
            if head.status >= 200:
                break
            informational += 1
            if head.status == 101 or informational > MAX_INFORMATIONAL:
                raise WireError("An interim response that nobody asked for.")
            searched = 0
            if not data:
                self._received = b""
                return b""
        self._received = b""
        self.upstream.breaker.succeeded()
        self._keep_alive = head.keep_alive
        self._chunks = None
        if self._bodiless_request or head.status in (204, 304):
            self._expects, self._left = _LENGTH, 0
        elif head.chunked:
            self._expects, self._chunks = _CHUNKS, ChunkedBody()
        elif head.content_length is not None:
            self._expects, self._left = _LENGTH, head.content_length
        else:
            self._expects, self._keep_alive = _UNTIL_CLOSE, False
        consumer.response_head(head)
        return data

    def _end(self, consumer: Consumer, *, clean: bool) -> None:
        """The response is complete: back to the pool, if nothing speaks against it."""
        self._consumer = None
        self._expects = _NOTHING
        if clean and self._keep_alive and self._request_complete:
            if self._paused:
                self.resume_reading()
            self.give_back()
        else:
            if not clean:
                log.warning("upstream.surplus_bytes", upstream=self.upstream.name)
            self._transport.abort()
        consumer.response_complete()

    def _fail(self, problem: Problem) -> None:
        consumer = self._consumer
        if self._expects == _HEAD and self._seen:
            self.upstream.breaker.failed(self.upstream.loop.time())
        self.close()
        if consumer is not None:
            consumer.failed(problem, unseen=not self._seen)
