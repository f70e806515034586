"""What the operations of the items API answer: one code path for all versions, which say only how they differ."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

import orjson
from fastapi import Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from items import listing, service
from items.conditions import IfMatch, etag_of, is_unchanged
from items.cursors import Cursors
from items.listing import ListQuery, Page
from items.models import ItemState
from items.service import ItemFields
from shared import idempotency
from shared.tokens import Principal

CACHE_CONTROL = "no-cache"
"""Anybody may keep what is public, and asks by If-None-Match whether it is still so."""


class Version(NamedTuple):
    """How a version of the API differs from the others."""

    path: str
    show_price: Callable[[Decimal], float | str]
    show_page: Callable[[list[dict[str, Any]], str | None], object]
    links: bool
    """Whether a page leads to the next by a Link header."""


V1 = Version("/v1/items", float, lambda items, _cursor: items, links=True)
V2 = Version(
    "/v2/items", "{:.2f}".format, lambda items, cursor: {"items": items, "next_cursor": cursor}, links=False
)


async def create(
    version: Version,
    fields: ItemFields,
    me: Principal,
    request: Request,
    key: str | None,
    session: AsyncSession,
) -> Response:
    """Offer an item; once for each idempotency key."""
    attempt = await idempotency.begin(session, request, key, user_id=me.id)
    if attempt.earlier is not None:
        return attempt.earlier
    item = await service.create(session, fields, owner=me)
    answer = _item_answer(version, item, status=201)
    answer.headers["Location"] = f"{version.path}/{item.id}"
    return await attempt.keep(answer)


async def read(version: Version, item_id: int, request: Request) -> Response:
    """Answer an item, or that it is what the client has already."""
    item = await service.get(request.app.state.reader, item_id)
    if is_unchanged(request, item):
        return Response(status_code=304, headers={"ETag": etag_of(item), "Cache-Control": CACHE_CONTROL})
    answer = _item_answer(version, item)
    answer.headers["Cache-Control"] = CACHE_CONTROL
    return answer


async def page(version: Version, query: ListQuery, request: Request) -> Response:
    """Answer a page of a list."""
    cursors: Cursors = request.app.state.cursors
    found: Page = await listing.page(request.app.state.reader, query, cursors)
    shown = version.show_page([_shown(version, item) for item in found.items], found.next_cursor)
    answer = _json(shown)
    answer.headers["Cache-Control"] = CACHE_CONTROL
    if version.links and found.next_cursor is not None:
        answer.headers["Link"] = f'<{_next_target(version, request, found.next_cursor)}>; rel="next"'
    return answer


async def change(
    version: Version,
    item_id: int,
    fields: ItemFields,
    me: Principal,
    if_match: IfMatch,
    session: AsyncSession,
) -> Response:
    """Set fields of an item."""
    return _item_answer(version, await service.change(session, item_id, fields, by=me, if_match=if_match))


async def delete(item_id: int, me: Principal, if_match: IfMatch, session: AsyncSession) -> Response:
    """Take an item away."""
    await service.delete(session, item_id, by=me, if_match=if_match)
    return Response(status_code=204)


def _item_answer(version: Version, item: ItemState, *, status: int = 200) -> Response:
    answer = _json(_shown(version, item), status=status)
    answer.headers["ETag"] = etag_of(item)
    return answer


def _shown(version: Version, item: ItemState) -> dict[str, Any]:
    return {**item._asdict(), "price": version.show_price(item.price)}


def _json(shown: object, *, status: int = 200) -> Response:
    return Response(
        orjson.dumps(shown, option=orjson.OPT_UTC_Z), status_code=status, media_type="application/json"
    )


def _next_target(version: Version, request: Request, cursor: str) -> str:
    """Return the same list from the cursor on: it stands for what was skipped, too."""
    asked = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    kept = [(name, value) for name, value in asked if name not in ("cursor", "skip")]
    return f"{version.path}?{urlencode([*kept, ('cursor', cursor)])}"
