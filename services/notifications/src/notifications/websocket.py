"""The live stream over WebSocket (API.md, `/v1/ws`). A socket holds no database session and waits for nobody."""

import asyncio
import re
from collections import deque
from contextlib import suppress
from time import time
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError
from starlette.responses import Response

from notifications.hub import MAX_CURSOR_LENGTH, Channel, Cursor, Hub, OutOfMemory, gap_frame
from notifications.live import LiveReader
from notifications.service import READ_SCOPE
from notifications.settings import NotificationsSettings
from shared.errors import PROBLEM_JSON, InvalidToken, KeysUnavailable, Problem
from shared.logs import get_logger
from shared.middleware import request_id_of
from shared.times import utc_now
from shared.tokens import Principal, TokenVerifier

log = get_logger(__name__)
router = APIRouter()

SUBPROTOCOL = "tollhouse.v1"
MAX_TOPICS = 100
REPLAY_BATCH = 200
STREAM_TIMEOUT = 5.0
"""Seconds that a new subscription waits for the event stream before the socket is told to come back later."""

POLICY_VIOLATION = 1008
TRY_AGAIN_LATER = 1013
TOKEN_EXPIRED = 4401


class _Auth(BaseModel):
    type: Literal["auth"]
    token: str


class _Subscribe(BaseModel):
    type: Literal["subscribe"]
    topic: Annotated[str, StringConstraints(max_length=40)]
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR_LENGTH)] | None = None


class _Unsubscribe(BaseModel):
    type: Literal["unsubscribe"]
    topic: Annotated[str, StringConstraints(max_length=40)]


class _Ping(BaseModel):
    type: Literal["ping"]


_ClientFrame = _Auth | _Subscribe | _Unsubscribe | _Ping
_ITEM_ID = re.compile(r"[1-9][0-9]*")
_client_frame: TypeAdapter[_ClientFrame] = TypeAdapter(Annotated[_ClientFrame, Field(discriminator="type")])


class _Close(Exception):
    """Ends a connection with a close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class _Refused(Exception):
    """A client frame that cannot be followed; the connection goes on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


@router.websocket("/ws/echo")
@router.websocket("/v1/ws/echo")
async def echo(socket: WebSocket) -> None:
    """Send every text frame back with the time, to try a connection with."""
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            answer = {"echo": text, "server_time": utc_now().isoformat()}
            await socket.send_text(orjson.dumps(answer).decode())
    except (WebSocketDisconnect, KeyError):  # KeyError: a binary frame, which has no text
        await _close_quietly(socket, 1003, "text frames only")


@router.websocket("/v1/ws")
async def live_stream(socket: WebSocket) -> None:
    """Serve the live stream to one client."""
    principal = None
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if token and scheme.lower() == "bearer":
        try:
            principal = await _verify(socket, token.strip())
        except (InvalidToken, KeysUnavailable) as problem:
            await socket.send_denial_response(_denial(problem, request_id_of(socket.scope)))
            return
    await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    connection = Connection(socket)
    try:
        await connection.run(principal)
    except* _Close as closings:
        closing = closings.exceptions[0]
        assert isinstance(closing, _Close)  # noqa: S101  # what except* selected
        log.info("socket.closed", code=closing.code, reason=closing.reason)
        await _close_quietly(socket, closing.code, closing.reason)
    except* WebSocketDisconnect:
        pass


def _denial(problem: Problem, request_id: str) -> Response:
    return Response(
        problem.body(request_id), problem.status, headers=problem.headers, media_type=PROBLEM_JSON
    )


async def _verify(socket: WebSocket, token: str) -> Principal:
    verifier: TokenVerifier = socket.app.state.verifier
    return verifier.cached(token) or await verifier.verify(token)


async def _close_quietly(socket: WebSocket, code: int, reason: str) -> None:
    with suppress(RuntimeError, WebSocketDisconnect):  # the client was faster
        await socket.close(code, reason)


