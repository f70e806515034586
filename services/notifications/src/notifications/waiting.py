"""asyncio's queue and event for one waiter, without the deques that they hold while nobody waits: 3.8 KiB for each socket."""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Flag:
    """An asyncio.Event that makes its future when somebody waits."""

    __slots__ = ("_set", "_waiting")

    def __init__(self, *, is_set: bool = False) -> None:
        self._set = is_set
        self._waiting: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Say whether it is set."""
        return self._set

    def set(self) -> None:
        """Let whoever waits go on."""
        self._set = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def clear(self) -> None:
        """Let whoever comes wait."""
        self._set = False

    async def wait(self) -> None:
        """Return once it is set."""
        while not self._set:
            if self._waiting is None or self._waiting.cancelled():
                self._waiting = asyncio.get_running_loop().create_future()
            # Shielded: who gives up must not end the wait of another.
            await asyncio.shield(self._waiting)


class Inbox(Generic[T]):
    """An asyncio.Queue without a bound, read by one task.

    Whoever takes from it lets others run first, each time: a client that sends thousands of frames at once has them read
    one by one, between what others have to do.
    """

    __slots__ = ("_arrived", "_items")

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrived = Flag()

    def empty(self) -> bool:
        """Say whether nothing waits."""
        return not self._items

    def put_nowait(self, item: T) -> None:
        """Add an item at the end."""
        self._items.append(item)
        self._arrived.set()

    async def get(self) -> T:
        """Take the first item, once there is one."""
        if self._items:
            await asyncio.sleep(0)
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        return self._items.pop(0)
