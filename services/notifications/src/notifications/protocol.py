"""The WebSocket protocol: frames made once go straight to the transport, and clients that do not read are parted with."""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame

from notifications.waiting import Flag, Inbox
from shared.edge_asgi import EdgeWebSocketProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a client has to take what is left and to answer the close frame."""
PING_INTERVAL: Final = 20.0
"""Seconds between two pings."""
PONG_TIMEOUT: Final = 20.0
"""Seconds that a client has to answer one; then it is taken for dead."""
NO_PONG: Final = (1011, "no pong")
SLICE: Final = 8 * 1024
"""Bytes of one client that are parsed before others have a turn: a thousand frames, or a part of one."""
TOO_MANY_FRAGMENTS: Final = (1009, "too many fragments")
UNREAD_PONGS: Final = (1013, "too slow")
MAX_FRAGMENTS: Final = 1024
"""Frames of one message: empty ones count for nothing in its size, yet each takes memory."""
MAX_UNREAD_PONGS: Final = 1024
"""Pongs written for a client that does not read them."""

_WIRE: Final = "wire"


class SocketProtocol(EdgeWebSocketProtocol):
    """uvicorn's protocol, with a way round ASGI for what is written to many, and one that ends a socket at once.

    uvicorn itself waits for the socket to be writable before it sends a close frame, and for the buffer to empty before
    it closes the connection: a client that has stopped reading would stay for ever. It parses all that it reads at once,
    too, and writes pongs for as long as it is asked, whether or not somebody reads them.
    """

    # Of the class, so that sockets that need none of it do not pay for it.
    _rest = b""
    """Read and not parsed yet; nothing more is read meanwhile."""
    _turn: asyncio.Handle | None = None
    _unread_pongs = 0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.app_state = {**app_state, _WIRE: self}
        # Where uvicorn has asyncio's own.
        self.queue = Inbox()  # type: ignore[assignment]
        self.writable = Flag(is_set=True)  # type: ignore[assignment]
        self.ping_interval, self.ping_timeout = PING_INTERVAL, PONG_TIMEOUT
        self.ended: tuple[int, str] | None = None
        """Code and reason with which this side ended the socket."""

    @staticmethod
    def of(scope: Scope) -> "SocketProtocol":
        """Return the protocol object of a socket that an application has the scope of."""
        wire: SocketProtocol = scope["state"][_WIRE]
        return wire

    @property
    def ending(self) -> bool:
        """Whether nothing more can be said."""
        return self.close_sent or self.transport.is_closing()

    def write(self, frames: bytes) -> None:
        """Send whole frames without waiting."""
        if not self.close_sent and not self.transport.is_closing():
            self.transport.write(frames)

    def end(self, code: int, reason: str) -> None:
        """Send a close frame now, behind what waits; the application is told that the client has gone."""
        if self.ending or not self.handshake_complete:
            return
        self.ended = (code, reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        try:
            self.conn.send_close(code, reason)
        except InvalidState:
            self.transport.close()  # the client was faster
            return
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.stop_keepalive()
        self.writable.set()
        self.read_paused = False
        self._go_on()
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Parse what was read, in turns: megabytes of tiny frames must not hold up what others get."""
        if not self.handshake_complete:
            super().data_received(data)
            return
        super().data_received(data[:SLICE])
        if len(data) > SLICE:
            self._rest = data[SLICE:]
            self._go_on()

    def _go_on(self) -> None:
        """Parse the rest of what was read, then read on; not while the application has messages to take."""
        if self.read_paused or self.transport.is_closing():
            return
        if not self._rest:
            self.transport.resume_reading()
            return
        self.transport.pause_reading()
        if self._turn is None:
            self._turn = self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        rest, self._rest = self._rest, b""
        if not self.transport.is_closing():
            self.data_received(rest)
            if not self._rest:
                self._go_on()

    async def receive(self) -> "ASGIReceiveEvent":
        """Return the next message; once the last is taken, reading goes on."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return message

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment of a message."""
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self.frames.clear()
            self.end(*TOO_MANY_FRAGMENTS)

    def handle_ping(self) -> None:
        """Answer a ping; one who asks without end and reads no answer is parted with."""
        if self.close_sent:
            self.conn.data_to_send()
            return
        super().handle_ping()
        if not self.writable.is_set():
            self._unread_pongs += 1
            if self._unread_pongs > MAX_UNREAD_PONGS:
                self.end(*UNREAD_PONGS)
        elif self._unread_pongs:
            self._unread_pongs = 0

    def keepalive_timeout(self) -> None:
        """No pong came."""
        self.ended = NO_PONG
        super().keepalive_timeout()
        self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)

    async def send(self, message: "ASGISendEvent") -> None:
        """Send; a close frame does not wait."""
        if message["type"] == "websocket.close" and self.handshake_complete:
            self.end(message.get("code", 1000), message.get("reason", "") or "")
            return
        await super().send(message)
        if message["type"] == "websocket.accept":
            self._forget_handshake()

    def _forget_handshake(self) -> None:
        """Let go of what only the handshake needed: 5 KiB for as long as the socket is open."""
        self.scope["headers"] = []
        del self.request, self.response