class Connection:
    """One client's socket: a reader for what it asks, a writer for what it gets."""

    def __init__(self, socket: WebSocket) -> None:
        state = socket.app.state
        self._socket = socket
        self._settings: NotificationsSettings = state.settings
        self._hub: Hub = state.hub
        self._reader: LiveReader = state.live_reader
        self._principal: Principal | None = None
        self._channels: dict[str, Channel] = {}
        self._waiting: deque[str] = deque()
        self._something_waits = asyncio.Event()
        self._nothing_waits = asyncio.Event()
        self._ending: asyncio.Future[_Close] = asyncio.get_running_loop().create_future()
        self._expiry: asyncio.TimerHandle | None = None

    def offer(self, frame: str) -> None:
        """Queue a frame; a client that does not read loses its connection, not its neighbours' time."""
        if len(self._waiting) >= self._settings.socket_backlog:
            self._end(_Close(TRY_AGAIN_LATER, "too slow"))
            return
        self._waiting.append(frame)
        self._something_waits.set()

    def _end(self, closing: _Close) -> None:
        if not self._ending.done():
            self._ending.set_result(closing)

    async def run(self, principal: Principal | None) -> None:
        """Serve the client until one side ends it."""
        self._admit(principal or await self._first_frame())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write())
                tasks.create_task(self._close_when_ending())
                await self._read()
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            for channel in self._channels.values():
                self._hub.unsubscribe(channel, self)

    async def _first_frame(self) -> Principal:
        """Wait for the auth frame of a client that could not send a header."""
        try:
            async with asyncio.timeout(self._settings.auth_timeout):
                frame = _client_frame.validate_json(await self._receive())
            if not isinstance(frame, _Auth):
                raise _Close(POLICY_VIOLATION, "authenticate first")
            return await _verify(self._socket, frame.token)
        except TimeoutError:
            raise _Close(POLICY_VIOLATION, "not authenticated in time") from None
        except (ValidationError, InvalidToken):
            raise _Close(POLICY_VIOLATION, "bad token") from None
        except KeysUnavailable:
            raise _Close(TRY_AGAIN_LATER, "tokens cannot be verified yet") from None

    def _admit(self, principal: Principal) -> None:
        self._principal = principal
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(
            max(0.0, principal.expires_at - time()), self._end, _Close(TOKEN_EXPIRED, "token expired")
        )
        self._offer_json(type="ready", user_id=principal.id, expires_at=principal.expires_at)

    def _offer_json(self, **frame: object) -> None:
        self.offer(orjson.dumps(frame).decode())

    async def _receive(self) -> str:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        return (
            message.get("text") or "null"
        )  # a binary frame is refused like any other that is no JSON object

    async def _write(self) -> None:
        while True:
            await self._something_waits.wait()
            self._something_waits.clear()
            while self._waiting:
                await self._socket.send_text(self._waiting.popleft())
            self._nothing_waits.set()

    async def _close_when_ending(self) -> None:
        raise await self._ending

    async def _read(self) -> None:
        while True:
            text = await self._receive()
            if len(self._waiting) > self._settings.socket_backlog // 2:
                await self._drained()  # whoever asks faster than it reads the answers waits for itself
            try:
                await self._follow(_client_frame.validate_json(text))
            except ValidationError:
                self._offer_json(type="error", code="bad_frame", detail="Not a frame of this protocol.")
            except _Refused as refusal:
                self._offer_json(type="error", code=refusal.code, detail=refusal.detail)

    async def _follow(self, frame: _ClientFrame) -> None:
        match frame:
            case _Ping():
                self._offer_json(type="pong")
            case _Auth():
                await self._authenticate_again(frame.token)
            case _Subscribe():
                await self._subscribe(frame.topic, frame.cursor)
            case _Unsubscribe():
                channel = self._channels.pop(frame.topic, None)
                if channel is not None:
                    self._hub.unsubscribe(channel, self)

    async def _authenticate_again(self, token: str) -> None:
        try:
            principal = await _verify(self._socket, token)
        except InvalidToken:
            raise _Close(POLICY_VIOLATION, "bad token") from None
        except KeysUnavailable:
            raise _Refused("keys_unavailable", "Tokens cannot be verified yet. Try again.") from None
        if self._principal is not None and principal.id != self._principal.id:
            raise _Close(POLICY_VIOLATION, "token of another user")
        if "me" in self._channels and READ_SCOPE not in principal.scopes:
            raise _Close(POLICY_VIOLATION, "token without the scope of a topic")
        self._admit(principal)

    async def _subscribe(self, topic: str, cursor: str | None) -> None:
        channel = self._channel(topic)
        start = None if cursor is None else self._parse(cursor)
        if len(self._channels) >= MAX_TOPICS and topic not in self._channels:
            raise _Refused("too_many_topics", f"A socket has at most {MAX_TOPICS} topics.")
        await self._stream_is_followed()
        # Subscribing again with a cursor replays: nothing may arrive twice meanwhile.
        self._hub.unsubscribe(channel, self)
        self._channels[topic] = channel
        self._offer_json(type="subscribed", topic=topic, cursor=str(start or self._hub.position))
        if start is not None:
            await self._replay(channel, start)
        self._hub.subscribe(channel, self)

    def _channel(self, topic: str) -> Channel:
        match topic.split("."):
            case ["items"]:
                return Channel("items")
            case ["items", item_id] if _ITEM_ID.fullmatch(item_id):
                return Channel(topic)
            case ["me"] if self._principal is not None:
                if READ_SCOPE not in self._principal.scopes:
                    raise _Refused("insufficient_scope", f"The topic me needs the scope {READ_SCOPE}.")
                return Channel("me", self._principal.id)
        raise _Refused("unknown_topic", "Topics are items, items.<id> and me.")

    def _parse(self, cursor: str) -> Cursor:
        try:
            return Cursor.parse(cursor)
        except ValueError:
            raise _Refused("cursor_invalid", "This is not a cursor of this stream.") from None

    async def _stream_is_followed(self) -> None:
        try:
            async with asyncio.timeout(STREAM_TIMEOUT):
                await self._reader.caught_up.wait()
        except TimeoutError:
            raise _Close(TRY_AGAIN_LATER, "the event stream is not there yet") from None

    async def _replay(self, channel: Channel, start: Cursor) -> None:
        """Queue what came after `start`; when this returns, no event lies between the last queued and the hub's next."""
        position = start
        # Half the backlog at most: the other half is for what the other topics bring meanwhile.
        batch = min(REPLAY_BATCH, max(1, self._settings.socket_backlog // 2))
        while True:
            try:
                missed = self._hub.after(position, channel, limit=batch)
            except OutOfMemory:
                self.offer(gap_frame(channel.topic, position, self._hub.position))
                return
            for sequence, frame in missed:
                self.offer(frame)
                position = Cursor(position.epoch, sequence)
            if len(missed) < batch:
                return
            await self._drained()

    async def _drained(self) -> None:
        """Let the writer catch up before more is queued."""
        self._nothing_waits.clear()
        await self._nothing_waits.wait()
