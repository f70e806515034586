"""What the items API takes and gives. The versions differ in the price: a JSON number in 1, a string in 2."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, cast

from pydantic import (
    MISSING,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.config import JsonDict

from items.service import ItemFields
from shared.text import Text

PRICE_MAX = 1_000_000

_PRICE_TEXT = r"^(1000000(\.00?)?|[1-9][0-9]{0,5}(\.[0-9]{1,2})?|0\.([1-9][0-9]?|0[1-9]))$"
_is_price_text = re.compile(_PRICE_TEXT).fullmatch


def _exact(value: Any) -> Any:
    """Read a JSON number by its shortest decimal form: 19.99 is 19.99, not the nearest binary fraction."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError("must be a number")  # noqa: TRY004  # Pydantic turns ValueError into a 422
    return Decimal(str(value))


def _price_text(value: Any) -> Any:
    if not isinstance(value, str) or not _is_price_text(value):
        raise ValueError(
            f"must be a string with a number above 0, at most {PRICE_MAX}, with at most 2 decimals"
        )
    return Decimal(value)


# Apart from the types, whose limits are for those who write.
_NAME = Field(description="What it is called in lists; not unique, and searched by `q`.")
_DESCRIPTION = Field(description="Plain text, also searched by `q`; null if there is none.")
_IN_STOCK = Field(description="Whether it can be had now: what its owner says, not a count.")

Name = Annotated[Text, StringConstraints(min_length=1, max_length=120), _NAME]
Description = Annotated[Annotated[Text, StringConstraints(max_length=2000)] | None, _DESCRIPTION]
InStock = Annotated[StrictBool, _IN_STOCK]
Price = Annotated[
    Decimal,
    BeforeValidator(_exact),
    Field(gt=0, le=PRICE_MAX, decimal_places=2, allow_inf_nan=False),
    WithJsonSchema(
        {
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": PRICE_MAX,
            "multipleOf": 0.01,
            "description": "In no named currency; kept as an exact decimal, which version 2 shows as a string.",
        }
    ),
]
PriceText = Annotated[
    Decimal,
    BeforeValidator(_price_text),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": _PRICE_TEXT,
            "examples": ["19.99"],
            "description": "In no named currency; an exact decimal, as a string so that no reader rounds it.",
        }
    ),
]

_EXAMPLE: JsonDict = {
    "name": "Brass compass",
    "description": "Points north, mostly.",
    "price": 24.5,
    "in_stock": True,
}
_MADE: JsonDict = {
    "id": 42,
    **_EXAMPLE,
    "owner_id": 7,
    "version": 1,
    "created_at": "2026-01-02T03:04:05Z",
    "updated_at": "2026-01-02T03:04:05Z",
}
_TEXT_PRICE: JsonDict = {"price": "19.99"}


class _Body(BaseModel):
    """What people write."""

    def fields(self) -> ItemFields:
        """Return the fields that were written, or have a default."""
        return cast("ItemFields", self.model_dump())


class ItemWrite(_Body):
    """A whole item as its owner writes it (POST, PUT)."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    description: Description = None
    price: Price
    in_stock: InStock = True


class ItemPatch(_Body):
    """Changes to an item as a JSON merge patch (RFC 7396): null clears, what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price": 17.5}]})

    name: Name | MISSING = MISSING
    description: Description | MISSING = MISSING
    price: Price | MISSING = MISSING
    in_stock: InStock | MISSING = MISSING


class ItemRead(BaseModel):
    """An item as everybody sees it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_MADE]})

    id: int = Field(description="What the item's path ends in.")
    name: Annotated[str, _NAME]
    description: Annotated[str | None, _DESCRIPTION]
    price: Price
    in_stock: Annotated[bool, _IN_STOCK]
    owner_id: int | None = Field(description="Null once the owner's account has been deleted.")
    version: int = Field(description="Grows by one with every change; the ETag has it.")
    created_at: datetime = Field(
        description="When it was offered; lists are sorted by it unless told otherwise."
    )
    updated_at: datetime = Field(description="When `version` last grew; of a new item, `created_at`.")


class ItemWriteV2(ItemWrite):
    """A whole item as its owner writes it (POST, PUT), with an exact price."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE, **_TEXT_PRICE}]})

    price: PriceText


class ItemPatchV2(ItemPatch):
    """Changes to an item as a JSON merge patch (RFC 7396): null clears, what is missing stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"price": "17.50"}]})

    price: PriceText | MISSING = MISSING


class ItemReadV2(ItemRead):
    """An item as everybody sees it, with an exact price."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_MADE, **_TEXT_PRICE}]})

    price: PriceText


class ItemPage(BaseModel):
    """A page of a list of items."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [{**_MADE, **_TEXT_PRICE}],
                    "next_cursor": "9oQ2mEw1BX5bIjIwMjYtMDEtMDJUMDM6MDQ6MDUrMDA6MDAiLDQyXQ",
                }
            ]
        }
    )

    items: list[ItemReadV2] = Field(description="At most `limit`, in the order of `sort`.")
    next_cursor: str | None = Field(
        description="What the next page begins with; null at the end of the list."
    )
