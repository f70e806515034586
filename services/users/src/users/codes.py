"""Mailed codes: single-use, short-lived, stored as digests, sent by the notifications service.

The code itself is in the mail and in the command that asks for it, nowhere else.
"""

import hashlib
import secrets
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.ids import new_id
from shared.times import utc_now
from users import audit, service
from users.clients import Client
from users.errors import CodeInvalid, UserNotFound
from users.events import SendMail
from users.models import MailedCode, User
from users.settings import UsersSettings

CODE_BYTES = 16
Purpose = Literal["verify_email", "change_email", "reset_password"]


async def send(
    session: AsyncSession,
    settings: UsersSettings,
    user: User,
    *,
    purpose: Purpose,
    email: str,
    key: str,
    client: Client,
    actor_id: int | None = None,
) -> None:
    """Mail a new code to `email`; earlier ones for the same purpose are void. Too soon after the last: nothing.

    Raises:
        UserNotFound: the account is gone.
    """
    now = utc_now()
    # One sender at a time for each account, or parallel requests would all find that none was sent lately.
    await service.lock(session, user.id)
    since = now - timedelta(seconds=settings.code_interval)
    latest = select(MailedCode.created_at).where(
        MailedCode.email_key == key, MailedCode.purpose == purpose, MailedCode.created_at > since
    )
    if await session.scalar(latest.limit(1)) is not None:
        return
    await void(session, user.id, purpose)
    code = secrets.token_urlsafe(CODE_BYTES)
    session.add(
        MailedCode(
            digest=_digest(code),
            purpose=purpose,
            user_id=user.id,
            email=email,
            email_key=key,
            created_at=now,
            expires_at=now + timedelta(seconds=settings.code_ttl),
        )
    )
    await audit.note(
        session,
        "code.mailed",
        actor_id=actor_id,
        subject_user_id=user.id,
        client=client,
        detail={"purpose": purpose},
    )
    await outbox.add(
        session,
        SendMail(
            id=new_id(),
            user_id=user.id,
            to=email,
            template=purpose,
            values={"code": code, "minutes": settings.code_ttl // 60},
        ),
    )


async def seconds_to_wait(
    session: AsyncSession, settings: UsersSettings, user_id: int, purpose: Purpose
) -> float:
    """Return how long an account has to wait for its next code for this purpose; 0 or less: not at all."""
    latest = await session.scalar(
        select(MailedCode.created_at).where(MailedCode.user_id == user_id, MailedCode.purpose == purpose)
    )
    if latest is None:
        return 0.0
    return settings.code_interval - (utc_now() - latest).total_seconds()


async def prune(session: AsyncSession) -> None:
    """Delete codes that are good no more."""
    await session.execute(delete(MailedCode).where(MailedCode.expires_at < utc_now()))


async def check(session: AsyncSession, code: str, purpose: Purpose) -> None:
    """Say no to a code that `redeem` would refuse anyway, before anything is spent on it.

    Raises:
        CodeInvalid: it is unknown, expired or for another purpose.
    """
    good = select(MailedCode.user_id).where(
        MailedCode.digest == _digest(code),
        MailedCode.purpose == purpose,
        MailedCode.expires_at > utc_now(),
    )
    if await session.scalar(good) is None:
        raise CodeInvalid


async def redeem(session: AsyncSession, code: str, *purposes: Purpose) -> tuple[MailedCode, User]:
    """Use a code up; return it and the account that it is for, locked.

    A code that verifies an address or resets a password was mailed to the account's address; if that is another one by
    now, the code is void: whoever reads the old mailbox must have no say any more.

    Raises:
        CodeInvalid: it is unknown, expired, used, void, or for another purpose.
    """
    is_this = MailedCode.digest == _digest(code)
    owner = await session.scalar(select(MailedCode.user_id).where(is_this))
    if owner is None:
        raise CodeInvalid
    try:
        user = await service.lock(session, owner)
    except UserNotFound:
        raise CodeInvalid from None
    redeemed: MailedCode | None = await session.scalar(
        delete(MailedCode)
        .where(is_this, MailedCode.purpose.in_(purposes), MailedCode.expires_at > utc_now())
        .returning(MailedCode)
    )
    if redeemed is None or (redeemed.purpose != "change_email" and redeemed.email_key != user.email_key):
        raise CodeInvalid
    return redeemed, user


async def void(session: AsyncSession, user_id: int, purpose: Purpose) -> None:
    """Let no code for this purpose be good any more."""
    await session.execute(
        delete(MailedCode).where(MailedCode.user_id == user_id, MailedCode.purpose == purpose)
    )


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()
