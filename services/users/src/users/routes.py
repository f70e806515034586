"""The users API: routes translate, functions decide."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Path, Request, Response

from shared.app import FORM
from shared.auth import CurrentUser
from shared.database import Database, ReadSession, Session
from shared.errors import InvalidToken, UnsupportedMediaType
from shared.openapi import problems
from shared.times import utc_now
from shared.tokens import Principal, TokenVerifier
from users import account, audit, service, sessions, throttle
from users.admin_routes import UsersAdmin
from users.clients import Client, CurrentClient
from users.errors import (
    NEW_PASSWORD,
    NOT_STORED,
    EmailTaken,
    HashingBusy,
    InvalidCredentials,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    SessionNotFound,
    TooManyAttempts,
    UnsupportedGrantType,
)
from users.key_ring import KeyInfo, KeyRing, all_keys, life, rotate
from users.passwords import Passwords
from users.schemas import (
    EXAMPLE_SESSION_ID,
    AuthorizationServer,
    KeySet,
    RevocationForm,
    SessionRead,
    SigningKeyRead,
    TokenForm,
    TokenRead,
    UserCreate,
    UserRead,
)
from users.settings import UsersSettings
from users.tokens import issue_access_token

router = APIRouter(prefix="/v1/users", tags=["users"])
well_known = APIRouter(prefix="/.well-known", tags=["keys"])

JWKS_MAX_AGE = 300
SessionId = Annotated[
    str,
    Path(
        pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
        description="The session's id.",
        examples=[EXAMPLE_SESSION_ID],
    ),
]


@router.post("", status_code=201, summary="Register", responses=problems(EmailTaken, *NEW_PASSWORD))
async def register_user(
    body: UserCreate, request: Request, client: CurrentClient, session: Session
) -> UserRead:
    """Make an account. The first event about it reaches the person as a welcome notification."""
    passwords: Passwords = request.app.state.passwords
    user = await account.open_account(
        session,
        request.app.state.settings,
        email=body.email,
        password_hash=await passwords.hash(body.password.get_secret_value()),
        full_name=body.full_name,
        client=client,
    )
    return UserRead.model_validate(user)


async def _oauth_form(request: Request) -> None:
    """Hold a request to RFC 6749: a form (FastAPI reads other bodies as an empty one), no parameter twice (section 3.2).

    Raises:
        UnsupportedMediaType: the body is not declared to be a form.
        InvalidRequest: a parameter is repeated: which of its values counts would be anybody's guess.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise UnsupportedMediaType(f"Send {FORM}.", headers=NOT_STORED, extra={"error": "invalid_request"})
    names = [name for name, _ in (await request.form()).multi_items()]
    if len(names) != len(set(names)):
        raise InvalidRequest("A parameter is given more than once.")


@router.post(
    "/token",
    dependencies=[Depends(_oauth_form)],
    summary="Get an access token",
    responses=problems(
        InvalidRequest,
        InvalidCredentials,
        InvalidGrant,
        InvalidScope,
        UnsupportedGrantType,
        TooManyAttempts,
        HashingBusy,
    ),
)
async def create_token(
    form: Annotated[TokenForm, Form()],
    request: Request,
    response: Response,
    client: CurrentClient,
    session: Session,
) -> TokenRead:
    """Log in with address and password, or go on with a refresh token (OAuth2, for first-party clients only).

    A refresh token is good for one use; used again, it ends its session.
    """
    settings: UsersSettings = request.app.state.settings
    database: Database = request.app.state.database
    match form.grant_type:
        case "password":
            if not (form.username and form.password.get_secret_value()):
                raise InvalidRequest("Send username and password.")
            async with throttle.guarding(database, settings, email=form.username, client=client):
                user = await service.authenticate(
                    database,
                    request.app.state.passwords,
                    email=form.username,
                    password=form.password.get_secret_value(),
                )
            granted = await sessions.start(session, settings, user, scope=form.scope, client=client)
            await audit.record(
                session, "login.succeeded", actor_id=user.id, subject_user_id=user.id, client=client
            )
        case "refresh_token":
            if not (token := form.refresh_token.get_secret_value()):
                raise InvalidRequest("Send refresh_token.")
            granted = await sessions.refresh(database, settings, token, scope=form.scope, client=client)
        case _:
            raise UnsupportedGrantType
    response.headers.update(NOT_STORED)
    return TokenRead(
        access_token=issue_access_token(
            settings,
            request.app.state.keys,
            user_id=granted.session.user_id,
            session_id=granted.session.id,
            scopes=granted.scopes,
        ),
        expires_in=settings.access_token_ttl,
        refresh_token=granted.refresh_token,
        scope=" ".join(granted.scopes),
    )


