"""What the items API takes and gives, version 1."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    MISSING,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StrictBool,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.config import JsonDict

from shared.text import Text

PRICE_MAX = 1_000_000


def _exact(value: Any) -> Any:
    """Read a JSON number by its shortest decimal form: 19.99 is 19.99, not the nearest binary fraction."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError("must be a number")  # noqa: TRY004  # Pydantic turns ValueError into a 422
    return Decimal(str(value))


Name = Annotated[Text, StringConstraints(min_length=1, max_length=120)]
Description = Annotated[Text, StringConstraints(max_length=2000)]
Price = Annotated[
    Decimal,
    BeforeValidator(_exact),
    Field(gt=0, le=PRICE_MAX, decimal_places=2, allow_inf_nan=False),
    PlainSerializer(float, return_type=float, when_used="json"),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": PRICE_MAX, "multipleOf": 0.01}),
]

_EXAMPLE: JsonDict = {
    "name": "Brass compass",
    "description": "Points north, mostly.",
    "price": 24.5,
    "in_stock": True,
}


class ItemWrite(BaseModel):
    """A whole item as its owner writes it (POST, PUT)."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    description: Description | None = None
    price: Price
    in_stock: StrictBool = True


class ItemPatch(BaseModel):
    """Changes to an item as a JSON merge patch (RFC 7396): null clears, what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"price": 17.5}]})

    name: Name | MISSING = MISSING
    description: Description | MISSING | None = MISSING
    price: Price | MISSING = MISSING
    in_stock: StrictBool | MISSING = MISSING


class ItemRead(BaseModel):
    """An item as everybody sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    description: str | None
    price: Price
    in_stock: bool
    owner_id: int | None = Field(description="Null once the owner's account has been deleted.")
    version: int = Field(description="Grows by one with every change.")
    created_at: datetime
    updated_at: datetime
