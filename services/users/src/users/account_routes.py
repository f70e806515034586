"""The own account: profile, password, address, end. Codes by mail prove what a password cannot."""

from fastapi import APIRouter, Request

from shared.auth import CurrentUser
from shared.database import ReadSession, Session
from users import account, service
from users.passwords import Passwords
from users.schemas import (
    AddressRequest,
    CodeConfirmation,
    PasswordChange,
    PasswordReset,
    UserPatch,
    UserRead,
)

router = APIRouter(prefix="/v1/users", tags=["account"])


@router.get("/me", summary="Read the own account")
async def read_own_account(me: CurrentUser, session: ReadSession) -> UserRead:
    """Return the account that the access token belongs to."""
    return UserRead.model_validate(await service.get(session, me.id))


@router.patch("/me", summary="Change the own account")
async def patch_own_account(body: UserPatch, me: CurrentUser, session: Session) -> UserRead:
    """Apply a JSON merge patch (RFC 7396). Publishes `users.user.updated.v1`."""
    changes = body.model_dump()
    if not changes:
        return UserRead.model_validate(await service.get(session, me.id))
    return UserRead.model_validate(await account.rename(session, me.id, changes["full_name"]))


@router.delete("/me", status_code=204, summary="Delete the own account")
async def delete_own_account(me: CurrentUser, request: Request, session: Session) -> None:
    """Delete the account for good.

    Publishes `users.user.deleted.v1`: the person's items stay without an owner, notifications and mails are deleted.
    """
    await account.delete_account(session, request.app.state.settings, me.id)


@router.post("/me/password", status_code=204, summary="Change the own password")
async def change_own_password(
    body: PasswordChange, me: CurrentUser, request: Request, session: Session
) -> None:
    """Set a new password. All other sessions of the account end."""
    password_hash = await service.change_password(
        request.app.state.database,
        request.app.state.passwords,
        user_id=me.id,
        current=body.current_password.get_secret_value(),
        new=body.new_password.get_secret_value(),
    )
    await account.set_password(
        session,
        request.app.state.settings,
        await account.lock(session, me.id),
        password_hash=password_hash,
        keep_session=me.session_id,
    )


@router.post("/me/email", status_code=202, summary="Change the own address")
async def change_own_email(body: AddressRequest, me: CurrentUser, request: Request, session: Session) -> None:
    """Mail a code to the new address; `POST /v1/users/verify-email/confirm` with it makes it the account's."""
    await account.request_email_change(session, request.app.state.settings, me.id, body.email)


@router.post("/verify-email", status_code=202, summary="Ask for a code that verifies an address")
async def request_email_verification(body: AddressRequest, request: Request, session: Session) -> None:
    """Mail a code, if there is an account with this address that needs one. The answer never says."""
    await account.request_verification(session, request.app.state.settings, body.email)


@router.post("/verify-email/confirm", status_code=204, summary="Verify an address by its code")
async def confirm_email(body: CodeConfirmation, session: Session) -> None:
    """Use the code from the mail: the address is verified, and a new one becomes the account's."""
    await account.confirm_email(session, body.code)


@router.post("/password-reset", status_code=202, summary="Ask for a code that sets a new password")
async def request_password_reset(body: AddressRequest, request: Request, session: Session) -> None:
    """Mail a code, if there is an account with this address. The answer never says."""
    await account.request_password_reset(session, request.app.state.settings, body.email)


@router.post("/password-reset/confirm", status_code=204, summary="Set a new password by a code")
async def confirm_password_reset(body: PasswordReset, request: Request, session: Session) -> None:
    """Use the code from the mail. All sessions of the account end."""
    passwords: Passwords = request.app.state.passwords
    await account.reset_password(
        session,
        request.app.state.settings,
        body.code,
        password_hash=await passwords.hash(body.new_password.get_secret_value()),
    )
