"""What lies between the edge and an ASGI application: uvicorn's request cycle and WebSocket protocol, with their faults put
right."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from typing import Final

from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from shared.errors import PROBLEM_JSON, InternalError
from shared.ids import new_id

HELD_LIMIT: Final = 64 * 1024
"""Bytes of pipelined requests (or of frames before a WebSocket is accepted) kept before reading pauses."""
_UNTIL_CLOSE: Final = -1
_FRAMING = frozenset({b"connection", b"keep-alive", b"transfer-encoding"})
_BODILESS = frozenset({*range(100, 200), 204, 304})


def reset(transport: asyncio.Transport) -> None:
    """Cut a connection so that the other side cannot take it for an orderly end (SECURITY G6).

    A plain close ends a response without Content-Length or chunks as if it were complete; a reset does not.
    """
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class EdgeCycle(RequestResponseCycle):
    """One request and its response over ASGI.

    Unlike uvicorn's: HTTP/1.0 clients never get chunks; a response that begins before the request was read whole says
    `Connection: close`; head and body of a response of known length leave in one write; an application that fails
    answers problem+json.
    """

    _head = b""
    _bodiless = False

    async def run_asgi(self, app: ASGI3Application) -> None:
        try:
            await app(self.scope, self.receive, self.send)
            if not self.response_complete and not self.disconnected:
                self.logger.error("The application returned without completing its response.")
        except Exception:
            self.logger.exception("Exception in ASGI application")
        finally:
            if not self.disconnected:
                self._finish_for_application()
            self.on_response = _nothing  # breaks the reference cycle with the connection

    def _finish_for_application(self) -> None:
        if not self.response_started:
            body = InternalError().body(new_id())
            headers = ((b"content-type", PROBLEM_JSON.encode()), (b"content-length", b"%d" % len(body)))
            self._start_response(500, headers)
            self._continue_response(body, more_body=False)
        elif not self.response_complete:
            reset(self.transport)  # a response cut short must not look complete

    async def send(self, message: ASGISendEvent) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started and message["type"] == "http.response.start":
            self._start_response(message["status"], message.get("headers", ()))
        elif self.response_started and not self.response_complete and message["type"] == "http.response.body":
            self._continue_response(message.get("body", b""), more_body=message.get("more_body", False))
        else:
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}.")

    def _start_response(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        self.keep_alive = self.keep_alive and not self.more_body
        self._bodiless = status in _BODILESS or self.scope["method"] == "HEAD"
        length = None
        content = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *fields):
            if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
                raise RuntimeError("Invalid HTTP header.")
            name = name.lower()  # noqa: PLW2901
            if name in _FRAMING:
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
                continue  # how the message is framed is decided here
            if name == b"content-length":
                length = int(value)
            content += (name, b": ", value, b"\r\n")
        self.chunked_encoding = False
        if self._bodiless:
            pass
        elif length is not None:
            self.expected_content_length = length
        elif self.scope["http_version"] == "1.0":
            self.expected_content_length = _UNTIL_CLOSE
        else:
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            content.append(b"connection: close\r\n")
        content.append(b"\r\n")
        if length is None:
            self.transport.write(b"".join(content))
        else:
            self._head = b"".join(content)  # leaves with the body

    def _continue_response(self, body: bytes, *, more_body: bool) -> None:
        if self._bodiless:
            body = b""
        elif self.chunked_encoding:
            chunk = (b"%x\r\n" % len(body), body, b"\r\n") if body else ()
            body = b"".join((*chunk, b"" if more_body else b"0\r\n\r\n"))
        elif self.expected_content_length != _UNTIL_CLOSE:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more_body):
                raise RuntimeError("The response body is not as long as its Content-Length.")
        if self._head:
            body = self._head + body
            self._head = b""
        if body:
            self.transport.write(body)
        if not more_body:
            self.response_complete = True
            self.message_event.set()
            self.on_response()


def _nothing() -> None:
    pass


class EdgeWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's sans-io WebSocket protocol, which waits with frames until the application has accepted the socket.

    Frames in the handshake's own segment would otherwise be answered (a ping) before the handshake is.
    """

    _early = b""

    def data_received(self, data: bytes) -> None:
        if not self.handshake_initiated:
            end = data.find(b"\r\n\r\n") + 4  # the edge delivers the head whole
            self._early = data[end:]
            super().data_received(data[:end])
        elif not self.handshake_complete:
            self._early += data
            if len(self._early) > HELD_LIMIT:
                self.transport.pause_reading()
                self.read_paused = True
        else:
            super().data_received(data)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self._early and self.handshake_complete and not self.close_sent:
            early, self._early = self._early, b""
            super().data_received(early)
