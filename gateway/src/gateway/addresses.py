"""Where a service is: the addresses of its name, taken in turn (headless Kubernetes services have one per replica)."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final

from shared.logs import get_logger

log = get_logger(__name__)

RESOLVE_SECONDS: Final = 5.0
"""How long an answer of the name service is believed."""
AVOID_SECONDS: Final = 5.0
"""How long an address that could not be reached is avoided while there are others."""
MAX_ADDRESSES: Final = 64

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Ask the system's resolver.

    Raises:
        OSError: it knows no address.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Addresses:
    """The addresses of one service."""

    def __init__(self, host: str, port: int, *, resolve: Resolve = resolve) -> None:
        self._host = host
        self._port = port
        self._resolve = resolve
        self._known: list[str] = [host] if _is_literal(host) else []
        self._resolved_until = float("inf") if self._known else 0.0
        self._avoided: dict[str, float] = {}
        self._turn = 0
        self._resolving = asyncio.Lock()

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return len(self._known) > 1

    def has(self, address: str) -> bool:
        """Whether `address` is one of them, as far as is known."""
        return address in self._known

    async def take(self, now: float) -> str:
        """Return the address whose turn it is, rather one that is not avoided.

        Raises:
            OSError: none is known.
        """
        if now >= self._resolved_until:
            await self._refresh(now)
        for _ in self._known:
            self._turn = (self._turn + 1) % len(self._known)
            address = self._known[self._turn]
            if self._avoided.get(address, 0.0) <= now:
                break
        return self._known[self._turn % len(self._known)]

    def avoid(self, address: str, now: float) -> None:
        """`address` could not be reached."""
        self._avoided = {other: until for other, until in self._avoided.items() if until > now}
        self._avoided[address] = now + AVOID_SECONDS

    async def _refresh(self, now: float) -> None:
        async with self._resolving:
            if now < self._resolved_until:
                return  # somebody else has asked meanwhile
            try:
                found = list(dict.fromkeys(await self._resolve(self._host, self._port)))[:MAX_ADDRESSES]
            except OSError as error:
                if not self._known:
                    raise
                log.warning("addresses.unresolved", host=self._host, error=str(error))
                found = self._known  # the last good answer
            if sorted(found) != sorted(self._known):
                log.info("addresses.changed", host=self._host, addresses=found)
            self._known = found
            self._resolved_until = now + RESOLVE_SECONDS


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
