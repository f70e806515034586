"""Text that PostgreSQL can store: Pydantic already refuses lone surrogates, this refuses NUL."""

from typing import Annotated

from pydantic import AfterValidator, Field

MAX_ID = 2**63 - 1


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain NUL characters")
    return value


Text = Annotated[str, AfterValidator(_without_nul)]
Id = Annotated[int, Field(ge=1, le=MAX_ID)]
"""A positive integer id that fits PostgreSQL's bigint."""
