"""Rate limits, decided in memory without waiting (DESIGN, Rate limits).

The decision is the generic cell rate algorithm: one number per key, the time at which the key's quota is whole again. The
bookkeeping beside it only keeps those numbers, so that replicas can share them one day.
"""

import math
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from gateway.errors import RateLimited

MAX_KEYS: Final = 100_000
"""Users and addresses that one limit remembers; beyond it the ones unseen longest are forgotten (and so forgiven)."""

Key = tuple[str, int] | str
"""(issuer, user id) for a verified token, else a client address as shared.addresses.address_key gives it."""


class LimitSettings(BaseModel):
    """How much a user, or an address without a verified token, may ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quota: int = Field(ge=1, description="Requests that may come at once.")
    window: float = Field(gt=0, description="Seconds in which a spent quota is whole again.")
    per_address: bool = Field(False, description="Count by address even where the user is known.")
    shadow: bool = Field(False, description="Count and report, but refuse nothing.")


class RateLimit:
    """One named limit and who has spent how much of it."""

    __slots__ = (
        "_fields",
        "_full_at",
        "_interval",
        "_older",
        "_rotate_at",
        "_window",
        "name",
        "per_address",
        "policy",
        "refused",
        "shadow",
    )

    def __init__(self, name: str, settings: LimitSettings) -> None:
        self.name = name
        self.per_address = settings.per_address
        self.shadow = settings.shadow
        self.refused = 0
        """Requests over the limit, refused or (shadow) not."""
        self.policy = f'"{name}";q={settings.quota};w={math.ceil(settings.window)}'.encode()
        """Value of the RateLimit-Policy field (draft-ietf-httpapi-ratelimit-headers)."""
        self._fields = b'ratelimit-policy: %b\r\nratelimit: "%b";r=' % (self.policy, name.encode())
        self._window = settings.window
        self._interval = settings.window / settings.quota
        # When each key's quota is whole again. A key not seen for a whole window has spent nothing, so two generations
        # forget in time without looking at any entry.
        self._full_at: dict[Key, float] = {}
        self._older: dict[Key, float] = {}
        self._rotate_at = 0.0

    def take(self, key: Key, now: float) -> bytes:
        """Spend one request and return the RateLimit fields of its response.

        Raises:
            RateLimited: nothing is left; says when to try again.
        """
        if now >= self._rotate_at or len(self._full_at) >= MAX_KEYS:
            self._older, self._full_at = self._full_at, {}
            self._rotate_at = now + self._window
        full_at = self._full_at.get(key)
        if full_at is None:
            full_at = self._older.get(key, now)
        full_at = (full_at if full_at > now else now) + self._interval  # noqa: FURB136  # max() takes thrice as long
        whole_in = full_at - now
        excess = whole_in - self._window
        # Sums of intervals carry rounding errors far smaller than an interval.
        if excess > self._interval * 1e-3:
            self.refused += 1
            if self.shadow:
                return b"%b0\r\n" % self._fields
            raise RateLimited(self.name, self.policy.decode(), retry_after=math.ceil(excess))
        self._full_at[key] = full_at
        return b"%b%d;t=%d\r\n" % (self._fields, -excess / self._interval + 1e-3, math.ceil(whole_in))
