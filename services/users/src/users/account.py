"""The life of an account after registration: profile, address, forgotten password, end."""

from math import ceil

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.times import utc_now
from users import audit, codes, service, sessions, throttle
from users.clients import Client
from users.errors import CannotDemoteSelf, EmailTaken, InvalidCredentials, TooManyAttempts
from users.events import AddressVerified, PasswordChanged, UserDeleted, UserUpdated
from users.models import User
from users.settings import UsersSettings


async def open_account(
    session: AsyncSession,
    settings: UsersSettings,
    *,
    email: str,
    password_hash: str,
    full_name: str | None,
    client: Client,
) -> User:
    """Register somebody, and mail a code that verifies the address.

    Raises:
        EmailTaken: there is an account with this address.
    """
    user = await service.register(session, email=email, password_hash=password_hash, full_name=full_name)
    await audit.record(
        session, "account.registered", actor_id=user.id, subject_user_id=user.id, client=client
    )
    await codes.send(
        session,
        settings,
        user,
        purpose="verify_email",
        email=user.email,
        key=user.email_key,
        client=client,
        actor_id=user.id,
    )
    return user


async def rename(session: AsyncSession, user_id: int, full_name: str | None) -> User:
    """Set a person's name.

    Raises:
        UserNotFound: the account is gone.
    """
    user = await service.lock(session, user_id)
    user.full_name = full_name
    await _updated(session, user)
    return user


async def delete_account(session: AsyncSession, settings: UsersSettings, user_id: int) -> None:
    """Delete an account for good; other services learn of it and forget the person.

    Raises:
        UserNotFound: it is gone already.
        CannotDemoteSelf: it is an administrator's: the last one must not go by mistake.
    """
    user = await service.lock(session, user_id)
    if service.ADMIN_SCOPE in user.scopes:
        raise CannotDemoteSelf
    await sessions.end_all(session, settings, user_id=user_id)
    await outbox.add(session, UserDeleted(id=user.id, version=user.version + 1))
    await session.execute(delete(User).where(User.id == user_id))


async def send_verification(
    session: AsyncSession, settings: UsersSettings, email: str, *, client: Client
) -> None:
    """Mail a code that verifies an address, if there is an account with it that has not verified it yet."""
    user = await service.find_by_email(session, email)
    if user is not None and user.is_active and not user.email_verified:
        await codes.send(
            session,
            settings,
            user,
            purpose="verify_email",
            email=user.email,
            key=user.email_key,
            client=client,
        )


async def request_email_change(
    session: AsyncSession, settings: UsersSettings, user_id: int, email: str, *, client: Client
) -> None:
    """Mail a code to a new address; the account gets it when the code comes back.

    Nothing is said of whether somebody else has the address: that shows when the code is used.

    Raises:
        UserNotFound: the account is gone.
        TooManyAttempts: the account asked for such a mail a moment ago. To whom, does not matter: it must be no way to
            mail many.
    """
    user = await service.lock(session, user_id)
    if (wait := await codes.seconds_to_wait(session, settings, user_id, "change_email")) > 0:
        raise TooManyAttempts(ceil(wait))
    key = service.email_key(email)
    await codes.send(
        session,
        settings,
        user,
        purpose="change_email",
        email=email,
        key=key,
        client=client,
        actor_id=user_id,
    )


async def confirm_email(session: AsyncSession, code: str) -> int:
    """Verify the address that a code was mailed to; a new one becomes the account's. Return the account's id.

    Raises:
        CodeInvalid: the code cannot be used.
        EmailTaken: somebody else has the address by now.
    """
    redeemed, user = await codes.redeem(session, code, "verify_email", "change_email")
    if redeemed.purpose == "change_email":
        taken = select(User.id).where(User.email_key == redeemed.email_key, User.id != user.id)
        if await session.scalar(taken) is not None:
            raise EmailTaken
        user.email, user.email_key = redeemed.email, redeemed.email_key
        try:
            await session.flush()
        except IntegrityError:  # somebody else was faster by a moment
            raise EmailTaken from None
    user.email_verified = True
    await _updated(session, user)
    await outbox.add(session, AddressVerified.of(user))
    return user.id


async def send_password_reset(
    session: AsyncSession, settings: UsersSettings, email: str, *, client: Client
) -> None:
    """Mail a code that sets a new password, if there is an active account with this address."""
    user = await service.find_by_email(session, email)
    if user is not None and user.is_active:
        await codes.send(
            session,
            settings,
            user,
            purpose="reset_password",
            email=user.email,
            key=user.email_key,
            client=client,
        )


async def reset_password(
    session: AsyncSession, settings: UsersSettings, code: str, *, password_hash: str
) -> int:
    """Set a new password by a mailed code, and return the account's id.

    All sessions end; the address counts as verified; logins that had to wait after failures need not any more.

    Raises:
        CodeInvalid: the code cannot be used.
    """
    _, user = await codes.redeem(session, code, "reset_password")
    user.email_verified = True
    await _set_password(session, settings, user, password_hash=password_hash)
    await outbox.add(session, AddressVerified.of(user))
    await throttle.forgive(session, settings, user.email)
    return user.id


async def change_password(
    session: AsyncSession,
    settings: UsersSettings,
    user_id: int,
    *,
    verified_hash: str,
    password_hash: str,
    keep_session: str,
) -> None:
    """Replace the password that `verified_hash` is of, and end the account's sessions, all but `keep_session`.

    Raises:
        UserNotFound: the account is gone.
        InvalidCredentials: the password was changed meanwhile: the one that was verified opens nothing any more.
    """
    user = await service.lock(session, user_id)
    if user.password_hash != verified_hash:
        raise InvalidCredentials
    await _set_password(session, settings, user, password_hash=password_hash, keep_session=keep_session)


async def _set_password(
    session: AsyncSession,
    settings: UsersSettings,
    user: User,
    *,
    password_hash: str,
    keep_session: str | None = None,
) -> None:
    await codes.void(session, user.id, "reset_password")
    user.password_hash = password_hash
    user.version += 1
    user.updated_at = utc_now()
    await outbox.add(session, PasswordChanged(id=user.id, version=user.version))
    await sessions.end_all(session, settings, user_id=user.id, keep=keep_session)


async def _updated(session: AsyncSession, user: User) -> None:
    user.version += 1
    user.updated_at = utc_now()
    await outbox.add(session, UserUpdated.of(user))
