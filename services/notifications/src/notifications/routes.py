"""The notifications API: routes translate, functions decide."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from notifications import service
from notifications.errors import MailNotFound, NotificationNotFound, RecipientNotAllowed, TooManyMails
from notifications.mailer import Mailer
from notifications.schemas import MailCreate, MailQueued, MailRead, NotificationRead, UnreadCount
from shared import idempotency
from shared.auth import requires
from shared.database import ReadSession, Session, wake_after_commit
from shared.idempotency import REPLAYABLE, IdempotencyKey
from shared.openapi import problems
from shared.text import Id, Positive
from shared.tokens import Principal

router = APIRouter(prefix="/v1/notifications", tags=["notifications"])

Reader = Annotated[Principal, requires(service.READ_SCOPE)]
Sender = Annotated[Principal, requires(service.SEND_SCOPE)]
NotificationId = Annotated[Id, Path(description="The notification's id.", examples=[1])]
MailId = Annotated[Id, Path(description="The mail's id.", examples=[1])]
Limit = Annotated[Positive, Query(description="Notifications to return; above 200 means 200.")]
Cursor = Annotated[Id | None, Query(description="From the `Link` header of the page before.")]


@router.get("", summary="List the own notifications")
async def list_notifications(
    me: Reader,
    request: Request,
    response: Response,
    session: ReadSession,
    limit: Limit = 50,
    cursor: Cursor = None,
    unread: Annotated[bool, Query(description="Only unread ones.")] = False,
) -> list[NotificationRead]:
    """Return the caller's notifications, newest first; `Link: rel="next"` leads to older ones."""
    limit = min(limit, service.MAX_PAGE)
    found = await service.page(session, user_id=me.id, unread_only=unread, before=cursor, limit=limit)
    if len(found) == limit:
        query = request.url.include_query_params(cursor=found[-1].id).query
        response.headers["Link"] = f'<{request.scope["path"]}?{query}>; rel="next"'
    return [NotificationRead.model_validate(notification) for notification in found]


@router.get("/unread-count", summary="Count the own unread notifications")
async def count_unread_notifications(me: Reader, session: ReadSession) -> UnreadCount:
    """Return how many of the caller's notifications are unread."""
    return UnreadCount(unread=await service.count_unread(session, user_id=me.id))


@router.post("/read-all", status_code=204, summary="Mark all as read")
async def mark_all_notifications_read(me: Reader, session: Session) -> None:
    """Mark all of the caller's notifications as read."""
    await service.mark_all_read(session, user_id=me.id)


@router.post(
    "/{notification_id}/read",
    status_code=204,
    summary="Mark one as read",
    responses=problems(NotificationNotFound),
)
async def mark_notification_read(notification_id: NotificationId, me: Reader, session: Session) -> None:
    """Mark a notification as read; doing so twice changes nothing."""
    await service.mark_read(session, notification_id, user_id=me.id)


@router.post(
    "/email",
    status_code=202,
    summary="Send a mail",
    response_model=MailQueued,
    responses={202: REPLAYABLE, **problems(RecipientNotAllowed, TooManyMails, *idempotency.PROBLEMS)},
)
async def send_email(
    body: MailCreate, me: Sender, request: Request, session: Session, key: IdempotencyKey = None
) -> Response:
    """Store a mail; a worker delivers it, with retries. Honours `Idempotency-Key`."""
    attempt = await idempotency.begin(session, request, key, user_id=me.id)
    if attempt.earlier is not None:
        return attempt.earlier
    job = await service.queue_mail(
        session,
        request.app.state.settings,
        sender=me,
        recipient=body.to,
        subject=body.subject,
        body=body.body,
    )
    mailer: Mailer = request.app.state.mailer
    wake_after_commit(session, mailer.queued)
    answer = MailQueued(id=job.id).model_dump_json()
    return await attempt.keep(Response(answer, status_code=202, media_type="application/json"))


@router.get("/email/{mail_id}", summary="Read what became of a mail", responses=problems(MailNotFound))
async def read_email(mail_id: MailId, me: Sender, session: ReadSession) -> MailRead:
    """Return the state of a mail that the caller sent."""
    return MailRead.model_validate(await service.get_mail(session, mail_id, user_id=me.id))
