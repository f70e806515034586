"""Problems that only the items service answers."""

from shared.errors import Problem


class ItemNotFound(Problem):
    """No item has this id; it may have been deleted."""

    status = 404
    code = "item_not_found"
    title = "Item not found"

    def __init__(self, item_id: int) -> None:
        super().__init__(f"No item {item_id}.")


class NotOwner(Problem):
    """Only the owner of an item, or somebody with the scope items:admin, may change it."""

    status = 403
    code = "not_owner"
    title = "Not the owner"

    def __init__(self, item_id: int) -> None:
        super().__init__(f"Item {item_id} belongs to somebody else.")


class CursorInvalid(Problem):
    """The cursor was not given out for a list with this sort and these filters. Begin without one."""

    status = 400
    code = "cursor_invalid"
    title = "Cursor invalid"


class VersionConflict(Problem):
    """The item has another version than the request's If-Match names: read it again, and decide anew."""

    status = 412
    code = "version_conflict"
    title = "Version conflict"

    def __init__(self, item_id: int, etag: str) -> None:
        super().__init__(f"Item {item_id} has the ETag {etag} now.", headers={"ETag": etag})


class IfMatchRequired(Problem):
    """Version 2 of the API changes an item only with If-Match: the ETag that the item was read with, or *."""

    status = 428
    code = "if_match_required"
    title = "If-Match required"


PROBLEMS: tuple[type[Problem], ...] = (
    CursorInvalid,
    IfMatchRequired,
    ItemNotFound,
    NotOwner,
    VersionConflict,
)
"""The service's part of the catalogue."""
