"""The WebSocket protocol, made to part with clients that do not read."""

from typing import TYPE_CHECKING

from shared.edge import EdgeWebSocketProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

CLOSE_TIMEOUT = 5.0
"""Seconds that a client has to take what is left and to answer the close frame."""


class SocketProtocol(EdgeWebSocketProtocol):
    """Closes at once, and for good.

    uvicorn waits for the socket to be writable before it sends a close frame, and for the buffer to empty before it
    closes the connection: a client that has stopped reading would stay for ever.
    """

    async def send(self, message: "ASGISendEvent") -> None:
        """Send; a close frame goes into the buffer even when that is full, and the connection ends soon after."""
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
        await super().send(message)
