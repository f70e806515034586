"""What the notifications API takes and gives."""

from datetime import datetime
from typing import Annotated, Any, Literal
from unicodedata import category

from email_validator import validate_email
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

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
                    "data": {"item_id": 1, "name": "Brass compass"},
                    "read_at": "2026-01-02T04:05:06Z",
                    "created_at": "2026-01-02T03:04:05Z",
                }
            ]
        },
    )

    id: int = Field(description="What to mark it as read by; a later one has a greater id.")
    kind: str = Field(
        description="What happened, for programs: `welcome`, `item_created`, `item_changed_by_admin`, "
        "`item_removed_by_admin`; more may come."
    )
    title: str = Field(description="The same for people, in English.")
    data: dict[str, Any] = Field(
        description="What it is about: `item_id` and `name` of an item; nothing for `welcome`."
    )
    read_at: datetime | None = Field(description="When it was first marked as read; null while unread.")
    created_at: datetime = Field(
        description="When the person was told, as a rule a moment after it happened."
    )


class UnreadCount(BaseModel):
    """How many notifications are unread."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"unread": 2}]})

    unread: int = Field(description="All of the caller's with `read_at` null.")


class MailCreate(BaseModel):
    """A mail to send."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"to": "ada@example.com", "subject": "Hello", "body": "The compass arrived."}]
        },
    )

    to: Annotated[Email, AfterValidator(with_ascii_domain)] = Field(
        description="Your own verified address or one of an allowed domain; any with `notifications:send_any`, "
        "or where no mail server is set."
    )
    subject: Annotated[
        Text, AfterValidator(_one_line), ONE_LINE, StringConstraints(min_length=1, max_length=200)
    ] = Field(description="One line: line breaks and control characters are refused.")
    body: Annotated[Text, StringConstraints(min_length=1, max_length=100_000)] = Field(
        description="Sent as plain text, without HTML."
    )


class MailQueued(BaseModel):
    """The mail is stored and will be delivered."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"queued": True, "id": 3}]})

    queued: Literal[True] = Field(True, description="Always true: it is tried until sent or given up.")
    id: int = Field(description="What became of it is at `/v1/notifications/email/{mail_id}`.")


class MailRead(BaseModel):
    """What became of a mail."""

    # Examples field by field: there is always one that is null, which FastAPI leaves out of an example of them all.
    model_config = ConfigDict(from_attributes=True)

    id: int = Field(description="From the answer to the request that sent it.", examples=[3])
    state: Literal["queued", "sent", "failed"] = Field(
        description="`queued` until it is handed over (`sent`), or refused for good or given up (`failed`)."
    )
    attempts: int = Field(description="Deliveries begun so far, including one under way.", examples=[2])
    last_error: str | None = Field(
        description="Why the last attempt failed; null if none has, and once the mail is sent.",
        examples=["421 Try again later"],
    )
    created_at: datetime = Field(description="When it was asked for.", examples=["2026-01-02T03:04:05Z"])
    sent_at: datetime | None = Field(
        description="When it was handed over; null before that, and if it has failed.",
        examples=["2026-01-02T03:04:06Z"],
    )
