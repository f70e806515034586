"""The connection to NATS ends when it is told to, also while there is no server."""

import asyncio
from typing import ClassVar

import pytest

from shared import tasks
from shared.broker import Broker
from shared.settings import Port, Settings


class NowhereSettings(Settings):
    """Settings of a service whose NATS server cannot be found."""

    service: ClassVar[str] = "items"

    port: Port = 8002
    nats_url: str = "nats://127.0.0.1:1"


async def test_closing_ends_a_client_that_swallows_the_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    """nats-py's does now and then, when an attempt to connect ends at the same moment: it would go on for ever."""
    monkeypatch.setattr(tasks, "CANCEL_INTERVAL", 0.01)
    swallowed = asyncio.Event()

    async def never_found() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    async with asyncio.timeout(10) as limit:
        async with Broker(NowhereSettings()) as broker:
            monkeypatch.setattr(broker.client, "_select_next_server", never_found)
            await asyncio.sleep(0)

    assert swallowed.is_set()
    assert not limit.expired()
