"""Tables of the items service."""

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    Integer,
    Numeric,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

DOCUMENT = "to_tsvector('simple'::regconfig, (name || ' '::text) || COALESCE(description, ''::text))"
"""What is searched of an item; spelled as the index has it, or PostgreSQL would not use the index."""


class Base(DeclarativeBase):
    """Metadata of the service's own tables."""


class Item(Base):
    """Something offered. `owner_id` is null once the owner's account is gone."""

    __tablename__ = "items"
    __table_args__ = (
        CheckConstraint("price > 0", name="ck_items_price_positive"),
        Index("ix_items_created_at", "created_at", "id", "in_stock"),
        Index("ix_items_price", "price", "id", "in_stock"),
        Index("ix_items_name", "name", "id", "in_stock"),
        Index("ix_items_owner_id", "owner_id", "created_at", "id"),
        Index("ix_items_document", text(DOCUMENT), postgresql_using="gin"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    price: Mapped[Decimal] = mapped_column(Numeric(9, 2))
    in_stock: Mapped[bool] = mapped_column(Boolean)
    owner_id: Mapped[int | None] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(Integer, server_default="1")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ItemState(NamedTuple):
    """An item as it was read: one row of the table, with no session behind it."""

    id: int
    name: str
    description: str | None
    price: Decimal
    in_stock: bool
    owner_id: int | None
    version: int
    created_at: datetime
    updated_at: datetime


COLUMNS = tuple(getattr(Item, name) for name in ItemState._fields)
"""What a statement selects or returns to make an ItemState."""
