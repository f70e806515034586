"""Events that the notifications service publishes. None carries a mail's address, subject or body."""

from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from notifications.models import MailJob, Notification
from shared.events import Event


class NotificationCreated(Event):
    """Somebody is told something; delivered live on the topic `me`."""

    type: ClassVar[str] = "notifications.notification.created.v1"

    id: int
    user_id: int
    kind: str
    title: str
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, notification: Notification) -> Self:
        """Describe a new notification."""
        return cls(
            id=notification.id,
            user_id=notification.user_id,
            kind=notification.kind,
            title=notification.title,
            data=notification.data,
            created_at=notification.created_at,
        )

    def aggregate_id(self) -> int:
        """Return the notification's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return 1: a notification never changes but for being read."""
        return 1


class _MailEvent(Event):
    id: int
    user_id: int
    attempts: int

    @classmethod
    def of(cls, job: MailJob) -> Self:
        """Describe how a mail job ended."""
        return cls(id=job.id, user_id=job.user_id, attempts=job.attempts)

    def aggregate_id(self) -> int:
        """Return the mail job's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return 1: a job ends once."""
        return 1


class MailSent(_MailEvent):
    """A mail was handed over to the mail server (or to the folder)."""

    type: ClassVar[str] = "notifications.email.sent.v1"


class MailFailed(_MailEvent):
    """A mail could not be delivered, for good."""

    type: ClassVar[str] = "notifications.email.failed.v1"


EXAMPLES: tuple[Event, ...] = (
    NotificationCreated(
        id=5,
        user_id=7,
        kind="item_created",
        title="“Brass compass” is on offer",
        data={"item_id": 42, "name": "Brass compass"},
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    ),
    MailSent(id=3, user_id=7, attempts=1),
    MailFailed(id=4, user_id=7, attempts=8),
)
"""One of every event type of this service, as contracts/ shows them."""
