"""Text that PostgreSQL can store: neither NUL nor lone surrogates, which JSON can spell and Pydantic lets through."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, EmailStr, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

MAX_ID = 2**63 - 1


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain lone surrogates")
    return value


@dataclass(frozen=True)
class Pattern:
    """What a validator demands, for readers of the OpenAPI document."""

    regex: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the pattern to the JSON Schema."""
        return {**handler(schema), "pattern": self.regex}


Text = Annotated[str, AfterValidator(_storable), Pattern(r"^[^\u0000]*$")]


def _plain_digits(value: Any) -> Any:
    """Refuse what Python and Pydantic read as integers and nobody writes: `1.0`, `+1`, ` 1`, `1_0`."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError("must be an integer")
    return value


# The range comes before the validator: around it, Pydantic checks it but cannot tell the OpenAPI document.
Whole = Annotated[int, Field(ge=0, le=MAX_ID), BeforeValidator(_plain_digits)]
"""An integer from 0 in a path or a query, as digits; it fits PostgreSQL's bigint."""
Positive = Annotated[int, Field(ge=1, le=MAX_ID), BeforeValidator(_plain_digits)]
"""The same from 1."""
Id = Positive
"""What a row is called by."""


def _bare(value: Any) -> Any:
    """Refuse `Ada <ada@example.com>`, of which EmailStr would quietly take the address."""
    if isinstance(value, str) and "<" in value:
        raise ValueError("must be an address without a name")
    return value


Email = Annotated[EmailStr, BeforeValidator(_bare), Field(max_length=254)]
"""An e-mail address, and nothing around it."""
