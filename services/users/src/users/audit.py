"""The audit trail: who did what to whose account, from where, in the transaction that did it; never a secret."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import delete, func
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.ids import new_id
from users.clients import Client
from users.events import AuditRecorded
from users.models import AuditRow
from users.settings import UsersSettings

Action = Literal[
    "account.registered",
    "account.changed",
    "account.deleted",
    "code.mailed",
    "email.confirmed",
    "key.rotated",
    "keys.replaced",
    "login.succeeded",
    "login.failed",
    "password.changed",
    "password.reset",
    "sessions.ended",
    "token.reused",
]


async def record(
    session: AsyncSession,
    action: Action,
    *,
    client: Client,
    actor_id: int | None = None,
    subject_user_id: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Put an act on record, and publish that it is. Without an actor it was nobody known, or the service itself."""
    row = await note(
        session, action, client=client, actor_id=actor_id, subject_user_id=subject_user_id, detail=detail
    )
    await outbox.add(session, AuditRecorded.of(row))


async def note(
    session: AsyncSession,
    action: Action,
    *,
    client: Client,
    actor_id: int | None = None,
    subject_user_id: int | None = None,
    detail: Mapping[str, Any] | None = None,
) -> AuditRow:
    """Put an act on record without an event: for what strangers can do as often as they like."""
    row = AuditRow(
        id=new_id(),
        action=action,
        actor_id=actor_id,
        subject_user_id=subject_user_id,
        address=client.address,
        request_id=client.request_id,
        detail=dict(detail or {}),
    )
    session.add(row)
    return row


async def prune(session: AsyncSession, settings: UsersSettings) -> None:
    """Delete what is older than the trail is kept."""
    retention = timedelta(seconds=settings.audit_retention)
    await session.execute(delete(AuditRow).where(AuditRow.at < func.now() - retention))
