"""Cross-origin requests (SECURITY G9): an allow-list, decided by the gateway alone."""

from collections.abc import Iterable
from typing import Final

EXPOSED: Final = b"ETag, Location, Link, X-Request-ID, Retry-After, RateLimit"
"""Response fields that pages of other origins may read (API.md)."""
PREFLIGHT_SECONDS: Final = 600
"""How long a browser may remember a preflight."""


class Cors:
    """Which origins may call, and what a browser is told."""

    def __init__(self, origins: Iterable[str], *, credentials: bool = False) -> None:
        allowed = frozenset(origin.encode() for origin in origins)
        self._any = b"*" in allowed
        self._credentials = b"access-control-allow-credentials: true\r\n" if credentials else b""
        self._lines = {
            origin: b"access-control-allow-origin: %b\r\nvary: origin\r\naccess-control-expose-headers: %b\r\n%b"
            % (origin, EXPOSED, self._credentials)
            for origin in allowed
        }

    def allows(self, origin: bytes) -> bool:
        """Whether pages of `origin` may call."""
        return self._any or origin in self._lines

    def lines(self, origin: bytes | None) -> bytes:
        """Return the fields of a response to a request from `origin`."""
        if origin is None:
            return b""
        return self._lines.get(origin) or self._lines.get(b"*", b"vary: origin\r\n")

    def preflight_lines(self, origin: bytes | None, methods: str, headers: bytes | None) -> bytes:
        """Return the fields that answer a preflight (Fetch standard, CORS-preflight fetch)."""
        if origin is None or not self.allows(origin):
            return self.lines(origin)
        return (
            b"%baccess-control-allow-methods: %b\r\naccess-control-allow-headers: %b\r\naccess-control-max-age: %d\r\n"
            % (
                self.lines(origin),
                methods.encode(),
                headers or b"authorization, content-type",
                PREFLIGHT_SECONDS,
            )
        )
