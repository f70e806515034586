"""Items in the usual way: FastAPI, Pydantic and SQLAlchemy's asynchronous ORM, as their documentation shows it.

The same table in the same database, but no tokens, versions, events or conditional requests. Run by uvicorn.
"""

import os
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Identity, Numeric, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Metadata."""


class Item(Base):
    """The table."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    price: Mapped[Decimal] = mapped_column(Numeric(9, 2))
    in_stock: Mapped[bool]
    owner_id: Mapped[int | None]
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ItemCreate(BaseModel):
    """What is written."""

    name: str
    description: str | None = None
    price: Decimal
    in_stock: bool = True


class ItemRead(ItemCreate):
    """What is read."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    owner_id: int | None
    version: int
    created_at: datetime
    updated_at: datetime


engine = create_async_engine(
    os.environ.get("DATABASE_URL", "postgresql+psycopg://"), pool_size=10, max_overflow=0
)
sessions = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    """One session for each request."""
    async with sessions() as session:
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]
app = FastAPI()


@app.post("/v1/items", response_model=ItemRead, status_code=201)
async def create_item(body: ItemCreate, session: SessionDep) -> Item:
    """Create."""
    item = Item(**body.model_dump())
    session.add(item)
    await session.commit()
    await session.refresh(item)
    return item


@app.get("/v1/items", response_model=list[ItemRead])
async def list_items(session: SessionDep, skip: int = 0, limit: int = 50) -> Sequence[Item]:
    """List."""
    return (await session.scalars(select(Item).order_by(Item.id).offset(skip).limit(limit))).all()


@app.get("/v1/items/{item_id}", response_model=ItemRead)
async def read_item(item_id: int, session: SessionDep) -> Item:
    """Read."""
    item = await session.get(Item, item_id)
    if item is None:
        raise HTTPException(status_code=404, detail="Item not found")
    return item
