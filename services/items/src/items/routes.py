"""The items API, version 1: routes translate, functions decide."""

from typing import Annotated, cast

from fastapi import APIRouter, Path, Query, Response

from items import service
from items.schemas import ItemPatch, ItemRead, ItemWrite
from items.service import ItemFields
from shared.auth import CurrentUser, requires
from shared.database import ReadSession, Session
from shared.text import Id, Positive, Whole
from shared.tokens import Principal

router = APIRouter(prefix="/v1/items", tags=["items"])

ItemWriter = Annotated[Principal, requires(service.WRITE_SCOPE)]
ItemId = Annotated[Id, Path(description="The item's id.", examples=[1])]
Skip = Annotated[Whole, Query(description="Items to leave out.")]
Limit = Annotated[Positive, Query(description="Items to return; above 200 means 200.")]


@router.post("", status_code=201, summary="Offer an item")
async def create_item(body: ItemWrite, me: ItemWriter, response: Response, session: Session) -> ItemRead:
    """Make an item that belongs to the caller. Publishes `items.item.created.v1`."""
    item = await service.create(session, cast("ItemFields", body.model_dump()), owner=me)
    response.headers["Location"] = f"/v1/items/{item.id}"
    return ItemRead.model_validate(item)


@router.get("", summary="List items")
async def list_items(session: ReadSession, skip: Skip = 0, limit: Limit = 50) -> list[ItemRead]:
    """Return items in the order they were made."""
    return [ItemRead.model_validate(item) for item in await service.page(session, skip=skip, limit=limit)]


@router.get("/{item_id}", summary="Read an item")
async def read_item(item_id: ItemId, session: ReadSession) -> ItemRead:
    """Return one item."""
    return ItemRead.model_validate(await service.get(session, item_id))


@router.put("/{item_id}", summary="Replace an item")
async def replace_item(item_id: ItemId, body: ItemWrite, me: CurrentUser, session: Session) -> ItemRead:
    """Write the whole item anew. Publishes `items.item.updated.v1`."""
    return ItemRead.model_validate(await service.change(session, item_id, body.model_dump(), by=me))


@router.patch("/{item_id}", summary="Change an item")
async def patch_item(item_id: ItemId, body: ItemPatch, me: CurrentUser, session: Session) -> ItemRead:
    """Apply a JSON merge patch (RFC 7396). Publishes `items.item.updated.v1`."""
    return ItemRead.model_validate(await service.change(session, item_id, body.model_dump(), by=me))


@router.delete("/{item_id}", status_code=204, summary="Delete an item")
async def delete_item(item_id: ItemId, me: CurrentUser, session: Session) -> None:
    """Delete an item. Publishes `items.item.deleted.v1`."""
    await service.delete(session, item_id, by=me)
