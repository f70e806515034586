"""What a request shows to be let in, and whether that is enough. Pure functions."""

from typing import Final

from gateway.routes import Policy
from shared.errors import InsufficientScope, InvalidToken
from shared.tokens import Principal

_BEARER: Final = b"bearer."


def bearer_of(authorization: bytes | None) -> str | None:
    """Return the bearer token, or None where there are no credentials.

    Raises:
        InvalidToken: there are credentials, but not one bearer token.
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or b"," in token:
        raise InvalidToken("Send exactly one bearer token.")
    return token.strip(b" ").decode("latin-1")


def check_scopes(principal: Principal, policy: Policy) -> None:
    """See that the token has what the operation needs.

    Raises:
        InsufficientScope: it has not.
    """
    for scope in policy.scopes:
        if scope not in principal.scopes:
            raise InsufficientScope(scope)


def split_protocols(offered: bytes | None) -> tuple[list[bytes], bytes | None]:
    """Part the sub-protocols proper from `bearer.<token>`, by which browsers authenticate (API.md).

    Raises:
        InvalidToken: more than one token.
    """
    names = [name.strip(b" \t") for name in offered.split(b",")] if offered else []
    tokens = [name[len(_BEARER) :] for name in names if name.startswith(_BEARER)]
    if len(tokens) > 1:
        raise InvalidToken("Send one token.")
    return [name for name in names if name and not name.startswith(_BEARER)], tokens[0] if tokens else None
