"""The live stream as Server-Sent Events (API.md, `/v1/events`; HTML, section 9.2)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import time
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from notifications.connections import INTERNAL_ERROR, TOKEN_EXPIRED, TRY_AGAIN_LATER, address_of
from notifications.errors import (
    CursorInvalid,
    StreamUnavailable,
    TooManyConnections,
    TooManyTopics,
    UnknownTopic,
)
from notifications.frames import MAX_CURSOR_LENGTH, Cursor, message, server_sent_event
from notifications.replay import follow_from
from notifications.stream import LiveStream
from notifications.topics import MAX_TOPIC_LENGTH, MAX_TOPICS, Channel, channel_of
from notifications.websocket import EXPIRY_NOTICE, STREAM_TIMEOUT
from shared.auth import CurrentUser
from shared.errors import InvalidToken
from shared.logs import get_logger
from shared.openapi import problems
from shared.tasks import running
from shared.tokens import Principal

log = get_logger(__name__)
router = APIRouter(prefix="/v1/events", tags=["live"])

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE = 15.0
"""Seconds of quiet after which a comment says that the stream is still there."""
RETRY_MS = 1000
"""Milliseconds after which a browser connects again."""

_COMMENT = b": still here\n\n"
_EXAMPLE = """\
retry: 1000

data: {"type":"ready","user_id":7,"expires_at":1767323945}

id: 01a20f4e4e3f70aba58a63a5ab7a9452.149
data: {"type":"subscribed","topic":"items","cursor":"01a20f4e4e3f70aba58a63a5ab7a9452.149"}

id: 01a20f4e4e3f70aba58a63a5ab7a9452.150
data: {"type":"event","topic":"items","cursor":"01a20f4e4e3f70aba58a63a5ab7a9452.150","event":{"specversion":"1.0","type":"items.item.created.v1"}}

