"""What the commands about events (`python -m <service> events …`) work with."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from shared.broker import Broker
from shared.consumer import Handler, Subscription
from shared.database import Database
from shared.settings import DatabaseSettings

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for NATS."""

Consumers = Mapping[Subscription, Mapping[str, Handler]]
"""What a service consumes, and by which handlers."""


class Failed(Exception):
    """The command could not be carried out; the message is a sentence for the operator."""


class Tool:
    """What the commands work with."""

    def __init__(self, settings: DatabaseSettings, consumers: Consumers) -> None:
        self.settings = settings
        self.consumers = consumers

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Open the service's database."""
        database = Database(self.settings)
        try:
            yield database
        finally:
            await database.close()

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        """Connect to NATS.

        Raises:
            Failed: nobody answers.
        """
        async with Broker(self.settings) as broker:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await broker.connected.wait()
            except TimeoutError:
                raise Failed(
                    f"no connection to {self.settings.nats_url} within {CONNECT_TIMEOUT:.0f} s."
                ) from None
            yield broker


def say(text: str = "") -> None:
    """Print a line of the answer."""
    print(text)  # noqa: T201


def complain(text: str) -> None:
    """Print a line that is not part of the answer."""
    print(text, file=sys.stderr)  # noqa: T201


def told(moment: datetime | None) -> str:
    """Write a point in time, if there is one."""
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else ""
