"""Background work ends when it is told to, also when a library swallows the telling."""

import asyncio
import signal

import pytest

from shared import tasks
from shared.tasks import running


async def test_work_that_swallows_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "CANCEL_INTERVAL", 0.01)
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    async with running(stubborn()):
        await asyncio.sleep(0)

    assert swallowed == 3


async def test_work_that_fails_asks_the_process_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)

    async def broken() -> None:
        raise ValueError

    async with running(broken()):
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert raised == [signal.SIGTERM]
