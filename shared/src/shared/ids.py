"""Identifiers of events and requests."""

from uuid_utils import uuid7


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562): unique, and ordered by time of creation."""
    return str(uuid7())
