"""The benchmark's peer: a tutorial's service that commits and then sends to its own sockets. A crash between loses the event."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal

import orjson
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel
from sqlalchemy import Numeric, Text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

sessions = async_sessionmaker(create_async_engine(os.environ["DATABASE_URL"]))
sockets: set[WebSocket] = set()


class Base(DeclarativeBase):
    """Tables."""


class Item(Base):
    """Something on offer."""

    __tablename__ = "peer_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    price: Mapped[Decimal] = mapped_column(Numeric)


class ItemUpdate(BaseModel):
    """What can be changed."""

    name: str
    price: Decimal


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Make the table, with the items that are written."""
    async with sessions() as session:
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)
        session.add_all(Item(id=number, name="x", price=Decimal(1)) for number in range(1, 100))
        await session.commit()
    yield


app = FastAPI(lifespan=lifespan)


@app.put("/v1/items/{item_id}")
async def update(item_id: int, body: ItemUpdate) -> dict[str, object]:
    """Change an item, then tell everybody."""
    async with sessions() as session:
        item = await session.get_one(Item, item_id)
        item.name, item.price = body.name, body.price
        event = {
            "time": datetime.now(UTC),
            "type": "items.item.updated.v1",
            "data": {"id": item_id, "name": body.name},
        }
        await session.commit()
    message = orjson.dumps({"type": "event", "event": event}).decode()
    for socket in list(sockets):
        with suppress(RuntimeError, WebSocketDisconnect):
            await socket.send_text(message)
    return {"id": item_id}


@app.websocket("/v1/ws")
async def listen(socket: WebSocket) -> None:
    """Listen until the client leaves."""
    await socket.accept()
    await socket.receive_text()
    await socket.send_text('{"type":"subscribed"}')
    sockets.add(socket)
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        sockets.discard(socket)
