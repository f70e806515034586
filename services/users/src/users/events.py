"""Events that the users service publishes, none with an address, a password or a token; and the one command it sends."""

from typing import Any, ClassVar, Self

from shared.events import Command, Event
from users.models import AuditRow, User


class _UserEvent(Event):
    """What every event about an account carries."""

    id: int
    version: int

    def aggregate_id(self) -> int:
        """Return the user's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return the account's version."""
        return self.version


class UserRegistered(_UserEvent):
    """Somebody made an account."""

    type: ClassVar[str] = "users.user.registered.v1"


class UserUpdated(_UserEvent):
    """An account was changed: profile, address, scopes, or whether it is active."""

    type: ClassVar[str] = "users.user.updated.v1"

    is_active: bool
    scopes: list[str]

    @classmethod
    def of(cls, user: User) -> Self:
        """Describe an account after a change."""
        return cls(id=user.id, version=user.version, is_active=user.is_active, scopes=user.scopes)


class PasswordChanged(_UserEvent):
    """An account has a new password."""

    type: ClassVar[str] = "users.user.password_changed.v1"


class UserDeleted(_UserEvent):
    """An account is gone; whoever holds something of the person drops or anonymises it."""

    type: ClassVar[str] = "users.user.deleted.v1"


class SessionRevoked(Event):
    """A session ended before its tokens did: whoever verifies tokens refuses them from now on."""

    type: ClassVar[str] = "users.session.revoked.v1"

    session_id: str
    user_id: int
    tokens_expire_at: int
    """Unix time in seconds after which no access token of the session can be valid."""

    def aggregate_id(self) -> str:
        """Return the session's id."""
        return self.session_id

    def aggregate_version(self) -> int:
        """Return 1: a session ends once."""
        return 1


class AuditRecorded(Event):
    """A sensitive act was put on record: who did what to whose account, from where."""

    type: ClassVar[str] = "users.audit.recorded.v1"

    id: str
    action: str
    actor_id: int | None
    subject_user_id: int | None
    address: str | None
    request_id: str | None
    detail: dict[str, Any]

    @classmethod
    def of(cls, row: AuditRow) -> Self:
        """Describe a record."""
        return cls(
            id=row.id,
            action=row.action,
            actor_id=row.actor_id,
            subject_user_id=row.subject_user_id,
            address=row.address,
            request_id=row.request_id,
            detail=row.detail,
        )

    def aggregate_id(self) -> str:
        """Return the record's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return 1: records do not change."""
        return 1


class SendMail(Command):
    """Asks notifications to mail somebody; `template` is one of theirs, `values` fill it in."""

    type: ClassVar[str] = "notifications.mail.send.v1"
    sender: ClassVar[str] = "users"

    id: str
    user_id: int
    to: str
    template: str
    values: dict[str, str | int]

    def aggregate_id(self) -> str:
        """Return the command's own id."""
        return self.id


class AddressVerified(Command):
    """Tells notifications, and nobody else, which address is a person's own: mail may go there."""

    type: ClassVar[str] = "notifications.address.verified.v1"
    sender: ClassVar[str] = "users"

    user_id: int
    email: str
    version: int

    @classmethod
    def of(cls, user: User) -> Self:
        """Describe an account whose address has just been verified."""
        return cls(user_id=user.id, email=user.email, version=user.version)

    def aggregate_id(self) -> int:
        """Return the account's id."""
        return self.user_id


EXAMPLES: tuple[Event, ...] = (
    UserRegistered(id=7, version=1),
    UserUpdated(id=7, version=2, is_active=True, scopes=["items:write"]),
    PasswordChanged(id=7, version=3),
    UserDeleted(id=7, version=4),
    SessionRevoked(
        session_id="01942a60-7b85-7000-8000-000000000001", user_id=7, tokens_expire_at=1_767_323_945
    ),
    AuditRecorded(
        id="01942a60-7b85-7000-8000-000000000003",
        action="account.changed",
        actor_id=1,
        subject_user_id=7,
        address="192.0.2.7",
        request_id="01942a60-7b85-7000-8000-000000000004",
        detail={"is_active": False},
    ),
    SendMail(
        id="01942a60-7b85-7000-8000-000000000002",
        user_id=7,
        to="ada@example.com",
        template="verify_email",
        values={"code": "pSqOH3uB1n0zP1Jm8QxR2w", "minutes": 30},
    ),
    AddressVerified(user_id=7, email="ada@example.com", version=5),
)
"""One of every event and command type of this service, as contracts/ shows them."""
