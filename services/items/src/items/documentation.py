"""What the OpenAPI document says of the items API beyond what FastAPI finds in the routes."""

from typing import Any

from items.conditions import TAGS_PATTERN, header_parameter
from items.errors import CursorInvalid, IfMatchRequired, ItemNotFound, NotOwner, VersionConflict
from shared import idempotency
from shared.errors import InsufficientScope
from shared.openapi import problems

ETAG = {"description": 'The version of the item, such as `"3"`.', "schema": {"type": "string"}}
CACHE_CONTROL = {
    "description": "`no-cache`: may be kept, and asked for by If-None-Match.",
    "schema": {"type": "string"},
}
LOCATION = {"description": "Path of the new item.", "schema": {"type": "string"}}
LINK = {
    "description": '`<…>; rel="next"` leads to the next page; absent on the last.',
    "schema": {"type": "string"},
}

Responses = dict[int | str, dict[str, Any]]

CREATED: Responses = {
    201: {
        "description": "The item.",
        "headers": {"Location": LOCATION, "ETag": ETAG, **idempotency.REPLAYABLE["headers"]},
    },
    **problems(*idempotency.PROBLEMS),
}
FOUND: Responses = {
    200: {"description": "The item.", "headers": {"ETag": ETAG, "Cache-Control": CACHE_CONTROL}},
    304: {
        "description": "The item is what If-None-Match says.",
        "headers": {"ETag": ETAG, "Cache-Control": CACHE_CONTROL},
    },
    **problems(ItemNotFound),
}
LISTED_WITH_LINK: Responses = {
    200: {"description": "Items.", "headers": {"Cache-Control": CACHE_CONTROL, "Link": LINK}},
    **problems(CursorInvalid),
}
LISTED: Responses = {
    200: {"description": "Items.", "headers": {"Cache-Control": CACHE_CONTROL}},
    **problems(CursorInvalid),
}
_REFUSED = problems(InsufficientScope, NotOwner, ItemNotFound, VersionConflict)
_UNCONDITIONAL = problems(IfMatchRequired)
_CHANGED: Responses = {200: {"description": "The item as it is now.", "headers": {"ETag": ETAG}}}
CHANGED: Responses = {**_CHANGED, **_REFUSED}
CHANGED_V2: Responses = {**CHANGED, **_UNCONDITIONAL}
DELETED: Responses = {204: {"description": "The item is gone."}, **_REFUSED}
DELETED_V2: Responses = {**DELETED, **_UNCONDITIONAL}

IF_NONE_MATCH = {
    "parameters": [
        header_parameter("If-None-Match", "ETags that the client has; 304 if one of them is current.")
    ]
}
IF_MATCH = {
    "parameters": [
        header_parameter(
            "If-Match", "ETags, one of which must be current, or `*`; else 412.", pattern=TAGS_PATTERN
        )
    ]
}
IF_MATCH_REQUIRED = {
    "parameters": [
        header_parameter(
            "If-Match",
            "ETags, one of which must be current, or `*`; else 412. Without it: 428.",
            required=True,
            pattern=TAGS_PATTERN,
        )
    ]
}
