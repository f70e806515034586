"""Background work with an owner."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from shared.logs import get_logger

log = get_logger(__name__)

CANCEL_INTERVAL = 1.0
"""Seconds after which a task that was cancelled and goes on is cancelled again."""


@asynccontextmanager
async def running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines while the block runs; then cancel them, last started first, and wait for their end.

    They are expected to run for ever: one that ends with an error ends the process's readiness to be trusted, so
    the error is logged and the process asked to stop; whoever supervises it starts it anew.
    """
    tasks = [
        asyncio.create_task(coroutine, name=getattr(coroutine, "__qualname__", None)) for coroutine in work
    ]
    for task in tasks:
        task.add_done_callback(stop_if_failed)
    try:
        yield
    finally:
        for task in reversed(tasks):
            await end(task)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it ends: libraries (nats-py among them) now and then take a cancellation for their own."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_INTERVAL)


def stop_if_failed(task: asyncio.Task[None]) -> None:
    """Done callback of a task that must not fail: log why it did, and ask the process to stop."""
    if task.cancelled() or (error := task.exception()) is None:
        return
    log.error("task.failed", task=task.get_name(), exc_info=error)
    signal.raise_signal(signal.SIGTERM)
