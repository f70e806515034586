"""What the notifications service decides. Entry points own the transactions."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from math import ceil
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from notifications.errors import MailNotFound, NotificationNotFound, RecipientNotAllowed, TooManyMails
from notifications.events import MailFailed, NotificationCreated
from notifications.models import MailJob, Notification, VerifiedAddress
from notifications.settings import NotificationsSettings
from notifications.templates import Template, render
from shared import idempotency, outbox
from shared.logs import get_logger
from shared.times import utc_now
from shared.tokens import Principal

READ_SCOPE = "notifications:read"
SEND_SCOPE = "notifications:send"
SEND_ANY_SCOPE = "notifications:send_any"
SCOPES = {
    READ_SCOPE: "Read one's own notifications, and hear of them live.",
    SEND_SCOPE: "Send mail to oneself and to addresses that are allowed.",
    SEND_ANY_SCOPE: "Send mail to any address.",
}
MAX_PAGE = 200
HOUR = 3600
MAILS_PER_RECIPIENT = 20
"""Mails an address may get in an hour, whoever asks for them: nobody is flooded by us."""
RECIPIENT_RETRY = 600
"""Seconds after which a sender may try an address again that has got enough mails."""

log = get_logger(__name__)


async def notify(
    session: AsyncSession, *, user_id: int, kind: str, title: str, data: dict[str, Any]
) -> Notification:
    """Tell a person something: stored, and sent to the person's sockets once committed."""
    notification = Notification(user_id=user_id, kind=kind, title=title, data=data)
    session.add(notification)
    await session.flush()
    await session.refresh(notification, ["created_at"])
    await outbox.add(session, NotificationCreated.of(notification))
    return notification


async def page(
    session: AsyncSession, *, user_id: int, unread_only: bool, before: int | None, limit: int
) -> Sequence[Notification]:
    """Return a person's notifications, newest first; only those with an id below `before`, if given."""
    query = select(Notification).where(Notification.user_id == user_id)
    if unread_only:
        query = query.where(Notification.read_at.is_(None))
    if before is not None:
        query = query.where(Notification.id < before)
    query = query.order_by(Notification.id.desc()).limit(min(limit, MAX_PAGE))
    return (await session.scalars(query)).all()


async def count_unread(session: AsyncSession, *, user_id: int) -> int:
    """Return how many of a person's notifications are unread."""
    unread = select(func.count()).where(Notification.user_id == user_id, Notification.read_at.is_(None))
    return await session.scalar(unread) or 0


async def mark_read(session: AsyncSession, notification_id: int, *, user_id: int) -> None:
    """Mark one notification as read; reading twice changes nothing.

    Raises:
        NotificationNotFound: the person has none with this id.
    """
    notification = await session.get(Notification, notification_id, with_for_update=True)
    if notification is None or notification.user_id != user_id:
        raise NotificationNotFound(notification_id)
    notification.read_at = notification.read_at or utc_now()


async def mark_all_read(session: AsyncSession, *, user_id: int) -> None:
    """Mark all of a person's notifications as read."""
    await session.execute(
        update(Notification)
        .where(Notification.user_id == user_id, Notification.read_at.is_(None))
        .values(read_at=func.now())
    )


async def queue_mail(
    session: AsyncSession,
    settings: NotificationsSettings,
    *,
    sender: Principal,
    recipient: str,
    subject: str,
    body: str,
) -> MailJob:
    """Store a mail to be delivered.

    Raises:
        RecipientNotAllowed: this is no open relay.
        TooManyMails: the sender has used up the hour's number.
    """
    if not await _may_send_to(session, settings, sender, recipient):
        raise RecipientNotAllowed("This is neither your own verified address nor in an allowed domain.")
    # One sender at a time, or parallel requests would all see room for one more.
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext("mail"), sender.id % 2**31)))
    since = utc_now() - timedelta(seconds=HOUR)
    sent = select(func.count(), func.min(MailJob.created_at)).where(
        MailJob.user_id == sender.id, MailJob.template.is_(None), MailJob.created_at > since
    )
    count, oldest = (await session.execute(sent)).one()
    if count >= settings.mails_per_hour:
        raise TooManyMails(retry_after=max(1, ceil((oldest - since).total_seconds())))
    if await _is_flooded(session, recipient):
        raise TooManyMails(
            "This address has got as many mails as it may in an hour.", retry_after=RECIPIENT_RETRY
        )
    job = MailJob(user_id=sender.id, recipient=recipient, subject=subject, body=body)
    session.add(job)
    await session.flush()
    return job


