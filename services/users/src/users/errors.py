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
        super().__init__("Use grant_type=password.", extra={"error": "unsupported_grant_type"})


class UserNotFound(Problem):
    """No account has this id; it may have been deleted."""

    status = 404
    code = "user_not_found"
    title = "User not found"


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
    InvalidScope,
    UnsupportedGrantType,
    UserNotFound,
    HashingBusy,
)