"""

Topics = Annotated[
    str,
    Query(
        description="Topics to follow, separated by commas: `items`, `items.<id>`, `me`.",
        max_length=MAX_TOPICS * (MAX_TOPIC_LENGTH + 1),
        examples=["items", "items.42,me"],
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="The `id` of the last event received: everything after it follows, once, in order."),
]


@router.get(
    "",
    summary="Follow the live stream",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Messages as on `/v1/ws`, for as long as the token is valid.",
            "content": {MEDIA_TYPE: {"example": _EXAMPLE}},
        },
        **problems(UnknownTopic, TooManyTopics, CursorInvalid, TooManyConnections, StreamUnavailable),
    },
)
async def live_events(
    request: Request, me: CurrentUser, topics: Topics, last_event_id: LastEventId = None
) -> StreamingResponse:
    """The same stream as `/v1/ws`, as Server-Sent Events; an event that belongs to several topics comes once."""
    stream: LiveStream = request.app.state.live
    names = list(dict.fromkeys(topics.split(",")))
    if len(names) > MAX_TOPICS:
        raise TooManyTopics(f"A connection has at most {MAX_TOPICS} topics.")
    channels = tuple(channel_of(topic, me) for topic in names)
    start = None if last_event_id is None else _parse(last_event_id)
    try:
        async with asyncio.timeout(STREAM_TIMEOUT):
            await stream.reader.caught_up.wait()
    except TimeoutError:
        raise StreamUnavailable from None
    address = address_of(request.scope, stream.settings.trusted_proxies)
    follower = Follower(stream, me, address, channels)
    # HEAD has no body to wait for.
    return _Response(follower, _nothing() if request.scope["state"]["is_head"] else follower.messages(start))


def _parse(cursor: str) -> Cursor:
    try:
        return Cursor.parse(cursor[: MAX_CURSOR_LENGTH + 1])
    except ValueError:
        raise CursorInvalid("Last-Event-ID is not a cursor of this stream.") from None


async def _nothing() -> AsyncIterator[bytes]:
    for never in tuple[bytes, ...]():
        yield never


class Follower:
    """One client of the stream: what waits for it is joined into one piece each time that it can take some."""

    def __init__(
        self, stream: LiveStream, principal: Principal, address: str, channels: tuple[Channel, ...]
    ) -> None:
        self.address = address
        self.principal: Principal | None = principal
        self._stream = stream
        self._expires_at = principal.expires_at
        self._channels = channels
        self._waiting: list[bytes] = []
        self._size = 0
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._ended: tuple[int, str] | None = None

    def write(self, data: bytes) -> None:
        """Take messages; a client that does not read them loses its connection, not its neighbours' time."""
        if self._ended is not None:
            return
        if self._size > self._stream.settings.socket_backlog:
            self.end(TRY_AGAIN_LATER, "too slow")
            return
        self._waiting.append(data)
        self._size += len(data)
        self._something.set()

    def end(self, code: int, reason: str) -> None:
        """End the stream behind what waits; the code is what a WebSocket would get."""
        if self._ended is None:
            self._ended = (code, reason)
            self._stream.hub.leave(self)
            self._something.set()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Count the client while the block runs, and end it when its token does.

        Raises:
            InvalidToken: the session has ended meanwhile.
            TooManyConnections: some cap is reached.
        """
        stream, loop = self._stream, asyncio.get_running_loop()
        if self.principal is not None and stream.connections.is_revoked(self.principal):
            raise InvalidToken("The session has ended.")  # since the token was verified
        try:
            stream.connections.enter(self)
        except TooManyConnections as problem:
            stream.meters.refused(problem.code)
            raise
        left = max(0.0, self._expires_at - time())
        timers = (
            loop.call_later(left - min(EXPIRY_NOTICE, left / 2), self._expires_soon),
            loop.call_later(left, self.end, TOKEN_EXPIRED, "token expired"),
        )
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            stream.hub.leave(self)
            stream.connections.leave(self)
            if self._ended is not None:
                stream.ended(self, *self._ended, topics=[channel.topic for channel in self._channels])

    def _expires_soon(self) -> None:
        self._say(None, type="expiring", **{"in": max(0, round(self._expires_at - time()))})

    def _say(self, position: Cursor | None, /, **members: object) -> None:
        self.write(server_sent_event(message(**members), position))

    async def messages(self, start: Cursor | None) -> AsyncIterator[bytes]:
        """Yield the stream until one side ends it."""
        assert self.principal is not None  # noqa: S101  # the constructor's
        yield b"retry: %d\n\n" % RETRY_MS
        self._say(None, type="ready", user_id=self.principal.id, expires_at=self._expires_at)
        async with running(self._follow(start)):
            while self._ended is None or self._waiting:
                yield await self._next()

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(KEEP_ALIVE):
                await self._something.wait()
        except TimeoutError:
            return _COMMENT
        self._something.clear()
        data = b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._nothing.set()
        return data

    async def _drained(self) -> None:
        """Wait until the client is ready for more."""
        while self._waiting and self._ended is None:
            self._nothing.clear()
            await self._nothing.wait()

    async def _follow(self, start: Cursor | None) -> None:
        stream = self._stream
        position = start or stream.hub.position
        for channel in self._channels:
            self._say(position, type="subscribed", topic=channel.topic, cursor=str(position))
        try:
            replayed = await follow_from(
                position, self._channels, self,
                hub=stream.hub, history=stream.history, form=server_sent_event, drained=self._drained,
            )  # fmt: skip
        except TimeoutError:
            self.end(TRY_AGAIN_LATER, "the event stream cannot be read now")
            return
        except Exception:
            # One client's misfortune is no reason to stop the process, as a task that fails would.
            log.exception("live.failed")
            self.end(INTERNAL_ERROR, "internal error")
            return
        stream.meters.replayed(replayed)
        if self._ended is None:
            stream.hub.follow(self, self._channels, server_sent_event, once=True)


class _Response(StreamingResponse):
    """The answer of a follower, who is counted for as long as it lasts, whether or not anything of it is sent."""

    def __init__(self, follower: Follower, content: AsyncIterator[bytes]) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type=MEDIA_TYPE, headers=headers)
        self._follower = follower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._follower.connected():
            await super().__call__(scope, receive, send)
