"""The users API: routes translate, functions decide."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response

from shared.auth import CurrentUser
from shared.database import ReadSession, Session
from shared.errors import UnsupportedMediaType
from users import service
from users.errors import UnsupportedGrantType
from users.keys import KeyRing
from users.passwords import Passwords
from users.schemas import TokenForm, TokenRead, UserCreate, UserRead
from users.settings import UsersSettings
from users.tokens import issue_access_token

router = APIRouter(prefix="/v1/users", tags=["users"])
well_known = APIRouter(prefix="/.well-known", tags=["keys"])

JWKS_MAX_AGE = 300
FORM = "application/x-www-form-urlencoded"


@router.post("", status_code=201, summary="Register")
async def register_user(body: UserCreate, request: Request, session: Session) -> UserRead:
    """Make an account. The first event about it reaches the person as a welcome notification."""
    passwords: Passwords = request.app.state.passwords
    user = await service.register(
        session,
        email=body.email,
        password_hash=await passwords.hash(body.password.get_secret_value()),
        full_name=body.full_name,
    )
    return UserRead.model_validate(user)


async def _form_only(request: Request) -> None:
    """Refuse other bodies: FastAPI reads them as an empty form.

    Raises:
        UnsupportedMediaType: the body is not declared to be a form.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in (FORM, "multipart/form-data"):
        raise UnsupportedMediaType(f"Send {FORM}.")


@router.post("/token", dependencies=[Depends(_form_only)], summary="Get an access token")
async def create_token(
    form: Annotated[TokenForm, Form()], request: Request, response: Response, session: Session
) -> TokenRead:
    """Log in with address and password (OAuth2 password flow, for first-party clients only)."""
    if form.grant_type != "password":
        raise UnsupportedGrantType
    settings: UsersSettings = request.app.state.settings
    keys: KeyRing = request.app.state.keys
    user = await service.authenticate(
        request.app.state.database,
        request.app.state.passwords,
        email=form.username,
        password=form.password.get_secret_value(),
    )
    scopes = service.granted_scopes(user, form.scope)
    login = service.open_session(session, user)
    response.headers["Cache-Control"] = "no-store"
    return TokenRead(
        access_token=issue_access_token(settings, keys, user_id=user.id, session_id=login.id, scopes=scopes),
        expires_in=settings.access_token_ttl,
        scope=" ".join(scopes),
    )


@router.get("/me", summary="Read the own account")
async def read_own_account(me: CurrentUser, session: ReadSession) -> UserRead:
    """Return the account that the access token belongs to."""
    return UserRead.model_validate(await service.get(session, me.id))


@well_known.get("/jwks.json", summary="Keys that verify access tokens")
async def read_jwks(request: Request) -> Response:
    """Return the JSON Web Key Set (RFC 7517)."""
    keys: KeyRing = request.app.state.keys
    return Response(
        keys.jwks,
        media_type="application/json",
        headers={"Cache-Control": f"public, max-age={JWKS_MAX_AGE}"},
    )
