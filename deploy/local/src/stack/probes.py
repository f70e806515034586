"""How the supervisor sees that a process is ready. Every probe is one attempt and answers yes or no."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from stack.settings import reachable

Probe = Callable[[], Awaitable[bool]]

TIMEOUT = 5.0
"""Seconds one attempt may take."""


def blocking(check: Callable[[], bool]) -> Probe:
    """A probe from a synchronous check, run in a thread."""

    async def probe() -> bool:
        return await asyncio.to_thread(check)

    return probe


def http_ready(host: str, port: int) -> Probe:
    """Whether `GET /health/ready` answers 200."""
    target = reachable(host)
    authority = f"[{target}]:{port}" if ":" in target else f"{target}:{port}"

    async def probe() -> bool:
        with suppress(OSError, TimeoutError, ValueError):  # ValueError: what answers is no HTTP
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(target, port)
                try:
                    writer.write(
                        f"GET /health/ready HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
                    )
                    status = await reader.readline()
                    return status.split(b" ")[1:2] == [b"200"]
                finally:
                    writer.close()
        return False

    return probe
