"""The live stream over WebSocket (API.md, `/v1/ws`). A socket holds no database session and waits for nobody."""

import asyncio
from time import time

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError
from starlette.datastructures import Headers, State
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notifications.connections import (
    INTERNAL_ERROR,
    POLICY_VIOLATION,
    TOKEN_EXPIRED,
    TRY_AGAIN_LATER,
    address_of,
)
from notifications.errors import CursorInvalid, TooManyConnections, TooManyTopics
from notifications.frames import (
    Auth,
    ClientFrame,
    Cursor,
    Ping,
    Subscribe,
    Unsubscribe,
    client_frame,
    message,
    websocket_text,
)
from notifications.protocol import SocketProtocol
from notifications.replay import follow_from
from notifications.stream import LiveStream
from notifications.topics import MAX_TOPICS, Channel, channel_of, is_still_allowed
from shared.errors import PROBLEM_JSON, InvalidToken, KeysUnavailable, Problem
from shared.middleware import request_id_of
from shared.tokens import Principal, TokenVerifier

SUBPROTOCOL = "tollhouse.v1"
STREAM_TIMEOUT = 5.0
"""Seconds that a new subscription waits for the event stream before the socket is told to come back later."""
EXPIRY_NOTICE = 60.0
"""Seconds before its token expires that a client is told so; half of its life if that is less."""


