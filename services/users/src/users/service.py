"""What the users service decides. Entry points own the transactions."""

from contextlib import suppress
from typing import Literal, get_args

from pydantic import validate_email
from pydantic_core import PydanticCustomError
from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.database import Database
from shared.logs import get_logger
from users import audit
from users.clients import ITSELF
from users.errors import EmailTaken, InvalidCredentials, InvalidScope, UserNotFound
from users.events import UserRegistered
from users.models import User
from users.passwords import Passwords

log = get_logger(__name__)

DEFAULT_SCOPES = ("items:write", "notifications:read", "notifications:send")
Scope = Literal[
    "items:write",
    "notifications:read",
    "notifications:send",
    "items:admin",
    "notifications:send_any",
    "users:admin",
]
ADMIN_SCOPE: Scope = "users:admin"
ADMIN_SCOPES: tuple[Scope, ...] = get_args(Scope)


def email_key(email: str) -> str:
    """Return what makes an address unique: not its case, how its characters are composed or how its domain is encoded."""
    if "<" not in email:  # of `Ada <ada@example.com>` the validator would take the address
        with suppress(PydanticCustomError):
            email = validate_email(email)[1]
    return email.lower()


async def register(
    session: AsyncSession,
    *,
    email: str,
    password_hash: str,
    full_name: str | None,
    scopes: tuple[str, ...] = DEFAULT_SCOPES,
) -> User:
    """Make an account.

    Raises:
        EmailTaken: there is one with this address.
    """
    user: User | None = await session.scalar(
        insert(User)
        .values(
            email=email,
            email_key=email_key(email),
            full_name=full_name,
            password_hash=password_hash,
            scopes=list(scopes),
        )
        .on_conflict_do_nothing(index_elements=[User.email_key])
        .returning(User)
    )
    if user is None:
        raise EmailTaken
    await outbox.add(session, UserRegistered(id=user.id, version=user.version))
    return user


async def ensure_admin(session: AsyncSession, *, email: str, password_hash: str) -> None:
    """Make the first admin's account, unless the address has one."""
    try:
        user = await register(
            session, email=email, password_hash=password_hash, full_name="Administrator", scopes=ADMIN_SCOPES
        )
    except EmailTaken:  # by an earlier start, by a replica that starts at the same time, or by somebody else
        found = await find_by_email(session, email)
        if found is not None and ADMIN_SCOPE not in found.scopes:
            log.warning(
                "admin.not_made", reason="its address belongs to an account that is no administrator's"
            )
        return
    await audit.record(
        session, "account.registered", subject_user_id=user.id, client=ITSELF, detail={"scopes": user.scopes}
    )


async def get(session: AsyncSession, user_id: int) -> User:
    """Return an account.

    Raises:
        UserNotFound: there is none with this id.
    """
    user = await session.get(User, user_id)
    if user is None:
        raise UserNotFound(f"No user {user_id}.")
    return user


async def lock(session: AsyncSession, user_id: int) -> User:
    """Return an account, locked until the transaction ends. Whoever locks more locks this first.

    Raises:
        UserNotFound: it is gone.
    """
    user = await session.get(User, user_id, with_for_update=True, populate_existing=True)
    if user is None:
        raise UserNotFound(f"No user {user_id}.")
    return user


async def find_by_email(session: AsyncSession, email: str) -> User | None:
    """Return the account with this address."""
    return await session.scalar(select(User).where(User.email_key == email_key(email)))


async def authenticate(database: Database, passwords: Passwords, *, email: str, password: str) -> User:
    """Return the active account that address and password belong to, with the hash that the password fits.

    No connection is held while the password is hashed: a flood of logins must not drain the pool.

    Raises:
        InvalidCredentials: there is none; the work done is the same whether or not the address exists.
        HashingBusy: too many logins at once.
    """
    async with database.reading() as session:
        user = await find_by_email(session, email)
    fits, updated_hash = await passwords.verify(password, user.password_hash if user else None)
    if user is None or not fits or not user.is_active:
        raise InvalidCredentials
    if updated_hash is not None:
        # Only in place of the hash that was verified: the password may have been changed meanwhile.
        renewed = (
            update(User)
            .where(User.id == user.id, User.password_hash == user.password_hash)
            .values(password_hash=updated_hash)
            .returning(User.id)
        )
        async with database.transaction() as session:
            if await session.scalar(renewed) is None:
                return await authenticate(database, passwords, email=email, password=password)
        user.password_hash = updated_hash
    return user


def granted_scopes(user: User, requested: str) -> list[str]:
    """Return the scopes that a token gets: those asked for, or all the account has.

    Raises:
        InvalidScope: the account lacks one of them.
    """
    wanted = set(requested.split())
    if not wanted:
        return list(user.scopes)
    if not wanted <= set(user.scopes):
        raise InvalidScope
    return sorted(wanted)


async def verify_password(database: Database, passwords: Passwords, *, user_id: int, password: str) -> str:
    """Check a person's password; return the hash that it fits.

    Raises:
        UserNotFound: the account is gone.
        InvalidCredentials: the password is wrong.
        HashingBusy: too many passwords at once.
    """
    async with database.reading() as session:
        user = await get(session, user_id)
    fits, _ = await passwords.verify(password, user.password_hash)
    if not fits:
        raise InvalidCredentials
    return user.password_hash
