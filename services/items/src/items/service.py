"""What the items service decides. Entry points own the transactions; every change writes its event in the same one."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TypedDict

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from items.errors import ItemNotFound, NotOwner
from items.events import ItemCreated, ItemDeleted, ItemUpdated
from items.models import Item
from shared import outbox
from shared.errors import InsufficientScope
from shared.times import utc_now
from shared.tokens import Principal

WRITE_SCOPE = "items:write"
ADMIN_SCOPE = "items:admin"
SCOPES = {
    WRITE_SCOPE: "Offer items, and change and delete one's own.",
    ADMIN_SCOPE: "Change and delete everybody's items.",
}
MAX_PAGE = 200
DISOWN_BATCH = 500
"""Items of a deleted account that are in memory at a time."""


class ItemFields(TypedDict, total=False):
    """The fields of an item that people write."""

    name: str
    description: str | None
    price: Decimal
    in_stock: bool


async def create(session: AsyncSession, fields: ItemFields, *, owner: Principal) -> Item:
    """Offer an item."""
    item = Item(**fields, owner_id=owner.id)
    session.add(item)
    await session.flush()
    await outbox.add(session, ItemCreated.of(item, actor_id=owner.id))
    return item


async def get(session: AsyncSession, item_id: int) -> Item:
    """Return an item.

    Raises:
        ItemNotFound: there is none with this id.
    """
    item = await session.get(Item, item_id)
    if item is None:
        raise ItemNotFound(item_id)
    return item


async def page(session: AsyncSession, *, skip: int, limit: int) -> Sequence[Item]:
    """Return items in the order they were made; never more than MAX_PAGE."""
    query = select(Item).order_by(Item.id).offset(skip).limit(min(limit, MAX_PAGE))
    return (await session.scalars(query)).all()


async def change(session: AsyncSession, item_id: int, fields: Mapping[str, object], *, by: Principal) -> Item:
    """Set `fields` of an item.

    Raises:
        ItemNotFound, NotOwner, InsufficientScope: see _lock_for_change.
    """
    item = await _lock_for_change(session, item_id, by)
    for name, value in fields.items():
        setattr(item, name, value)
    _bump(item)
    await outbox.add(session, ItemUpdated.of(item, actor_id=by.id))
    return item


async def delete(session: AsyncSession, item_id: int, *, by: Principal) -> None:
    """Take an item away.

    Raises:
        ItemNotFound, NotOwner, InsufficientScope: see _lock_for_change.
    """
    item = await _lock_for_change(session, item_id, by)
    _bump(item)
    event = ItemDeleted.of(item, actor_id=by.id)
    await session.delete(item)
    await outbox.add(session, event)


async def disown(session: AsyncSession, *, owner_id: int) -> None:
    """Take the owner off all of a person's items; each change has its event, as any other."""
    owned = (
        select(Item).where(Item.owner_id == owner_id).order_by(Item.id).limit(DISOWN_BATCH).with_for_update()
    )
    while items := (await session.scalars(owned)).all():
        for item in items:
            item.owner_id = None
            _bump(item)
        await outbox.add(session, *(ItemUpdated.of(item, actor_id=owner_id) for item in items))
        session.expunge_all()


async def _lock_for_change(session: AsyncSession, item_id: int, by: Principal) -> Item:
    """Lock an item's row for somebody who may change it.

    Raises:
        ItemNotFound: there is none with this id.
        InsufficientScope: the token carries neither WRITE_SCOPE nor ADMIN_SCOPE.
        NotOwner: it is somebody else's, and the token lacks ADMIN_SCOPE.
    """
    is_admin = ADMIN_SCOPE in by.scopes
    if not is_admin and WRITE_SCOPE not in by.scopes:
        raise InsufficientScope(WRITE_SCOPE)
    item = await session.scalar(select(Item).where(Item.id == item_id).with_for_update())
    if item is None:
        raise ItemNotFound(item_id)
    if not is_admin and item.owner_id != by.id:
        raise NotOwner(item_id)
    return item


def _bump(item: Item) -> None:
    item.version += 1
    item.updated_at = utc_now()
