"""Cursors: where a page of a list ended, opaque and signed, good for the same sort and filters only."""

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import orjson

from items.errors import CursorInvalid

SIGNATURE_BYTES = 16
MAX_CURSOR = 2000
"""Characters: a position holds a name of at most 120, each of which JSON may spell with six."""


class Cursors:
    """Seals and opens cursors with the service's key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, position: list[Any], *, scope: bytes) -> str:
        """Return a cursor for a position; `scope` is the list that it belongs to: its sort and its filters."""
        place = orjson.dumps(position)
        return _spelled(self._sign(place, scope) + place)

    def open(self, cursor: str, *, scope: bytes) -> list[Any]:
        """Return the position that was sealed for this list.

        Raises:
            CursorInvalid: it was sealed for another list, by somebody else, or never.
        """
        try:
            sealed = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        except (binascii.Error, ValueError):
            raise CursorInvalid from None
        # One text has many spellings in base64: the decoder skips what it does not know.
        if _spelled(sealed) != cursor:
            raise CursorInvalid
        signature, place = sealed[:SIGNATURE_BYTES], sealed[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._sign(place, scope)):
            raise CursorInvalid
        position: list[Any] = orjson.loads(place)
        return position

    def _sign(self, place: bytes, scope: bytes) -> bytes:
        return hmac.digest(self._key, b"%d %b%b" % (len(scope), scope, place), "sha256")[:SIGNATURE_BYTES]


def _spelled(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).rstrip(b"=").decode()