async def _is_flooded(session: AsyncSession, recipient: str) -> bool:
    """Say whether an address has got its share of the hour. Nobody else is given one while this is decided."""
    address = recipient.lower()
    await session.execute(
        select(func.pg_advisory_xact_lock(func.hashtext("mail to"), func.hashtext(address)))
    )
    got = select(func.count()).where(
        func.lower(MailJob.recipient) == address,
        MailJob.created_at > utc_now() - timedelta(seconds=HOUR),
        MailJob.state != "failed",
    )
    return (await session.scalar(got) or 0) >= MAILS_PER_RECIPIENT


async def queue_template(
    session: AsyncSession,
    *,
    user_id: int,
    recipient: str,
    template: Template,
    values: Mapping[str, str | int],
) -> None:
    """Store a mail that another service asks for, to one of its own users; the mailer finds it at its next look.

    An address that is being flooded gets none: the mail is stored as failed.
    """
    flooded = await _is_flooded(session, recipient)
    mail = render(template, values)
    job = MailJob(
        user_id=user_id,
        recipient=recipient,
        subject=mail.subject,
        body=mail.text,
        html=mail.html,
        template=template,
        attempts=0,
        state="failed" if flooded else "queued",
        last_error="too many mails to this address" if flooded else None,
    )
    session.add(job)
    if flooded:
        await session.flush()
        await outbox.add(session, MailFailed.of(job))
        log.warning("mail.flooded", user_id=user_id, template=template)


async def forget(session: AsyncSession, *, user_id: int) -> None:
    """Delete everything that is held of a person."""
    await session.execute(delete(Notification).where(Notification.user_id == user_id))
    await session.execute(delete(MailJob).where(MailJob.user_id == user_id))
    await session.execute(delete(VerifiedAddress).where(VerifiedAddress.user_id == user_id))
    await idempotency.forget(session, user_id=user_id)


async def _may_send_to(
    session: AsyncSession, settings: NotificationsSettings, sender: Principal, recipient: str
) -> bool:
    if settings.smtp_url is None or SEND_ANY_SCOPE in sender.scopes:
        return True
    domain = recipient.rpartition("@")[2].lower()
    if domain in {allowed.lower() for allowed in settings.mail_allowed_domains}:
        return True
    own = await session.get(VerifiedAddress, sender.id)
    return own is not None and own.email.lower() == recipient.lower()


async def remember_address(session: AsyncSession, *, user_id: int, email: str, version: int) -> None:
    """Remember a person's own address, unless a newer one is known."""
    verified = insert(VerifiedAddress).values(user_id=user_id, email=email, version=version)
    await session.execute(
        verified.on_conflict_do_update(
            index_elements=[VerifiedAddress.user_id],
            set_={"email": verified.excluded.email, "version": verified.excluded.version},
            where=VerifiedAddress.version < verified.excluded.version,
        )
    )


async def get_mail(session: AsyncSession, job_id: int, *, user_id: int) -> MailJob:
    """Return a mail that the person sent.

    Raises:
        MailNotFound: the person sent none with this id.
    """
    job = await session.get(MailJob, job_id)
    if job is None or job.user_id != user_id or job.template is not None:
        raise MailNotFound(job_id)
    return job
