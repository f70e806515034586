"""Events that the items service publishes: each carries the whole item as it is after the change."""

from datetime import datetime
from typing import ClassVar, Self

from items.models import ItemState
from shared.events import Event


class _ItemEvent(Event):
    """What every item event carries. Prices are decimal strings; `actor_id` is who made the change."""

    id: int
    name: str
    description: str | None
    price: str
    in_stock: bool
    owner_id: int | None
    version: int
    created_at: datetime
    updated_at: datetime
    actor_id: int

    @classmethod
    def of(cls, item: ItemState, *, actor_id: int) -> Self:
        """Describe an item after a change by `actor_id`."""
        return cls(
            id=item.id,
            name=item.name,
            description=item.description,
            price=f"{item.price:.2f}",
            in_stock=item.in_stock,
            owner_id=item.owner_id,
            version=item.version,
            created_at=item.created_at,
            updated_at=item.updated_at,
            actor_id=actor_id,
        )

    def aggregate_id(self) -> int:
        """Return the item's id."""
        return self.id

    def aggregate_version(self) -> int:
        """Return the item's version."""
        return self.version


class ItemCreated(_ItemEvent):
    """Somebody offers something."""

    type: ClassVar[str] = "items.item.created.v1"


class ItemUpdated(_ItemEvent):
    """An item was changed."""

    type: ClassVar[str] = "items.item.updated.v1"


class ItemDeleted(_ItemEvent):
    """An item is gone; the event carries its last state, with the version after."""

    type: ClassVar[str] = "items.item.deleted.v1"


_COMPASS = {
    "id": 42,
    "name": "Brass compass",
    "description": "Points north, mostly.",
    "price": "19.99",
    "in_stock": True,
    "owner_id": 7,
    "created_at": "2026-01-02T03:04:05+00:00",
    "actor_id": 7,
}

EXAMPLES: tuple[Event, ...] = (
    ItemCreated.model_validate({**_COMPASS, "version": 1, "updated_at": "2026-01-02T03:04:05+00:00"}),
    ItemUpdated.model_validate({**_COMPASS, "version": 2, "updated_at": "2026-01-03T03:04:05+00:00"}),
    ItemDeleted.model_validate({**_COMPASS, "version": 3, "updated_at": "2026-01-04T03:04:05+00:00"}),
)
"""One of every event type of this service, as contracts/ shows them."""
