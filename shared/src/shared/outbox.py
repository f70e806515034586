"""Transactional outbox: the row that changes and the event that says so share one commit."""

from datetime import datetime

from sqlalchemy import BigInteger, DateTime, Identity, Index, LargeBinary, MetaData, Text, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database import execute, wake_relay_after_commit
from shared.events import Event, Outgoing, encode

metadata = MetaData()
"""Tables of the event mechanisms: part of every service's database."""


class _Base(DeclarativeBase):
    metadata = metadata


class OutboxRow(_Base):
    """An event to publish, or published and kept for a while so that a lost stream can be refilled."""

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_unpublished", "id", postgresql_where="published_at IS NULL"),
        Index("ix_outbox_published_at", "published_at", postgresql_where="published_at IS NOT NULL"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    event_id: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    aggregate: Mapped[str] = mapped_column(Text)
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    published_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class InboxRow(_Base):
    """An event that a consumer has dealt with: its effect and this row share one commit."""

    __tablename__ = "inbox"
    __table_args__ = (Index("ix_inbox_received_at", "received_at"),)

    consumer: Mapped[str] = mapped_column(Text, primary_key=True)
    event_id: Mapped[str] = mapped_column(Text, primary_key=True)
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


_ADD = (
    b"INSERT INTO outbox (event_id, subject, aggregate, payload) SELECT * FROM "
    b"unnest(%(event_id)s::text[], %(subject)s::text[], %(aggregate)s::text[], %(payload)s::bytea[])"
)


async def add(session: AsyncSession, *events: Event) -> None:
    """Write events to the outbox in the session's transaction.

    Pending changes are flushed first: the outbox row's id must be drawn after the row lock of its aggregate is held,
    or two transactions could publish one aggregate's versions in the wrong order.
    """
    if not events:
        return
    if session.new or session.dirty or session.deleted:
        await session.flush()
    columns = zip(*map(encode, events), strict=True)
    await execute(session, _ADD, dict(zip(Outgoing._fields, map(list, columns), strict=True)))
    wake_relay_after_commit(session)
