"""Text that PostgreSQL can store: neither NUL nor lone surrogates, which JSON can spell and Pydantic lets through."""

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_ID = 2**63 - 1


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("must not contain lone surrogates")
    return value


Text = Annotated[str, AfterValidator(_storable)]
Id = Annotated[int, Field(ge=1, le=MAX_ID)]
"""A positive integer id that fits PostgreSQL's bigint."""
