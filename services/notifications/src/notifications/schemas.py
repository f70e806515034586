"""What the notifications API takes and gives."""

from datetime import datetime
from typing import Annotated, Any, Literal
from unicodedata import category

from email_validator import validate_email
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

from shared.text import Email, Text


def _one_line(value: str) -> str:
    """Refuse what would end a mail header early (SECURITY N3): control characters and Unicode's line separators."""
    if any(category(character) in ("Cc", "Zl", "Zp") for character in value):
        raise ValueError("must not contain control characters or line breaks")
    return value


def _with_ascii_domain(address: str) -> str:
    """Spell an international domain as the DNS and every mail server know it (IDNA)."""
    parts = validate_email(address, check_deliverability=False)
    return f"{parts.local_part}@{parts.ascii_domain}"


class NotificationRead(BaseModel):
    """Something a person was told."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    kind: str
    title: str
    data: dict[str, Any]
    read_at: datetime | None
    created_at: datetime


class UnreadCount(BaseModel):
    """How many notifications are unread."""

    unread: int


class MailCreate(BaseModel):
    """A mail to send."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"to": "ada@example.com", "subject": "Hello", "body": "The compass arrived."}]
        },
    )

    to: Annotated[Email, AfterValidator(_with_ascii_domain)]
    subject: Annotated[Text, AfterValidator(_one_line), StringConstraints(min_length=1, max_length=200)]
    body: Annotated[Text, StringConstraints(min_length=1, max_length=100_000)]


class MailQueued(BaseModel):
    """The mail is stored and will be delivered."""

    queued: Literal[True] = True
    id: int


class MailRead(BaseModel):
    """What became of a mail."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    state: Literal["queued", "sent", "failed"]
    attempts: int
    last_error: str | None
    created_at: datetime
    sent_at: datetime | None
