"""Problems that only the users service answers."""

from shared.errors import Problem


class EmailTaken(Problem):
    """An account with this address exists already."""

    status = 409
    code = "email_taken"
    title = "E-mail address taken"


class InvalidCredentials(Problem):
    """Address and password do not belong to an active account. Which of them is wrong is never said."""

    status = 401
    code = "invalid_credentials"
    title = "Invalid credentials"

    def __init__(self) -> None:
        super().__init__(
            "Address or password is wrong.",
            headers={"WWW-Authenticate": "Bearer"},
            extra={"error": "invalid_grant"},
        )


class InvalidGrant(Problem):
    """The refresh token is unknown, expired, revoked or was used before (RFC 6749 section 5.2). Log in again."""

    status = 400
    code = "invalid_grant"
    title = "Invalid grant"

    def __init__(self) -> None:
        super().__init__("The refresh token is not valid.", extra={"error": "invalid_grant"})


class InvalidScope(Problem):
    """A scope was asked for that the account does not have (RFC 6749 section 5.2)."""

    status = 400
    code = "invalid_scope"
    title = "Invalid scope"

    def __init__(self) -> None:
        super().__init__("The account lacks a requested scope.", extra={"error": "invalid_scope"})


class UnsupportedGrantType(Problem):
    """The token endpoint does not know this grant type (RFC 6749 section 5.2)."""

    status = 400
    code = "unsupported_grant_type"
    title = "Unsupported grant type"

    def __init__(self) -> None:
        super().__init__(
            "Use grant_type=password or refresh_token.", extra={"error": "unsupported_grant_type"}
        )


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


class TooManyAttempts(Problem):
    """Too many wrong passwords for this account or from this address. Retry-After says when to try again.

    The wait grows with every failure up to a limit and ends by itself; a password reset by mail ends it for the account.
    """

    status = 429
    code = "too_many_attempts"
    title = "Too many attempts"

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"Try again in {retry_after} s.",
            headers={"Retry-After": str(retry_after)},
            extra={"error": "temporarily_unavailable"},
        )


class CannotDemoteSelf(Problem):
    """Administrators cannot deactivate themselves or give up administration: another one has to do it."""

    status = 409
    code = "cannot_demote_self"
    title = "Own administration"

    def __init__(self) -> None:
        super().__init__("Another administrator has to do this.")


class HashingBusy(Problem):
    """Too many passwords are being checked at once. Try again."""

    status = 503
    code = "hashing_busy"
    title = "Too busy"

    def __init__(self) -> None:
        super().__init__("Too many logins at once.", headers={"Retry-After": "1"})


PROBLEMS: tuple[type[Problem], ...] = (
    EmailTaken,
    InvalidCredentials,
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
