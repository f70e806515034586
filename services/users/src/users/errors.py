"""Problems that only the users service answers."""

from collections.abc import Mapping
from typing import ClassVar

from shared.errors import Problem

NOT_STORED = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""What RFC 6749 section 5 wants on every answer of the token endpoint."""


class OAuthProblem(Problem):
    """A problem that also names its `error` as RFC 6749 does (sections 4.1.2.1 and 5.2)."""

    error: ClassVar[str]

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail, headers={**NOT_STORED, **(headers or {})}, extra={"error": self.error})


class InvalidRequest(OAuthProblem):
    """A parameter of the token request is missing or given more than once (RFC 6749 section 5.2)."""

    status = 400
    code = error = "invalid_request"
    title = "Invalid request"


class EmailTaken(Problem):
    """An account with this address exists already."""

    status = 409
    code = "email_taken"
    title = "E-mail address taken"


class InvalidCredentials(OAuthProblem):
    """Address and password do not belong to an active account. Which of them is wrong is never said."""

    status = 401
    code = "invalid_credentials"
    title = "Invalid credentials"
    error = "invalid_grant"

    def __init__(self) -> None:
        super().__init__("Address or password is wrong.", headers={"WWW-Authenticate": "Bearer"})


class InvalidGrant(OAuthProblem):
    """The refresh token is unknown, expired, revoked or was used before (RFC 6749 section 5.2). Log in again."""

    status = 400
    code = error = "invalid_grant"
    title = "Invalid grant"

    def __init__(self) -> None:
        super().__init__("The refresh token is not valid.")


class InvalidScope(OAuthProblem):
    """A scope was asked for that the account does not have (RFC 6749 section 5.2)."""

    status = 400
    code = error = "invalid_scope"
    title = "Invalid scope"

    def __init__(self) -> None:
        super().__init__("The account lacks a requested scope.")


class UnsupportedGrantType(OAuthProblem):
    """The token endpoint does not know this grant type (RFC 6749 section 5.2)."""

    status = 400
    code = error = "unsupported_grant_type"
    title = "Unsupported grant type"

    def __init__(self) -> None:
        super().__init__("Use grant_type=password or refresh_token.")


class SessionNotFound(Problem):
    """The caller has no open session with this id."""

    status = 404
    code = "session_not_found"
    title = "Session not found"


class CodeInvalid(Problem):
    """The mailed code is unknown, expired or was used before. Ask for a new one."""

    status = 400
    code = "code_invalid"
    title = "Invalid code"

    def __init__(self) -> None:
        super().__init__("The code is not valid any more.")


class UserNotFound(Problem):
    """No account has this id; it may have been deleted."""

    status = 404
    code = "user_not_found"
    title = "User not found"


class PasswordTooCommon(Problem):
    """The password is one of those that are guessed first, or nearly one of them. Choose another one."""

    status = 422
    code = "password_too_common"
    title = "Password too common"

    def __init__(self) -> None:
        super().__init__("This password is among the first that are guessed.")


class PasswordBreached(Problem):
    """The password is known from a breach of some other site. Choose another one."""

    status = 422
    code = "password_breached"
    title = "Password known from a breach"

    def __init__(self) -> None:
        super().__init__("This password is known from a breach.")


class TooManyAttempts(OAuthProblem):
    """Too many wrong passwords for this account or from this address, or mails with codes asked for too soon.

    Retry-After says when to try again. After wrong passwords the wait grows with every failure up to a limit and ends by
    itself; a password reset by mail ends it for the account.
    """

    status = 429
    code = "too_many_attempts"
    title = "Too many attempts"
    error = "temporarily_unavailable"

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Try again in {retry_after} s.", headers={"Retry-After": str(retry_after)})


class CannotDemoteSelf(Problem):
    """Administrators cannot deactivate or delete themselves or give up administration: another one has to do it."""

    status = 409
    code = "cannot_demote_self"
    title = "Own administration"

    def __init__(self) -> None:
        super().__init__("Another administrator has to do this.")


class HashingBusy(OAuthProblem):
    """Too many passwords are being checked at once. Try again."""

    status = 503
    code = "hashing_busy"
    title = "Too busy"
    error = "temporarily_unavailable"

    def __init__(self) -> None:
        super().__init__("Too many logins at once.", headers={"Retry-After": "1"})


NEW_PASSWORD: tuple[type[Problem], ...] = (PasswordTooCommon, PasswordBreached, HashingBusy)
"""What setting a password may answer."""

PROBLEMS: tuple[type[Problem], ...] = (
    EmailTaken,
    InvalidCredentials,
    InvalidRequest,
    InvalidGrant,
    SessionNotFound,
    CodeInvalid,
    InvalidScope,
    UnsupportedGrantType,
    UserNotFound,
    PasswordTooCommon,
    PasswordBreached,
    TooManyAttempts,
    CannotDemoteSelf,
    HashingBusy,
)
