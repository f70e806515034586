"""The moment a process is asked to stop: readiness fails and streams end, before the listeners close."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def draining_on_signals(draining: asyncio.Event) -> Iterator[None]:
    """Set `draining` when a stop signal arrives, then pass it on to whoever handled it before (uvicorn).

    uvicorn runs the lifespan's shutdown only after all connections have closed: too late for long streams to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # a server inside a test's thread gets no signals
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def begin(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(draining.set)
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number in STOP_SIGNALS:
        signal.signal(number, begin)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
