"""Events of other services as this one reads them: only what it needs, everything else ignored."""

from pydantic import BaseModel, ConfigDict


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
