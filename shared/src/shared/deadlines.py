"""Deadlines of connections, kept by one timer for all instead of one timer for each wait.

Arming a timer for every request costs more than a microsecond and leaves cancelled timers behind; here a wait is one
attribute. A deadline is noticed up to SWEEP_INTERVAL late.
"""

import asyncio
from typing import Final, Protocol

SWEEP_INTERVAL: Final = 0.25
"""Seconds between two looks at the deadlines."""
NEVER: Final = float("inf")


class Watched(Protocol):
    """What a sweep looks after."""

    deadline: float
    """When `expire` is due, on the loop's clock; NEVER if nothing is waited for."""

    def expire(self, now: float) -> None:
        """End the wait, or move the deadline."""


class Sweep:
    """Calls `expire` of everything watched whose deadline has passed. Runs only while something is watched."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, watched: Watched) -> None:
        """Look after `watched` until it is discarded."""
        self._watched.add(watched)
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_INTERVAL, self._look)

    def discard(self, watched: Watched) -> None:
        """Look after `watched` no longer."""
        self._watched.discard(watched)
        if not self._watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = self._loop.call_later(SWEEP_INTERVAL, self._look)
        now = self._loop.time()
        for watched in [watched for watched in self._watched if watched.deadline <= now]:
            watched.expire(now)