class _Close(Exception):
    """Ends a connection with a close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class LiveSockets:
    """ASGI middleware that serves `/v1/ws` itself: FastAPI's stack would hold 9 KiB for each socket that is open."""

    def __init__(self, app: ASGIApp, *, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == "/v1/ws":
            await _serve(WebSocket(scope, receive, send), self._state)
        else:
            await self._app(scope, receive, send)


async def _serve(socket: WebSocket, state: State) -> None:
    stream: LiveStream = state.live
    connection = Connection(socket, stream, state.verifier)
    try:
        if token := _bearer_token(socket.scope):
            connection.principal = await connection.verify(token)
            del token  # for as long as the socket is open
        stream.connections.enter(connection)
    except Problem as problem:
        stream.meters.refused(problem.code)
        await socket.send_denial_response(_denial(problem, request_id_of(socket.scope)))
        return
    try:
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
        await connection.run()
    except _Close as closing:
        connection.end(closing.code, closing.reason)
    except WebSocketDisconnect:
        pass
    except Exception:
        # uvicorn would leave the socket open: the client would hear nothing any more, and never know.
        connection.end(INTERNAL_ERROR, "internal error")
        raise
    finally:
        connection.leave()


def _bearer_token(scope: Scope) -> str:
    # Not by `socket.headers`, which would keep all of them.
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _denial(problem: Problem, request_id: str) -> Response:
    return Response(
        problem.body(request_id), problem.status, headers=problem.headers, media_type=PROBLEM_JSON
    )


class Connection:
    """One client's socket: reads what it asks; what it gets is written by whoever has it, without a task of its own."""

    __slots__ = (
        "_backlog",
        "_channels",
        "_expiry",
        "_socket",
        "_stream",
        "_verifier",
        "_wire",
        "address",
        "principal",
    )

    def __init__(self, socket: WebSocket, stream: LiveStream, verifier: TokenVerifier) -> None:
        self.address = address_of(socket.scope, stream.settings.trusted_proxies)
        self.principal: Principal | None = None
        self._socket = socket
        self._wire = SocketProtocol.of(socket.scope)
        self._stream = stream
        self._verifier = verifier
        self._backlog = stream.settings.socket_backlog
        self._channels: dict[str, Channel] = {}
        self._expiry: asyncio.TimerHandle | None = None

    async def verify(self, token: str) -> Principal:
        """Return who a token speaks for (see TokenVerifier.verify)."""
        return self._verifier.cached(token) or await self._verifier.verify(token)

    def write(self, data: bytes) -> None:
        """Take frames; a client that does not read them loses its connection, not its neighbours' time."""
        wire = self._wire
        if not wire.writable.is_set() and wire.transport.get_write_buffer_size() > self._backlog:
            self.end(TRY_AGAIN_LATER, "too slow")
        else:
            wire.write(data)

    def end(self, code: int, reason: str) -> None:
        """End the connection now."""
        self._stream.hub.leave(self)
        self._wire.end(code, reason)

    def leave(self) -> None:
        """The connection has ended: forget it, and say who it was if it was this side that ended it."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._stream.hub.leave(self)
        self._stream.connections.leave(self)
        if self._wire.ended is not None:
            self._stream.ended(self, *self._wire.ended, topics=list(self._channels))

    async def run(self) -> None:
        """Serve the client until one side ends it."""
        self._admit(self.principal or await self._first_frame())
        while True:
            received = await self._socket.receive()
            await self._drained()  # whoever asks faster than it reads the answers waits for itself
            try:
                await self._follow(client_frame.validate_json(_text_of(received)))
            except ValidationError:
                self._say(type="error", code="bad_frame", detail="Not a frame of this protocol.")
            except Problem as problem:
                self._say(type="error", code=problem.code, detail=problem.detail or problem.title)

    async def _first_frame(self) -> Principal:
        """Wait for the auth frame of a client that could not send a header."""
        try:
            async with asyncio.timeout(self._stream.settings.auth_timeout):
                frame = client_frame.validate_json(_text_of(await self._socket.receive()))
            if not isinstance(frame, Auth):
                raise _Close(POLICY_VIOLATION, "authenticate first")
            principal = await self.verify(frame.token)
            self._stream.connections.identify(self, principal)
        except TimeoutError:
            raise _Close(POLICY_VIOLATION, "not authenticated in time") from None
        except (ValidationError, InvalidToken):
            raise _Close(POLICY_VIOLATION, "bad token") from None
        except KeysUnavailable:
            raise _Close(TRY_AGAIN_LATER, "tokens cannot be verified yet") from None
        except TooManyConnections:
            raise _Close(TRY_AGAIN_LATER, "too many connections") from None
        return principal

    def _admit(self, principal: Principal) -> None:
        if self._stream.connections.is_revoked(principal):
            raise _Close(POLICY_VIOLATION, "session ended")
        if self._expiry is not None:
            self._expiry.cancel()
        left = max(0.0, principal.expires_at - time())
        notice = left - min(EXPIRY_NOTICE, left / 2)
        self._expiry = asyncio.get_running_loop().call_later(notice, self._expires_soon, principal.expires_at)
        self._say(type="ready", user_id=principal.id, expires_at=principal.expires_at)

    def _expires_soon(self, expires_at: int) -> None:
        left = max(0.0, expires_at - time())
        self._say(type="expiring", **{"in": round(left)})
        self._expiry = asyncio.get_running_loop().call_later(left, self.end, TOKEN_EXPIRED, "token expired")

    def _say(self, **members: object) -> None:
        self.write(websocket_text(message(**members)))

    async def _drained(self) -> None:
        """Wait until the client has taken most of what was written."""
        await self._wire.writable.wait()
        if self._wire.ending:
            raise WebSocketDisconnect

    async def _follow(self, frame: ClientFrame) -> None:
        match frame:
            case Ping():
                self._say(type="pong")
            case Auth():
                await self._authenticate_again(frame.token)
            case Subscribe():
                await self._subscribe(frame.topic, frame.cursor)
            case Unsubscribe():
                if self._channels.pop(frame.topic, None) is not None:
                    self._listen()

    async def _authenticate_again(self, token: str) -> None:
        try:
            principal = await self.verify(token)
        except InvalidToken:
            raise _Close(POLICY_VIOLATION, "bad token") from None
        if self.principal is not None and principal.id != self.principal.id:
            raise _Close(POLICY_VIOLATION, "token of another user")
        if not all(is_still_allowed(topic, principal) for topic in self._channels):
            raise _Close(POLICY_VIOLATION, "token without the scope of a topic")
        self._stream.connections.identify(self, principal)
        self._admit(principal)

    async def _subscribe(self, topic: str, cursor: str | None) -> None:
        assert self.principal is not None  # noqa: S101  # set before the first frame is followed
        channel = channel_of(topic, self.principal)
        start = None if cursor is None else _parse(cursor)
        if len(self._channels) >= MAX_TOPICS and topic not in self._channels:
            raise TooManyTopics(f"A connection has at most {MAX_TOPICS} topics.")
        await self._stream_is_followed()
        # Subscribing again with a cursor replays: nothing may arrive twice meanwhile.
        if self._channels.pop(topic, None) is not None:
            self._listen()
        self._say(type="subscribed", topic=topic, cursor=str(start or self._stream.hub.position))
        if start is not None:
            await self._replay(channel, start)
        self._channels[topic] = channel
        self._listen()

    def _listen(self) -> None:
        if not self._wire.ending:
            self._stream.hub.follow(self, self._channels.values(), websocket_text)

    async def _stream_is_followed(self) -> None:
        try:
            async with asyncio.timeout(STREAM_TIMEOUT):
                await self._stream.reader.caught_up.wait()
        except TimeoutError:
            raise _Close(TRY_AGAIN_LATER, "the event stream is not there yet") from None

    async def _replay(self, channel: Channel, start: Cursor) -> None:
        stream = self._stream
        try:
            replayed = await follow_from(
                start, (channel,), self,
                hub=stream.hub, history=stream.history, form=websocket_text, drained=self._drained,
            )  # fmt: skip
        except TimeoutError:
            raise _Close(TRY_AGAIN_LATER, "the event stream cannot be read now") from None
        stream.meters.replayed(replayed)


def _text_of(received: Message) -> str:
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received.get("code", 1006))
    # A binary frame is refused like any other that is no JSON object.
    return received.get("text") or "null"


def _parse(cursor: str) -> Cursor:
    try:
        return Cursor.parse(cursor)
    except ValueError:
        raise CursorInvalid("This is not a cursor of this stream.") from None
