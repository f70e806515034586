"""A client of the live stream, and what the tests change of it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from notifications.server_frames import server_frame


def ws(url: str, path: str = "/v1/ws") -> str:
    return url.replace("http://", "ws://") + path


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        text = await socket.recv()
    frame: dict[str, Any] = json.loads(text)
    if "echo" not in frame:
        server_frame.validate_json(text)  # as it is documented
    return frame


async def closed(socket: ClientConnection) -> int:
    """Wait for the close frame; return its code."""
    async with asyncio.timeout(15):
        with contextlib.suppress(ConnectionClosed):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code


@contextlib.asynccontextmanager
async def subscribed(
    url: str, headers: dict[str, str], topic: str, cursor: str | None = None
) -> AsyncIterator[ClientConnection]:
    async with connect(ws(url), additional_headers=headers, proxy=None) as socket:
        assert (await receive(socket))["type"] == "ready"
        frame = {"type": "subscribe", "topic": topic}
        await socket.send(json.dumps(frame if cursor is None else {**frame, "cursor": cursor}))
        answer = await receive(socket)
        assert (answer["type"], answer["topic"]) == ("subscribed", topic)
        yield socket


def configure(app: FastAPI, **changes: Any) -> None:
    """Change settings of the running application."""
    settings = app.state.live.settings.model_copy(update=changes)
    app.state.live = replace(app.state.live, settings=settings)
