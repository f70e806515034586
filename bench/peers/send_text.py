"""The benchmark's peer: the fan-out of a tutorial, `await socket.send_text()` for one socket after the other."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

EPOCH = "01a20f59b6207781b8fc39ab395a3ad6"
LONGEST_LINE = 1024 * 1024

sockets: set[WebSocket] = set()


async def broadcast(event: str, sequence: int) -> None:
    """Send an event to everybody."""
    message = f'{{"type":"event","topic":"items","cursor":"{EPOCH}.{sequence}","event":{event}}}'
    for socket in list(sockets):
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_text(message)


async def publish(source: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Broadcast each line that comes."""
    sequence = 0
    while line := await source.readline():
        sequence += 1
        await broadcast(line.decode().rstrip("\n"), sequence)
    writer.close()


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Take lines on SOURCE_PORT while the application runs."""
    server = await asyncio.start_server(
        publish, "127.0.0.1", int(os.environ["SOURCE_PORT"]), limit=LONGEST_LINE
    )
    async with server:
        yield


app = FastAPI(lifespan=lifespan)


@app.websocket("/")
async def listen(socket: WebSocket) -> None:
    """Listen until the client leaves."""
    await socket.accept()
    sockets.add(socket)
    try:
        while True:
            await socket.receive()
    except (RuntimeError, WebSocketDisconnect):
        pass
    finally:
        sockets.discard(socket)
