"""Login sessions and their refresh tokens.

A session is a family of refresh tokens, each the successor of the one before: the successor is HMAC(key, token), so that
a repeated request (two tabs, a lost response) can be answered with the same one although only digests are stored. A
token that is used again later, or after its successor was used, was stolen or copied: the whole session ends.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.database import Database
from shared.ids import new_id
from shared.times import utc_now
from shared.tokens import LEEWAY
from users import audit
from users.clients import ITSELF, Client
from users.errors import InvalidCredentials, InvalidGrant, InvalidScope, SessionNotFound
from users.events import SessionRevoked
from users.models import LoginSession, RefreshToken, User
from users.service import granted_scopes
from users.settings import UsersSettings

TOKEN_BYTES = 32
MAX_LISTED = 200
PRUNED_AT_ONCE = 100
ENDED_AT_ONCE = 500
KEPT_AFTER_EXPIRY = timedelta(days=1)
"""Longer than an access token lives: until then it may have to be revoked."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What a token response is made of."""

    session: LoginSession
    scopes: list[str]
    refresh_token: str


async def start(
    session: AsyncSession, settings: UsersSettings, verified: User, *, scope: str, client: Client
) -> Granted:
    """Open a session for somebody whose password was just verified.

    Raises:
        InvalidCredentials: meanwhile the account was deleted or deactivated, or got another password.
        InvalidScope: the account lacks a scope that was asked for.
    """
    # Logins share this lock. Whoever changes the account waits for it and then ends this session too, or was first.
    user = await session.get(User, verified.id, with_for_update={"read": True})
    if user is None or not user.is_active or user.password_hash != verified.password_hash:
        raise InvalidCredentials
    scopes = granted_scopes(user, scope)
    login = LoginSession(
        id=new_id(),
        user_id=user.id,
        scopes=scopes,
        label=client.label,
        address=client.address,
        expires_at=utc_now() + timedelta(seconds=settings.session_ttl),
    )
    token = secrets.token_bytes(TOKEN_BYTES)
    session.add(login)
    await session.flush()
    session.add(RefreshToken(digest=_digest(token), session_id=login.id))
    return Granted(login, scopes, _encode(token))


async def refresh(
    database: Database, settings: UsersSettings, refresh_token: str, *, scope: str, client: Client
) -> Granted:
    """Exchange a refresh token for its successor.

    In a transaction of its own: that a token was used twice must be remembered although the answer is an error.

    Raises:
        InvalidGrant: the token is unknown, expired, revoked or was used before.
        InvalidScope: more was asked for than the session was granted.
    """
    async with database.transaction() as session:
        granted = await _rotate(
            session, settings, _decode(refresh_token), wanted=set(scope.split()), client=client
        )
    if granted is None:
        raise InvalidGrant
    return granted


async def _rotate(
    session: AsyncSession, settings: UsersSettings, token: bytes, *, wanted: set[str], client: Client
) -> Granted | None:
    login = await _lock_family(session, token)
    now = utc_now()
    if login is None or login.revoked_at is not None or login.expires_at <= now:
        return None
    used = await session.get_one(RefreshToken, _digest(token))
    user = await session.get_one(User, login.user_id)
    if not user.is_active:
        return None
    scopes = [name for name in login.scopes if name in user.scopes and (not wanted or name in wanted)]
    if not wanted <= set(scopes):
        raise InvalidScope
    successor = hmac.digest(settings.refresh_key, token, "sha256")
    if used.used_at is None:
        used.used_at = login.last_used_at = now
        session.add(RefreshToken(digest=_digest(successor), session_id=login.id))
        return Granted(login, scopes, _encode(successor))
    heir = await session.get(RefreshToken, _digest(successor))
    in_grace = now - used.used_at <= timedelta(seconds=settings.refresh_grace)
    if in_grace and heir is not None and heir.used_at is None:
        return Granted(login, scopes, _encode(successor))
    await _end(session, settings, [login])
    await audit.record(
        session,
        "token.reused",
        subject_user_id=user.id,
        client=client,
        detail={"session_id": login.id},
    )
    return None


async def _lock_family(session: AsyncSession, token: bytes) -> LoginSession | None:
    """Return the session that a refresh token is of, locked: parallel uses of one family take turns.

    What is read of the tokens counts only once the lock is held, so they need none of their own.
    """
    return await session.scalar(
        select(LoginSession)
        .join(RefreshToken, RefreshToken.session_id == LoginSession.id)
        .where(RefreshToken.digest == _digest(token))
        .with_for_update(of=LoginSession)
    )


