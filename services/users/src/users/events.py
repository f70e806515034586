"""Events that the users service publishes. None carries an address, a password or a token."""

from typing import ClassVar, Self

from shared.events import Event
from users.models import User


class UserRegistered(Event):
    """Somebody made an account."""

    type: ClassVar[str] = "users.user.registered.v1"

    id: int
    version: int

    @classmethod
    def of(cls, user: User) -> Self:
        """Describe a new account."""
        return cls(id=user.id, version=user.version)

    def aggregate_id(self) -> int:
        """Return the user's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return the account's version."""
        return self.version


EXAMPLES: tuple[Event, ...] = (UserRegistered(id=7, version=1),)
"""One of every event type of this service, as contracts/ shows them."""
