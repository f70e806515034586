"""The own account: profile, password, address, end. Codes by mail prove what a password cannot."""

from fastapi import APIRouter, Request, Response

from shared.auth import CurrentUser
from shared.database import Database, ReadSession, Session
from shared.openapi import problems
from users import account, audit, codes, service, throttle
from users.clients import CurrentClient
from users.code_requests import CodeRequests
from users.errors import (
    NEW_PASSWORD,
    CannotDemoteSelf,
    CodeInvalid,
    EmailTaken,
    InvalidCredentials,
    TooManyAttempts,
    UserNotFound,
)
from users.passwords import Passwords
from users.schemas import (
    AddressRequest,
    CodeConfirmation,
    PasswordChange,
    PasswordReset,
    UserPatch,
    UserRead,
)
from users.settings import UsersSettings

router = APIRouter(prefix="/v1/users", tags=["account"])


@router.get("/me", summary="Read the own account", responses=problems(UserNotFound))
async def read_own_account(me: CurrentUser, session: ReadSession) -> UserRead:
    """Return the account that the access token belongs to."""
    return UserRead.model_validate(await service.get(session, me.id))


@router.patch("/me", summary="Change the own account", responses=problems(UserNotFound))
async def patch_own_account(body: UserPatch, me: CurrentUser, session: Session) -> UserRead:
    """Apply a JSON merge patch (RFC 7396). Publishes `users.user.updated.v1`."""
    changes = body.model_dump()
    if not changes:
        return UserRead.model_validate(await service.get(session, me.id))
    return UserRead.model_validate(await account.rename(session, me.id, changes["full_name"]))


@router.delete(
    "/me",
    status_code=204,
    summary="Delete the own account",
    responses=problems(UserNotFound, CannotDemoteSelf),
)
async def delete_own_account(
    me: CurrentUser, request: Request, client: CurrentClient, session: Session
) -> None:
    """Delete the account for good.

    Administrators cannot: another one has to take administration from them first. Publishes
    `users.user.deleted.v1`: the person's items stay without an owner, notifications and mails are deleted.
    """
    await account.delete_account(session, request.app.state.settings, me.id)
    await audit.record(session, "account.deleted", actor_id=me.id, subject_user_id=me.id, client=client)


@router.post(
    "/me/password",
    status_code=204,
    summary="Change the own password",
    responses=problems(InvalidCredentials, UserNotFound, TooManyAttempts, *NEW_PASSWORD),
)
async def change_own_password(
    body: PasswordChange, me: CurrentUser, request: Request, client: CurrentClient, session: Session
) -> None:
    """Set a new password. All other sessions of the account end."""
    settings: UsersSettings = request.app.state.settings
    database: Database = request.app.state.database
    passwords: Passwords = request.app.state.passwords
    async with database.reading() as reading:
        email = (await service.get(reading, me.id)).email
    # A stolen token must not be a way to guess the password at leisure.
    async with throttle.guarding(database, settings, email=email, client=client):
        verified_hash = await service.verify_password(
            database, passwords, user_id=me.id, password=body.current_password.get_secret_value()
        )
        password_hash = await passwords.hash(body.new_password.get_secret_value())
    await account.change_password(
        session,
        settings,
        me.id,
        verified_hash=verified_hash,
        password_hash=password_hash,
        keep_session=me.session_id,
    )
    await audit.record(session, "password.changed", actor_id=me.id, subject_user_id=me.id, client=client)


@router.post(
    "/me/email",
    status_code=202,
    response_class=Response,
    summary="Change the own address",
    responses=problems(UserNotFound, TooManyAttempts),
)
async def change_own_email(
    body: AddressRequest, me: CurrentUser, request: Request, client: CurrentClient, session: Session
) -> None:
    """Mail a code to the new address; `POST /v1/users/verify-email/confirm` with it makes it the account's."""
    await account.request_email_change(session, request.app.state.settings, me.id, body.email, client=client)


@router.post(
    "/verify-email",
    status_code=202,
    response_class=Response,
    summary="Ask for a code that verifies an address",
)
async def request_email_verification(
    body: AddressRequest, request: Request, client: CurrentClient, session: Session
) -> None:
    """Mail a code, if there is an account with this address that needs one. The answer never says."""
    requests: CodeRequests = request.app.state.code_requests
    requests.add(session, "verify_email", body.email, client=client)


@router.post(
    "/verify-email/confirm",
    status_code=204,
    summary="Verify an address by its code",
    responses=problems(CodeInvalid, EmailTaken),
)
async def confirm_email(body: CodeConfirmation, client: CurrentClient, session: Session) -> None:
    """Use the code from the mail: the address is verified, and a new one becomes the account's."""
    user_id = await account.confirm_email(session, body.code)
    await audit.record(session, "email.confirmed", actor_id=user_id, subject_user_id=user_id, client=client)


@router.post(
    "/password-reset",
    status_code=202,
    response_class=Response,
    summary="Ask for a code that sets a new password",
)
async def request_password_reset(
    body: AddressRequest, request: Request, client: CurrentClient, session: Session
) -> None:
    """Mail a code, if there is an account with this address. The answer never says."""
    requests: CodeRequests = request.app.state.code_requests
    requests.add(session, "reset_password", body.email, client=client)


@router.post(
    "/password-reset/confirm",
    status_code=204,
    summary="Set a new password by a code",
    responses=problems(CodeInvalid, *NEW_PASSWORD),
)
async def confirm_password_reset(
    body: PasswordReset, request: Request, client: CurrentClient, session: Session
) -> None:
    """Use the code from the mail. All sessions of the account end."""
    passwords: Passwords = request.app.state.passwords
    database: Database = request.app.state.database
    # Whoever has no code must not keep the hashing pool busy.
    async with database.reading() as reading:
        await codes.check(reading, body.code, "reset_password")
    user_id = await account.reset_password(
        session,
        request.app.state.settings,
        body.code,
        password_hash=await passwords.hash(body.new_password.get_secret_value()),
    )
    await audit.record(session, "password.reset", actor_id=user_id, subject_user_id=user_id, client=client)
