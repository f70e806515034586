"""What the items service decides. Entry points own the transactions; every change writes its event in the same one."""

from decimal import Decimal
from functools import cache
from typing import Any, TypedDict

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy import delete as delete_from
from sqlalchemy.ext.asyncio import AsyncSession

from items.conditions import IfMatch
from items.errors import ItemNotFound, NotOwner
from items.events import ItemCreated, ItemDeleted, ItemUpdated
from items.models import COLUMNS, Item, ItemState
from items.reading import Reader
from shared import outbox
from shared.database import compiled, execute
from shared.errors import InsufficientScope
from shared.times import utc_now
from shared.tokens import Principal

WRITE_SCOPE = "items:write"
ADMIN_SCOPE = "items:admin"
SCOPES = {
    WRITE_SCOPE: "Offer items, and change and delete one's own.",
    ADMIN_SCOPE: "Change and delete everybody's items.",
}
DISOWN_BATCH = 500
"""Items of a deleted account that are in memory at a time."""


class ItemFields(TypedDict, total=False):
    """The fields of an item that people write."""

    name: str
    description: str | None
    price: Decimal
    in_stock: bool


_OFFER = compiled(
    insert(Item)
    .values({name: bindparam(name) for name in (*ItemFields.__annotations__, "owner_id")})
    .returning(*COLUMNS)
)


async def create(session: AsyncSession, fields: ItemFields, *, owner: Principal) -> ItemState:
    """Offer an item."""
    made = await execute(session, _OFFER, {**fields, "owner_id": owner.id})
    item = ItemState(*(await made.fetchall())[0])
    await outbox.add(session, ItemCreated.of(item, actor_id=owner.id))
    return item


_ITEM = compiled(select(*COLUMNS).where(Item.id == bindparam("id")))


async def get(reader: Reader, item_id: int) -> ItemState:
    """Return an item.

    Raises:
        ItemNotFound: there is none with this id.
        DatabaseUnavailable: see Reader.rows.
    """
    rows = await reader.rows(_ITEM, {"id": item_id}, prepare=True)
    if not rows:
        raise ItemNotFound(item_id)
    return ItemState(*rows[0])


_LOCKED = compiled(select(*COLUMNS).where(Item.id == bindparam("item_id")).with_for_update())


@cache
def _changed(names: frozenset[str]) -> bytes:
    """Return the statement that sets these fields of an item: one for each set that is ever written."""
    changed = update(Item).where(Item.id == bindparam("item_id"))
    return compiled(changed.values({name: bindparam(name) for name in sorted(names)}))


async def change(
    session: AsyncSession, item_id: int, fields: ItemFields, *, by: Principal, if_match: IfMatch
) -> ItemState:
    """Set `fields` of an item.

    Raises:
        ItemNotFound, NotOwner, InsufficientScope, VersionConflict: see _lock_for_change.
    """
    item = await _lock_for_change(session, item_id, by, if_match)
    changes = {**fields, **_next_version(item)}
    await execute(session, _changed(frozenset(changes)), {**changes, "item_id": item_id})
    item = item._replace(**changes)
    await outbox.add(session, ItemUpdated.of(item, actor_id=by.id))
    return item


async def delete(session: AsyncSession, item_id: int, *, by: Principal, if_match: IfMatch) -> None:
    """Take an item away.

    Raises:
        ItemNotFound, NotOwner, InsufficientScope, VersionConflict: see _lock_for_change.
    """
    item = await _lock_for_change(session, item_id, by, if_match)
    await session.execute(delete_from(Item).where(Item.id == item_id))
    await outbox.add(session, ItemDeleted.of(item._replace(**_next_version(item)), actor_id=by.id))


async def disown(session: AsyncSession, *, owner_id: int) -> None:
    """Take the owner off all of a person's items; each change has its event, as any other."""
    owned = (
        select(*COLUMNS)
        .where(Item.owner_id == owner_id)
        .order_by(Item.id)
        .limit(DISOWN_BATCH)
        .with_for_update()
    )
    while rows := (await session.execute(owned)).all():
        before = [ItemState(*row) for row in rows]
        after = [item._replace(owner_id=None, **_next_version(item)) for item in before]
        await session.execute(
            update(Item)
            .where(Item.id.in_([item.id for item in before]))
            .values(owner_id=None, version=Item.version + 1, updated_at=after[0].updated_at)
        )
        await outbox.add(session, *(ItemUpdated.of(item, actor_id=owner_id) for item in after))


async def _lock_for_change(
    session: AsyncSession, item_id: int, by: Principal, if_match: IfMatch
) -> ItemState:
    """Lock an item's row for somebody who may change it.

    Raises:
        ItemNotFound: there is none with this id.
        InsufficientScope: the token carries neither WRITE_SCOPE nor ADMIN_SCOPE.
        NotOwner: it is somebody else's, and the token lacks ADMIN_SCOPE.
        VersionConflict: it is not the version that the change was made for.
    """
    is_admin = ADMIN_SCOPE in by.scopes
    if not is_admin and WRITE_SCOPE not in by.scopes:
        raise InsufficientScope(WRITE_SCOPE)
    found = await (await execute(session, _LOCKED, {"item_id": item_id})).fetchall()
    if not found:
        raise ItemNotFound(item_id)
    item = ItemState(*found[0])
    if not is_admin and item.owner_id != by.id:
        raise NotOwner(item_id)
    if_match.check(item)
    return item


def _next_version(item: ItemState) -> dict[str, Any]:
    return {"version": item.version + 1, "updated_at": utc_now()}
