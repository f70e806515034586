"""When to leave a service alone, and how often to ask it twice."""

from typing import Final

RETRY_DEPOSIT: Final = 0.1
"""What each request adds to the budget: one retry for ten requests."""
RETRY_RESERVE: Final = 10.0
"""The most that the budget holds, so that a burst of failures is not answered by a burst of retries."""


class Breaker:
    """Refuses requests to a service that has only failed lately, but for a probe now and then.

    Failures are those that hold something up: timeouts and broken exchanges. A refused connection costs nothing, and
    a service that restarts must be reached again at once, so that does not count.
    """

    __slots__ = ("_failures", "_longest", "_open_for", "_retry_at", "_shortest", "_threshold", "is_open")

    def __init__(self, threshold: int, shortest: float, longest: float) -> None:
        self._threshold = threshold
        self._shortest = shortest
        self._longest = longest
        self._failures = 0
        self._open_for = shortest
        self._retry_at = 0.0
        self.is_open = False
        """Whether requests are refused."""

    def admits(self, now: float) -> bool:
        """Whether a request may go now. While open, one in a while may: the probe."""
        if not self.is_open:
            return True
        if now < self._retry_at:
            return False
        self._retry_at = now + self._open_for
        return True

    def retry_after(self, now: float) -> float:
        """Return the seconds until the next probe."""
        return max(self._retry_at - now, 0.0)

    def succeeded(self) -> None:
        """The service answered: everything may go again."""
        if self._failures:
            self._failures = 0
            self._open_for = self._shortest
            self.is_open = False

    def failed(self, now: float) -> None:
        """The service held a request up for nothing."""
        if self.is_open:
            self._open_for = min(self._open_for * 2, self._longest)
        self._failures += 1
        self.is_open = self._failures >= self._threshold
        self._retry_at = now + self._open_for


class RetryBudget:
    """Bounds retries by a share of the requests, so that retries cannot finish a service that is going down."""

    __slots__ = ("_left", "made")

    def __init__(self) -> None:
        self._left = RETRY_RESERVE
        self.made = 0
        """Retries so far."""

    def deposit(self) -> None:
        """A request was made."""
        if self._left < RETRY_RESERVE:
            self._left += RETRY_DEPOSIT

    def withdraw(self) -> bool:
        """Whether a retry may be made; it counts."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        self.made += 1
        return True
