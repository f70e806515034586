"""FastAPI dependencies that say who asks and what that takes."""

from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes

from shared.errors import InsufficientScope, NotAuthenticated
from shared.openapi import OAUTH2
from shared.tokens import Principal, TokenVerifier

_bearer = OAuth2PasswordBearer(
    tokenUrl="/v1/users/token",
    scheme_name=OAUTH2,
    description="E-mail address and password of an account; for first-party clients only.",
    auto_error=False,
)


async def authenticate(
    request: Request, required: SecurityScopes, token: Annotated[str | None, Depends(_bearer)]
) -> Principal:
    """Verify the request's bearer token and the scopes its operation needs.

    Raises:
        NotAuthenticated: there is no token.
        InvalidToken, KeysUnavailable: see TokenVerifier.verify.
        InsufficientScope: the token lacks one of them.
    """
    if token is None:
        raise NotAuthenticated
    verifier: TokenVerifier = request.app.state.verifier
    principal = verifier.cached(token) or await verifier.verify(token)
    for scope in required.scopes:
        if scope not in principal.scopes:
            raise InsufficientScope(scope)
    return principal


def requires(*scopes: str) -> Any:
    """Return the dependency that needs these scopes: `Writer = Annotated[Principal, requires("items:write")]`."""
    return Security(authenticate, scopes=scopes)


CurrentUser = Annotated[Principal, requires()]
