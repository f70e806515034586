"""Lists of items: what they can be asked for, and the statement that answers it.

Pages follow each other by key, not by number: a page begins after the last item of the one before, so items that come
and go in between neither repeat nor hide others.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from sqlalchemy import ColumnElement, Select, func, literal, literal_column, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from items.cursors import MAX_CURSOR, Cursors
from items.models import COLUMNS, DOCUMENT, Item, ItemState
from items.schemas import PRICE_MAX
from shared.text import Id, Positive, Text, Whole

MAX_PAGE = 200
MAX_SEARCH = 200

_decimal = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?").fullmatch


def _plain_number(value: Any) -> Any:
    """Refuse what Python reads as a number and nobody writes: ` 1`, `1_0`, `+1`, `Infinity`."""
    if isinstance(value, str) and not _decimal(value):
        raise ValueError("must be a number")
    return value


PriceBound = Annotated[
    Decimal,
    BeforeValidator(_plain_number),
    Field(ge=0, le=PRICE_MAX),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": PRICE_MAX}),
]
Sort = Literal["created_at", "-created_at", "price", "-price", "name", "-name"]


class ListQuery(BaseModel):
    """The query parameters of a list."""

    limit: Positive = Field(50, description="Items to return; above 200 means 200.")
    skip: Whole = Field(
        0,
        description="Items to leave out. Far into a list, a cursor is quicker and misses nothing.",
    )
    cursor: str | None = Field(
        None,
        max_length=MAX_CURSOR,
        description="Begin after the page that gave this cursor; with the same sort and filters.",
    )
    q: Text | None = Field(
        None,
        max_length=MAX_SEARCH,
        description="Only items in whose name or description each of these words begins a word.",
        examples=["brass comp"],
    )
    in_stock: bool | None = Field(None, description="Only items that are, or are not, in stock.")
    min_price: PriceBound | None = Field(None, description="Only items at this price or above.")
    max_price: PriceBound | None = Field(None, description="Only items at this price or below.")
    owner_id: Id | None = Field(None, description="Only items of this person.")
    sort: Sort = Field("created_at", description="What to sort by; with `-`, descending.")

    @property
    def scope(self) -> bytes:
        """What a cursor is good for: this sort and these filters."""
        return orjson.dumps(
            [self.sort, self.q, self.in_stock, self.owner_id, *map(str, (self.min_price, self.max_price))]
        )


class Page(NamedTuple):
    """Some items of a list, and the cursor of the next ones, if there are more."""

    items: list[ItemState]
    next_cursor: str | None


class _SortKey(NamedTuple):
    column: InstrumentedAttribute[Any]
    dump: Any
    load: Any


_SORT_KEYS: Mapping[str, _SortKey] = {
    "created_at": _SortKey(Item.created_at, datetime.isoformat, datetime.fromisoformat),
    "price": _SortKey(Item.price, str, Decimal),
    "name": _SortKey(Item.name, str, str),
}


async def page(session: AsyncSession, query: ListQuery, cursors: Cursors) -> Page:
    """Return the page that a query asks for.

    Raises:
        CursorInvalid: see Cursors.open.
    """
    limit = min(query.limit, MAX_PAGE)
    after = None if query.cursor is None else cursors.open(query.cursor, scope=query.scope)
    rows = (await session.execute(statement(query, after=after, limit=limit + 1))).all()
    items = [ItemState(*row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items, None)
    key = _SORT_KEYS[query.sort.removeprefix("-")]
    position = [key.dump(getattr(items[-1], key.column.key)), items[-1].id]
    return Page(items, cursors.seal(position, scope=query.scope))


def statement(query: ListQuery, *, after: list[Any] | None, limit: int) -> Select[Any]:
    """Return the statement for a list; `after` is the position in it that the page before ended at."""
    key = _SORT_KEYS[query.sort.removeprefix("-")]
    descending = query.sort.startswith("-")
    matching = select(*COLUMNS).where(*_conditions(query))
    if after is not None:
        value, item_id = after
        reached = tuple_(literal(key.load(value), key.column.type), literal(item_id, Item.id.type))
        place = tuple_(key.column, Item.id)
        matching = matching.where(place < reached if descending else place > reached)
    order = [key.column, Item.id]
    if query.q is not None:
        # OFFSET 0 keeps the planner from reading the list in its order until enough items match: what a word costs
        # would depend on where its items stand, up to all of them (docs/adr/0014).
        found = matching.offset(literal_column("0")).subquery()
        matching, order = select(found), [found.c[key.column.key], found.c.id]
    if query.skip:
        matching = matching.offset(query.skip)
    return matching.order_by(*(column.desc() if descending else column for column in order)).limit(limit)


def _conditions(query: ListQuery) -> Iterator[ColumnElement[bool]]:
    if query.in_stock is not None:
        yield Item.in_stock.is_(query.in_stock)
    if query.min_price is not None:
        yield Item.price >= query.min_price
    if query.max_price is not None:
        yield Item.price <= query.max_price
    if query.owner_id is not None:
        yield Item.owner_id == query.owner_id
    if query.q is not None and (words := query.q.split()):
        yield literal_column(DOCUMENT).op("@@")(
            func.to_tsquery(literal_column("'simple'::regconfig"), _prefixes(words))
        )


def _prefixes(words: list[str]) -> str:
    """Return the text search query for beginnings of words; PostgreSQL takes apart what is in quotes as it did the documents."""
    quoted = (word.replace("\\", "\\\\").replace("'", "''") for word in words)
    return " & ".join(f"'{word}':*" for word in quoted)