@router.post(
    "/token/revoke",
    dependencies=[Depends(_oauth_form)],
    summary="Revoke a token",
    responses={
        200: {
            "description": "The session is over, if there was one.",
            "content": {"application/json": {"example": {}}},
        },
        **problems(InvalidRequest),
    },
)
async def revoke_token(
    form: Annotated[RevocationForm, Form()], request: Request, client: CurrentClient
) -> dict[str, str]:
    """End the session that a refresh token or an access token belongs to (RFC 7009). Unknown tokens are no error."""
    settings: UsersSettings = request.app.state.settings
    database: Database = request.app.state.database
    verifier: TokenVerifier = request.app.state.verifier
    token = form.token.get_secret_value()
    await sessions.revoke(database, settings, token, client=client)
    with suppress(InvalidToken, SessionNotFound):
        principal = await verifier.verify(token)
        async with database.transaction() as session:
            await sessions.end(session, settings, principal.session_id, user_id=principal.id)
            await _record_end(session, principal, client, session_id=principal.session_id)
    return {}


@router.get("/me/sessions", summary="List the own sessions")
async def list_own_sessions(me: CurrentUser, session: ReadSession) -> list[SessionRead]:
    """Return the open sessions, the last used one first."""
    return [
        SessionRead.model_validate(login).model_copy(update={"current": login.id == me.session_id})
        for login in await sessions.open_sessions(session, me.id)
    ]


@router.delete("/me/sessions", status_code=204, summary="End all own sessions")
async def end_own_sessions(
    me: CurrentUser, request: Request, client: CurrentClient, session: Session
) -> None:
    """Log out everywhere, here too."""
    await sessions.end_all(session, request.app.state.settings, user_id=me.id)
    await _record_end(session, me, client)


@router.delete(
    "/me/sessions/{session_id}",
    status_code=204,
    summary="End one own session",
    responses=problems(SessionNotFound),
)
async def end_own_session(
    session_id: SessionId,
    me: CurrentUser,
    request: Request,
    client: CurrentClient,
    session: Session,
) -> None:
    """Log out one device. Its tokens are refused everywhere within a second."""
    await sessions.end(session, request.app.state.settings, session_id, user_id=me.id)
    await _record_end(session, me, client, session_id=session_id)


async def _record_end(session: Session, me: Principal, client: Client, **detail: str) -> None:
    await audit.record(
        session, "sessions.ended", actor_id=me.id, subject_user_id=me.id, client=client, detail=detail
    )


@router.get("/keys", summary="List the signing keys")
async def list_signing_keys(_: UsersAdmin, request: Request, session: ReadSession) -> list[SigningKeyRead]:
    """Return every signing key and its state, in the order in which they sign."""
    settings: UsersSettings = request.app.state.settings
    keys = await all_keys(session)
    return [_describe(info) for info in life(keys, now=utc_now(), token_ttl=settings.access_token_ttl)]


@router.post("/keys/rotate", status_code=202, summary="Rotate the signing key")
async def rotate_signing_key(
    me: UsersAdmin, request: Request, client: CurrentClient, session: Session
) -> SigningKeyRead:
    """Publish a new key, which takes over once every verifier has had the time to fetch it."""
    key = await rotate(session, request.app.state.settings, by=me.id, client=client)
    return _describe(KeyInfo(key, "published" if key.signs_from > utc_now() else "signing"))


def _describe(info: KeyInfo) -> SigningKeyRead:
    key, state = info
    return SigningKeyRead(
        kid=key.kid,
        algorithm=key.algorithm,
        state=state,
        signs_from=key.signs_from,
        created_at=key.created_at,
    )


@well_known.get("/oauth-authorization-server", summary="Authorization server metadata")
async def read_metadata(request: Request) -> AuthorizationServer:
    """Return what an OAuth client needs to know (RFC 8414)."""
    issuer: str = request.app.state.settings.token_issuer
    url = issuer.rstrip("/")
    return AuthorizationServer(
        issuer=issuer,
        token_endpoint=f"{url}/v1/users/token",
        revocation_endpoint=f"{url}/v1/users/token/revoke",
        jwks_uri=f"{url}/.well-known/jwks.json",
        scopes_supported=sorted(service.ADMIN_SCOPES),
    )


@well_known.get("/jwks.json", response_model=KeySet, summary="Keys that verify access tokens")
async def read_jwks(request: Request) -> Response:
    """Return the JSON Web Key Set (RFC 7517)."""
    keys: KeyRing = request.app.state.keys
    return Response(
        keys.jwks(),
        media_type="application/json",
        headers={"Cache-Control": f"public, max-age={JWKS_MAX_AGE}"},
    )
