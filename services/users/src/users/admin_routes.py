"""Administration of accounts: list, search, deactivate, grant scopes, end sessions. Scope `users:admin`."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from shared.auth import requires
from shared.database import ReadSession, Session
from shared.openapi import problems
from shared.text import Id, Positive, Text
from shared.tokens import Principal
from users import admin, service
from users.clients import CurrentClient
from users.errors import CannotDemoteSelf, UserNotFound
from users.schemas import UserAdminPatch, UserRead

router = APIRouter(prefix="/v1/users", tags=["administration"])

UsersAdmin = Annotated[Principal, requires(service.ADMIN_SCOPE)]
UserId = Annotated[Id, Path(description="The user's id.", examples=[1])]


@router.get("", summary="List accounts")
async def list_users(
    _: UsersAdmin,
    request: Request,
    response: Response,
    session: ReadSession,
    limit: Annotated[Positive, Query(description="Accounts to return; above 200 means 200.")] = 50,
    cursor: Annotated[Id | None, Query(description="From the `Link` header of the page before.")] = None,
    q: Annotated[Text | None, Query(max_length=254, description="Part of the address or the name.")] = None,
    is_active: Annotated[
        bool | None, Query(description="Only those that are, or only those that are not.")
    ] = None,
) -> list[UserRead]:
    """Return accounts, newest first; `Link: rel="next"` leads to older ones."""
    limit = min(limit, admin.MAX_PAGE)
    found = await admin.page(session, q=q, is_active=is_active, before=cursor, limit=limit)
    if len(found) == limit:
        query = request.url.include_query_params(cursor=found[-1].id).query
        response.headers["Link"] = f'<{request.scope["path"]}?{query}>; rel="next"'
    return [UserRead.model_validate(user) for user in found]


# `:int` leaves /v1/users/token and its like to their own methods.
@router.get("/{user_id:int}", summary="Read an account", responses=problems(UserNotFound))
async def read_user(_: UsersAdmin, user_id: UserId, session: ReadSession) -> UserRead:
    """Return one account."""
    return UserRead.model_validate(await service.get(session, user_id))


@router.patch(
    "/{user_id:int}", summary="Change an account", responses=problems(UserNotFound, CannotDemoteSelf)
)
async def patch_user(
    me: UsersAdmin,
    user_id: UserId,
    body: UserAdminPatch,
    request: Request,
    client: CurrentClient,
    session: Session,
) -> UserRead:
    """Deactivate or activate an account, or set its scopes. Publishes `users.user.updated.v1`.

    Deactivation ends the person's sessions, and so does taking a scope away.
    """
    user = await admin.change(
        session, request.app.state.settings, user_id, body.model_dump(), by=me, client=client
    )
    return UserRead.model_validate(user)


@router.delete(
    "/{user_id:int}/sessions",
    status_code=204,
    summary="End a person's sessions",
    responses=problems(UserNotFound),
)
async def end_user_sessions(
    me: UsersAdmin, user_id: UserId, request: Request, client: CurrentClient, session: Session
) -> None:
    """Log a person out everywhere."""
    await admin.end_sessions(session, request.app.state.settings, user_id, by=me, client=client)
