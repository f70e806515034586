"""What the notifications API takes and gives."""

from datetime import datetime
from typing import Annotated, Any, Literal
from unicodedata import category

from email_validator import validate_email
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from shared.text import Email, Pattern, Text

ONE_LINE = Pattern(r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$")


def _one_line(value: str) -> str:
    """Refuse what would end a mail header early (SECURITY N3): control characters and Unicode's line separators."""
    if any(category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise ValueError("must not contain control characters or line breaks")
    return value


def with_ascii_domain(address: str) -> str:
    """Spell an international domain as the DNS and every mail server know it (IDNA)."""
    parts = validate_email(address, check_deliverability=False)
    return f"{parts.local_part}@{parts.ascii_domain}"


class NotificationRead(BaseModel):
    """Something a person was told."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": 12,
                    "kind": "item_created",
                    "title": "“Brass compass” is on offer",
                    "data": {"item_id": 1},
                    "read_at": "2026-01-02T04:05:06Z",
                    "created_at": "2026-01-02T03:04:05Z",
                }
            ]
        },
    )

    id: int
    kind: str
    title: str
    data: dict[str, Any]
    read_at: datetime | None
    created_at: datetime


class UnreadCount(BaseModel):
    """How many notifications are unread."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"unread": 2}]})

    unread: int


class MailCreate(BaseModel):
    """A mail to send."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"to": "ada@example.com", "subject": "Hello", "body": "The compass arrived."}]
        },
    )

    to: Annotated[Email, AfterValidator(with_ascii_domain)]
    subject: Annotated[
        Text, AfterValidator(_one_line), ONE_LINE, StringConstraints(min_length=1, max_length=200)
    ]
    body: Annotated[Text, StringConstraints(min_length=1, max_length=100_000)]


class MailQueued(BaseModel):
    """The mail is stored and will be delivered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queued": True, "id": 3}]})

    queued: Literal[True] = True
    id: int


class MailRead(BaseModel):
    """What became of a mail."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": 3,
                    "state": "sent",
                    "attempts": 2,
                    "last_error": "421 Try again later",
                    "created_at": "2026-01-02T03:04:05Z",
                    "sent_at": "2026-01-02T03:04:06Z",
                }
            ]
        },
    )

    id: int
    state: Literal["queued", "sent", "failed"]
    attempts: int
    last_error: str | None
    created_at: datetime
    sent_at: datetime | None
