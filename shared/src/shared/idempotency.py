"""Idempotency keys: a request that is sent again gets the first answer again, and has no second effect.

The answer is kept in the transaction of its effect, so there is never one without the other. A transaction-level
advisory lock tells a twin that runs at the same time. After draft-ietf-httpapi-idempotency-key-header-07.
"""

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any

from fastapi import Header, Request
from fastapi.responses import Response
from sqlalchemy import (
    BigInteger,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database import Database
from shared.errors import Problem
from shared.logs import get_logger

log = get_logger(__name__)

LIFE = timedelta(hours=24)
PRUNE_INTERVAL = 600.0
"""Seconds between two rounds of deleting what is older; every replica makes them, which does no harm."""
PRUNE_BATCH = 1000
REPLAYED = "Idempotent-Replayed"
REPLAYABLE: dict[str, Any] = {
    "headers": {
        REPLAYED: {
            "description": "`true` where this is the first answer to the same Idempotency-Key again.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    }
}
"""What OpenAPI says of an answer that is kept."""

metadata = MetaData()
"""The table of the services that honour idempotency keys."""


class _Base(DeclarativeBase):
    metadata = metadata


class KeptAnswer(_Base):
    """The answer to a request that had an idempotency key."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    user_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    route: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[dict[str, str]] = mapped_column(JSONB)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class IdempotencyKeyReused(Problem):
    """The idempotency key was used before, for a request with another payload."""

    status = 422
    code = "idempotency_key_reused"
    title = "Idempotency key reused"


class IdempotencyInProgress(Problem):
    """A request with this idempotency key is still running. Try again."""

    status = 409
    code = "idempotency_in_progress"
    title = "Request in progress"

    def __init__(self) -> None:
        super().__init__(headers={"Retry-After": "1"})


PROBLEMS: tuple[type[Problem], ...] = (IdempotencyKeyReused, IdempotencyInProgress)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="Any token of the client's choice, such as a UUID. The same key with the same payload gets the first "
        "answer again, for 24 hours.",
        examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
    ),
]
"""The request header, as a parameter of a route."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request with, or without, an idempotency key. `earlier` is the first answer, if there was one."""

    session: AsyncSession
    user_id: int
    route: str
    key: str | None
    fingerprint: bytes = b""
    earlier: Response | None = None

    async def keep(self, answer: Response) -> Response:
        """Keep the answer, in the transaction of what it answers for; returns it."""
        if self.key is None or not 200 <= answer.status_code < 300:
            return answer
        values = {
            "fingerprint": self.fingerprint,
            "status": answer.status_code,
            "headers": {name: value for name, value in answer.headers.items() if name != "content-length"},
            "body": bytes(answer.body),
            "created_at": func.now(),
        }
        identity = {"user_id": self.user_id, "route": self.route, "key": self.key}
        keep = insert(KeptAnswer).values(**identity, **values)
        # What is in the way has outlived its 24 hours and was not deleted yet.
        await self.session.execute(keep.on_conflict_do_update(index_elements=list(identity), set_=values))
        return answer


async def begin(session: AsyncSession, request: Request, key: str | None, *, user_id: int) -> Attempt:
    """Begin to answer a request: first thing in its transaction, once it is known to be allowed and valid.

    Raises:
        IdempotencyInProgress: another transaction is at it.
        IdempotencyKeyReused: the key's first payload was another one.
    """
    route = f"{request.method} {request.scope['route'].path}"
    if key is None:
        return Attempt(session, user_id, route, None)
    lock = func.pg_try_advisory_xact_lock(func.hashtextextended(f"{user_id} {route} {key}", 0))
    if not await session.scalar(select(lock)):
        raise IdempotencyInProgress
    fingerprint = _fingerprint(await request.body())
    # Not one statement with the lock: its snapshot would be older than the lock, and miss what a twin has just kept.
    kept = await session.scalar(
        select(KeptAnswer).where(
            KeptAnswer.user_id == user_id,
            KeptAnswer.route == route,
            KeptAnswer.key == key,
            KeptAnswer.created_at > func.now() - LIFE,
        )
    )
    earlier = None
    if kept is not None:
        if kept.fingerprint != fingerprint:
            raise IdempotencyKeyReused("This key was used for another payload.")
        earlier = Response(kept.body, kept.status, headers={**kept.headers, REPLAYED: "true"})
    return Attempt(session, user_id, route, key, fingerprint, earlier)


def _fingerprint(body: bytes) -> bytes:
    """Tell payloads apart by what they say: neither white space nor the order of members makes another one."""
    return sha256(json.dumps(json.loads(body), sort_keys=True).encode()).digest()


async def forget(session: AsyncSession, *, user_id: int) -> None:
    """Delete the answers kept for a person."""
    await session.execute(delete(KeptAnswer).where(KeptAnswer.user_id == user_id))


async def keep_pruning(database: Database) -> None:
    """Delete kept answers that have outlived their 24 hours, until cancelled."""
    while True:
        try:
            while await _prune_some(database):
                pass
        except (SQLAlchemyError, OSError) as error:
            log.warning("idempotency.prune_failed", error=type(error).__name__)
        await asyncio.sleep(PRUNE_INTERVAL)


async def _prune_some(database: Database) -> bool:
    """Delete a batch, small enough to be in nobody's way; returns whether there may be more."""
    identity = (KeptAnswer.user_id, KeptAnswer.route, KeptAnswer.key)
    old = select(*identity).where(KeptAnswer.created_at < func.now() - LIFE)
    async with database.transaction() as session:
        deleted = await session.execute(
            delete(KeptAnswer)
            .where(tuple_(*identity).in_(old.limit(PRUNE_BATCH).with_for_update(skip_locked=True)))
            .returning(KeptAnswer.user_id)
        )
        return len(deleted.all()) == PRUNE_BATCH
