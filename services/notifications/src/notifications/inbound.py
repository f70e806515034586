"""Events of other services as this one reads them: only what it needs, everything else ignored."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr

from notifications.schemas import with_ascii_domain
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


class AddressVerified(_Inbound):
    """notifications.address.verified.v1, a command"""

    user_id: int
    email: Annotated[EmailStr, AfterValidator(with_ascii_domain)]
    version: int
