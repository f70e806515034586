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


PROBLEMS: tuple[type[Problem], ...] = (ItemNotFound, NotOwner)
"""The service's part of the catalogue."""