async def revoke(database: Database, settings: UsersSettings, refresh_token: str, *, client: Client) -> None:
    """End the session that a refresh token belongs to (RFC 7009); an unknown token is no error."""
    try:
        token = _decode(refresh_token)
    except InvalidGrant:
        return
    async with database.transaction() as session:
        login = await _lock_family(session, token)
        if login is not None and login.revoked_at is None:
            await _end(session, settings, [login])
            await audit.record(
                session,
                "sessions.ended",
                actor_id=login.user_id,
                subject_user_id=login.user_id,
                client=client,
                detail={"session_id": login.id},
            )


async def open_sessions(session: AsyncSession, user_id: int) -> Sequence[LoginSession]:
    """Return a person's open sessions, the last used one first, and no more than MAX_LISTED."""
    query = select(LoginSession).where(
        LoginSession.user_id == user_id,
        LoginSession.revoked_at.is_(None),
        LoginSession.expires_at > utc_now(),
    )
    return (await session.scalars(query.order_by(LoginSession.last_used_at.desc()).limit(MAX_LISTED))).all()


async def end(session: AsyncSession, settings: UsersSettings, session_id: str, *, user_id: int) -> None:
    """End one of a person's sessions.

    Raises:
        SessionNotFound: the person has no open session with this id.
    """
    login = await session.get(LoginSession, session_id, with_for_update=True)
    if login is None or login.user_id != user_id or login.revoked_at is not None:
        raise SessionNotFound
    await _end(session, settings, [login])


async def end_all(
    session: AsyncSession, settings: UsersSettings, *, user_id: int, keep: str | None = None
) -> None:
    """End a person's open sessions, all but `keep`."""
    query = select(LoginSession).where(LoginSession.user_id == user_id, LoginSession.revoked_at.is_(None))
    logins = (await session.scalars(query.order_by(LoginSession.id).with_for_update())).all()
    await _end(session, settings, [login for login in logins if login.id != keep])


async def end_everybodys(database: Database, settings: UsersSettings) -> int:
    """End every session there is, some at a time; say how many."""
    ended = 0
    while True:
        open_ones = select(LoginSession).where(
            LoginSession.revoked_at.is_(None), LoginSession.expires_at > utc_now() - KEPT_AFTER_EXPIRY
        )
        async with database.transaction() as session:
            some = open_ones.order_by(LoginSession.id).limit(ENDED_AT_ONCE).with_for_update()
            logins = (await session.scalars(some)).all()
            if not logins:
                return ended
            await _end(session, settings, logins)
            ended += len(logins)
            await audit.record(session, "sessions.ended", client=ITSELF, detail={"sessions": len(logins)})


async def prune(session: AsyncSession) -> int:
    """Delete some sessions that nobody can use any more, with their refresh tokens; say how many."""
    over = select(LoginSession.id).where(LoginSession.expires_at < utc_now() - KEPT_AFTER_EXPIRY)
    # Two replicas pass each other by; a session that is just being revoked can wait, too.
    some = over.limit(PRUNED_AT_ONCE).with_for_update(skip_locked=True)
    pruned = await session.scalars(
        delete(LoginSession).where(LoginSession.id.in_(some)).returning(LoginSession.id)
    )
    return len(pruned.all())


async def _end(session: AsyncSession, settings: UsersSettings, logins: Iterable[LoginSession]) -> None:
    """Mark sessions as revoked, and tell everybody who verifies tokens."""
    now = utc_now()
    tokens_expire_at = int(now.timestamp()) + settings.access_token_ttl + 2 * LEEWAY
    events = []
    for login in logins:
        if login.revoked_at is None:
            login.revoked_at = now
            events.append(
                SessionRevoked(session_id=login.id, user_id=login.user_id, tokens_expire_at=tokens_expire_at)
            )
    if events:
        await outbox.add(session, *events)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _encode(token: bytes) -> str:
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def _decode(token: str) -> bytes:
    """Read a refresh token as it is on the wire.

    Raises:
        InvalidGrant: it has not the form of one.
    """
    try:
        decoded = base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != TOKEN_BYTES:
        raise InvalidGrant
    return decoded
