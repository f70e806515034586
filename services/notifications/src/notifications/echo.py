"""A WebSocket that anybody may try a connection with (API.md, `/v1/ws/echo`)."""

import orjson
from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from notifications.protocol import SocketProtocol
from shared.times import utc_now

router = APIRouter()


@router.websocket("/ws/echo")
@router.websocket("/v1/ws/echo")
async def echo(socket: WebSocket) -> None:
    """Send every text frame back with the time."""
    await socket.accept()
    try:
        while True:
            text = await socket.receive_text()
            answer = {"echo": text, "server_time": utc_now().isoformat()}
            await socket.send_text(orjson.dumps(answer).decode())
    except WebSocketDisconnect:
        pass
    except KeyError:  # a binary frame, which has no text
        SocketProtocol.of(socket.scope).end(1003, "text frames only")
