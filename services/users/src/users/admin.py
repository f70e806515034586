"""What administrators do with other people's accounts."""

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.errors import InsufficientScope
from shared.times import utc_now
from shared.tokens import Principal
from users import audit, service, sessions
from users.clients import Client
from users.errors import CannotDemoteSelf
from users.events import UserUpdated
from users.models import User
from users.settings import UsersSettings

MAX_PAGE = 200


async def page(
    session: AsyncSession, *, q: str | None, is_active: bool | None, before: int | None, limit: int
) -> Sequence[User]:
    """Return at most `limit` accounts, newest first, that are older than `before` and have `q` in address or name."""
    query = select(User).order_by(User.id.desc()).limit(limit)
    if q:
        # ILIKE, which the trigram index knows.
        pattern = "%" + re.sub(r"([%_\\])", r"\\\1", q) + "%"
        query = query.where(or_(User.email.ilike(pattern), User.full_name.ilike(pattern)))
    if is_active is not None:
        query = query.where(User.is_active.is_(is_active))
    if before is not None:
        query = query.where(User.id < before)
    return (await session.scalars(query)).all()


async def change(
    session: AsyncSession,
    settings: UsersSettings,
    user_id: int,
    changes: dict[str, Any],
    *,
    by: Principal,
    client: Client,
) -> User:
    """Change `is_active` and `scopes` of an account.

    Deactivation ends the account's sessions, and so does taking a scope away: tokens that have it are about.

    Raises:
        UserNotFound: there is no such account.
        CannotDemoteSelf: an administrator would deactivate themself, or give up administration.
        InsufficientScope: the caller has ceased to be an administrator.
    """
    user = await _lock(session, settings, user_id, by=by)
    changed = {name: value for name, value in changes.items() if value != getattr(user, name)}
    if not changed:
        return user
    is_active, scopes = changed.get("is_active", user.is_active), changed.get("scopes", user.scopes)
    if _is_self(settings, user_id, by) and not (is_active and service.ADMIN_SCOPE in scopes):
        raise CannotDemoteSelf
    taken_away = set(user.scopes) - set(scopes)
    user.is_active, user.scopes = is_active, scopes
    user.version += 1
    user.updated_at = utc_now()
    await outbox.add(session, UserUpdated.of(user))
    await audit.record(
        session,
        "account.changed",
        actor_id=by.id,
        subject_user_id=user_id,
        client=client,
        detail=changed,
    )
    if not is_active or taken_away:
        await sessions.end_all(session, settings, user_id=user_id)
    return user


async def end_sessions(
    session: AsyncSession, settings: UsersSettings, user_id: int, *, by: Principal, client: Client
) -> None:
    """Log a person out everywhere.

    Raises:
        UserNotFound: there is no such account.
    """
    await service.get(session, user_id)
    await sessions.end_all(session, settings, user_id=user_id)
    await audit.record(session, "sessions.ended", actor_id=by.id, subject_user_id=user_id, client=client)


async def _lock(session: AsyncSession, settings: UsersSettings, user_id: int, *, by: Principal) -> User:
    """Lock the account and the administrator's own, so that two who demote each other do not both succeed."""
    ids = {user_id, by.id} if by.issuer == settings.token_issuer else {user_id}
    locked = await session.scalars(
        select(User).where(User.id.in_(ids)).order_by(User.id).with_for_update(key_share=True)
    )
    users = {user.id: user for user in locked}
    if by.issuer == settings.token_issuer:
        actor = users.get(by.id)
        if actor is None or not actor.is_active or service.ADMIN_SCOPE not in actor.scopes:
            raise InsufficientScope(service.ADMIN_SCOPE)
    return users.get(user_id) or await service.get(session, user_id)


def _is_self(settings: UsersSettings, user_id: int, by: Principal) -> bool:
    return user_id == by.id and by.issuer == settings.token_issuer
