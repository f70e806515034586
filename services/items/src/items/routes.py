"""The items API, version 1: routes translate, functions decide."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from items import documentation as docs
from items import operations, service
from items.conditions import OptionalIfMatch
from items.listing import ListQuery
from items.operations import V1
from items.schemas import ItemPatch, ItemRead, ItemWrite
from shared.auth import CurrentUser, requires
from shared.database import Session
from shared.idempotency import IdempotencyKey
from shared.text import Id
from shared.tokens import Principal

router = APIRouter(prefix=V1.path, tags=["items"])

ItemWriter = Annotated[Principal, requires(service.WRITE_SCOPE)]
ItemId = Annotated[Id, Path(description="The item's id.", examples=[1])]
Listing = Annotated[ListQuery, Query()]


@router.post("", status_code=201, summary="Offer an item", response_model=ItemRead, responses=docs.CREATED)
async def create_item(
    body: ItemWrite, me: ItemWriter, request: Request, session: Session, key: IdempotencyKey = None
) -> Response:
    """Make an item that belongs to the caller. Publishes `items.item.created.v1`."""
    return await operations.create(V1, body.fields(), me, request, key, session)


@router.get("", summary="List items", response_model=list[ItemRead], responses=docs.LISTED_WITH_LINK)
async def list_items(query: Listing, request: Request) -> Response:
    """Return a page of a list of items; `Link: rel="next"` leads to the next one."""
    return await operations.page(V1, query, request)


@router.get(
    "/{item_id}",
    summary="Read an item",
    response_model=ItemRead,
    responses=docs.FOUND,
    openapi_extra=docs.IF_NONE_MATCH,
)
async def read_item(item_id: ItemId, request: Request) -> Response:
    """Return one item."""
    return await operations.read(V1, item_id, request)


@router.put(
    "/{item_id}",
    summary="Replace an item",
    response_model=ItemRead,
    responses=docs.CHANGED,
    openapi_extra=docs.IF_MATCH,
)
async def replace_item(
    item_id: ItemId, body: ItemWrite, me: CurrentUser, if_match: OptionalIfMatch, session: Session
) -> Response:
    """Write the whole item anew. Publishes `items.item.updated.v1`."""
    return await operations.change(V1, item_id, body.fields(), me, if_match, session)


@router.patch(
    "/{item_id}",
    summary="Change an item",
    response_model=ItemRead,
    responses=docs.CHANGED,
    openapi_extra=docs.IF_MATCH,
)
async def patch_item(
    item_id: ItemId, body: ItemPatch, me: CurrentUser, if_match: OptionalIfMatch, session: Session
) -> Response:
    """Apply a JSON merge patch (RFC 7396), declared as JSON or as `application/merge-patch+json`. Publishes `items.item.updated.v1`."""
    return await operations.change(V1, item_id, body.fields(), me, if_match, session)


@router.delete(
    "/{item_id}",
    status_code=204,
    summary="Delete an item",
    responses=docs.DELETED,
    openapi_extra=docs.IF_MATCH,
)
async def delete_item(
    item_id: ItemId, me: CurrentUser, if_match: OptionalIfMatch, session: Session
) -> Response:
    """Delete an item. Publishes `items.item.deleted.v1`."""
    return await operations.delete(item_id, me, if_match, session)
