"""The items API, version 2: prices are strings, lists are pages, and changes take If-Match."""

from fastapi import APIRouter, Request, Response

from items import documentation as docs
from items import operations
from items.conditions import RequiredIfMatch
from items.operations import V2
from items.routes import ItemId, ItemWriter, Listing
from items.schemas import ItemPage, ItemPatchV2, ItemReadV2, ItemWriteV2
from shared.auth import CurrentUser
from shared.database import Session
from shared.idempotency import IdempotencyKey

router = APIRouter(prefix=V2.path, tags=["items"])


@router.post("", status_code=201, summary="Offer an item", response_model=ItemReadV2, responses=docs.CREATED)
async def create_item_v2(
    body: ItemWriteV2, me: ItemWriter, request: Request, session: Session, key: IdempotencyKey = None
) -> Response:
    """Make an item that belongs to the caller. Publishes `items.item.created.v1`."""
    return await operations.create(V2, body.fields(), me, request, key, session)


@router.get("", summary="List items", response_model=ItemPage, responses=docs.LISTED)
async def list_items_v2(query: Listing, request: Request) -> Response:
    """Return a page of a list of items; `next_cursor` leads to the next one."""
    return await operations.page(V2, query, request)


@router.get(
    "/{item_id}",
    summary="Read an item",
    response_model=ItemReadV2,
    responses=docs.FOUND,
    openapi_extra=docs.IF_NONE_MATCH,
)
async def read_item_v2(item_id: ItemId, request: Request) -> Response:
    """Return one item."""
    return await operations.read(V2, item_id, request)


@router.put(
    "/{item_id}",
    summary="Replace an item",
    response_model=ItemReadV2,
    responses=docs.CHANGED_V2,
    openapi_extra=docs.IF_MATCH_REQUIRED,
)
async def replace_item_v2(
    item_id: ItemId, body: ItemWriteV2, me: CurrentUser, if_match: RequiredIfMatch, session: Session
) -> Response:
    """Write the whole item anew. Publishes `items.item.updated.v1`."""
    return await operations.change(V2, item_id, body.fields(), me, if_match, session)


@router.patch(
    "/{item_id}",
    summary="Change an item",
    response_model=ItemReadV2,
    responses=docs.CHANGED_V2,
    openapi_extra=docs.IF_MATCH_REQUIRED,
)
async def patch_item_v2(
    item_id: ItemId, body: ItemPatchV2, me: CurrentUser, if_match: RequiredIfMatch, session: Session
) -> Response:
    """Apply a JSON merge patch (RFC 7396), declared as JSON or as `application/merge-patch+json`. Publishes `items.item.updated.v1`."""
    return await operations.change(V2, item_id, body.fields(), me, if_match, session)


@router.delete(
    "/{item_id}",
    status_code=204,
    summary="Delete an item",
    responses=docs.DELETED_V2,
    openapi_extra=docs.IF_MATCH_REQUIRED,
)
async def delete_item_v2(
    item_id: ItemId, me: CurrentUser, if_match: RequiredIfMatch, session: Session
) -> Response:
    """Delete an item. Publishes `items.item.deleted.v1`."""
    return await operations.delete(item_id, me, if_match, session)
