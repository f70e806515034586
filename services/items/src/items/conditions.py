"""ETags and the conditions that requests make of them (RFC 9110 sections 8.8.3 and 13)."""

import re
from typing import Annotated, Any

from fastapi import Depends, Request

from items.errors import IfMatchRequired, VersionConflict
from items.models import ItemState
from shared.errors import ValidationFailed

_tag_at = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"').match
_separator_at = re.compile(r"[ \t]*(?:,[ \t]*|$)").match


def etag_of(item: ItemState) -> str:
    """Return the strong ETag of an item: its version."""
    return f'"{item.version}"'


def tags_in(value: str) -> frozenset[str] | None:
    """Return the entity tags of an If-Match or If-None-Match, `*` among them; None if it is malformed."""
    value = value.strip(" \t,")
    if value == "*":
        return frozenset(("*",))
    tags = set()
    position = 0
    while position < len(value):
        tag = _tag_at(value, position)
        separator = tag and _separator_at(value, tag.end())
        if tag is None or separator is None:
            return None
        tags.add(tag.group())
        position = separator.end()
    return frozenset(tags) or None


def _header(request: Request, name: str) -> str | None:
    """Return a header that may come in several lines (RFC 9110 section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def is_unchanged(request: Request, item: ItemState) -> bool:
    """Say whether the client's If-None-Match has the item already; compared weakly, a malformed one is ignored."""
    value = _header(request, "if-none-match")
    if value is None:
        return False
    tags = tags_in(value)
    etag = etag_of(item)
    return tags is not None and not tags.isdisjoint((etag, f"W/{etag}", "*"))


class IfMatch:
    """The tags of an If-Match, or none: then any version will do."""

    def __init__(self, tags: frozenset[str] | None = None) -> None:
        self.tags = tags

    def check(self, item: ItemState) -> None:
        """Compare strongly: a weak tag matches nothing.

        Raises:
            VersionConflict: the item has another version.
        """
        etag = etag_of(item)
        if self.tags is not None and self.tags.isdisjoint((etag, "*")):
            raise VersionConflict(item.id, etag)


def _if_match(request: Request) -> IfMatch:
    value = _header(request, "if-match")
    if value is None:
        return IfMatch()
    tags = tags_in(value)
    if tags is None:
        problem = {"in": "header", "parameter": "If-Match", "code": "etag_malformed"}
        detail = 'must be * or entity tags, such as "3"'
        raise ValidationFailed(f"If-Match: {detail}", errors=[{**problem, "detail": detail}])
    return IfMatch(tags)


def _if_match_required(condition: Annotated[IfMatch, Depends(_if_match)]) -> IfMatch:
    if condition.tags is None:
        raise IfMatchRequired
    return condition


OptionalIfMatch = Annotated[IfMatch, Depends(_if_match)]
RequiredIfMatch = Annotated[IfMatch, Depends(_if_match_required)]


def header_parameter(
    name: str, description: str, *, required: bool = False, pattern: str | None = None
) -> dict[str, Any]:
    """Describe a conditional header for OpenAPI: FastAPI would answer 422 where it is missing, and read one line."""
    parameter = {"name": name, "in": "header", "required": required, "description": description}
    schema = {"type": "string", "examples": ['"3"', "*"]}
    return {**parameter, "schema": schema if pattern is None else {**schema, "pattern": pattern}}


TAGS_PATTERN = r'^(\*|"[!#-~]*"(, "[!#-~]*")*)$'
"""What If-Match takes, written plainly; one that is malformed is refused, whereas If-None-Match then counts as absent."""
