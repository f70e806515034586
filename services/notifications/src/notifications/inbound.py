"""Events of other services as this one reads them: only what it needs, everything else ignored."""

from pydantic import BaseModel, ConfigDict, EmailStr

from notifications.templates import Template


class _Inbound(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class UserRegistered(_Inbound):
    """users.user.registered.v1"""

    id: int


class ItemChanged(_Inbound):
    """items.item.created.v1, .updated.v1 and .deleted.v1"""

    id: int
    name: str
    owner_id: int | None
    actor_id: int


class UserDeleted(_Inbound):
    """users.user.deleted.v1"""

    id: int


class SendMail(_Inbound):
    """notifications.mail.send.v1, a command"""

    user_id: int
    to: EmailStr
    template: Template
    values: dict[str, str | int]
