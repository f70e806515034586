"""Text that PostgreSQL can store: neither NUL nor lone surrogates, which JSON can spell and Pydantic lets through."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, EmailStr, Field

MAX_ID = 2**63 - 1


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain lone surrogates")
    return value


Text = Annotated[str, AfterValidator(_storable)]


def _plain_digits(value: Any) -> Any:
    """Refuse what Python and Pydantic read as integers and nobody writes: `1.0`, `+1`, ` 1`, `1_0`."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdigit()):
        raise ValueError("must be an integer")
    return value


Whole = Annotated[int, BeforeValidator(_plain_digits)]
"""An integer in a path or a query, as digits."""
Id = Annotated[Whole, Field(ge=1, le=MAX_ID)]
"""A positive integer id that fits PostgreSQL's bigint."""


def _bare(value: Any) -> Any:
    """Refuse `Ada <ada@example.com>`, of which EmailStr would quietly take the address."""
    if isinstance(value, str) and "<" in value:
        raise ValueError("must be an address without a name")
    return value


Email = Annotated[EmailStr, BeforeValidator(_bare), Field(max_length=254)]
"""An e-mail address, and nothing around it."""
