"""Lists of items: what they can be asked for, and the statement that answers it.

Pages follow each other by key, not by number: a page begins after the last item of the one before, so items that come
and go in between neither repeat nor hide others.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Numeric,
    bindparam,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy import Text as TextType
from sqlalchemy.orm import InstrumentedAttribute

from items.cursors import MAX_CURSOR, Cursors
from items.models import COLUMNS, DOCUMENT, Item, ItemState
from items.reading import Reader
from items.schemas import PRICE_MAX
from shared.database import compiled
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


async def page(reader: Reader, query: ListQuery, cursors: Cursors) -> Page:
    """Return the page that a query asks for.

    Raises:
        CursorInvalid: see Cursors.open.
        DatabaseUnavailable: see Reader.rows.
    """
    limit = min(query.limit, MAX_PAGE)
    after = None if query.cursor is None else cursors.open(query.cursor, scope=query.scope)
    # Not prepared: a plan made for any words and prices would be a bad one for most.
    rows = await reader.rows(*listed(query, after=after, limit=limit + 1), prepare=False)
    items = [ItemState(*row) for row in rows[:limit]]
    if len(rows) <= limit:
        return Page(items, None)
    key = _SORT_KEYS[query.sort.removeprefix("-")]
    position = [key.dump(getattr(items[-1], key.column.key)), items[-1].id]
    return Page(items, cursors.seal(position, scope=query.scope))


def listed(query: ListQuery, *, after: list[Any] | None, limit: int) -> tuple[bytes, dict[str, Any]]:
    """Return the statement for a list and its parameters; `after` is where in it the page before ended."""
    parameters: dict[str, Any] = {
        name: value for name in _CONDITIONS if (value := getattr(query, name)) is not None
    }
    if query.q is not None:
        parameters["q"] = _prefixes(query.q.split())
        if not parameters["q"]:
            del parameters["q"]
    if query.skip:
        parameters["skip"] = query.skip
    if after is not None:
        load = _SORT_KEYS[query.sort.removeprefix("-")].load
        parameters |= {"after_key": load(after[0]), "after_id": after[1]}
    text = _statement(query.sort, frozenset(parameters))
    return text, {**parameters, "limit": limit}


_CONDITIONS: Mapping[str, ColumnElement[bool]] = {
    "in_stock": Item.in_stock == bindparam("in_stock", type_=Boolean),
    "min_price": Item.price >= bindparam("min_price", type_=Numeric),
    "max_price": Item.price <= bindparam("max_price", type_=Numeric),
    "owner_id": Item.owner_id == bindparam("owner_id", type_=BigInteger),
    "q": literal_column(DOCUMENT).op("@@")(
        func.to_tsquery(literal_column("'simple'::regconfig"), bindparam("q", type_=TextType))
    ),
}


@cache
def _statement(sort: Sort, named: frozenset[str]) -> bytes:
    """Return the statement for lists of this sort that give these parameters: a few hundred, each compiled once."""
    column = _SORT_KEYS[sort.removeprefix("-")].column
    descending = sort.startswith("-")
    matching = select(*COLUMNS).where(
        *(condition for name, condition in _CONDITIONS.items() if name in named)
    )
    if "after_id" in named:
        place = tuple_(column, Item.id)
        reached = tuple_(bindparam("after_key", type_=column.type), bindparam("after_id", type_=BigInteger))
        matching = matching.where(place < reached if descending else place > reached)
    order = [column, Item.id]
    if "q" in named:
        # OFFSET 0 keeps the planner from reading the list in its order until enough items match: what a word costs
        # would depend on where its items stand, up to all of them (docs/adr/0008).
        found = matching.offset(literal_column("0")).subquery()
        matching, order = select(found), [found.c[column.key], found.c.id]
    if "skip" in named:
        matching = matching.offset(bindparam("skip", type_=BigInteger))
    matching = matching.order_by(*(each.desc() if descending else each for each in order))
    return compiled(matching.limit(bindparam("limit", type_=BigInteger)))


def _prefixes(words: list[str]) -> str:
    """Return the text search query for beginnings of words; PostgreSQL takes apart what is in quotes as it did the documents."""
    quoted = (word.replace("\\", "\\\\").replace("'", "''") for word in words)
    return " & ".join(f"'{word}':*" for word in quoted)
