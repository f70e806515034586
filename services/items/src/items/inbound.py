"""Events of other services as this one reads them: only what it needs, everything else ignored."""

from pydantic import BaseModel, ConfigDict


class UserDeleted(BaseModel):
    """users.user.deleted.v1"""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: int
