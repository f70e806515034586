"""Follows the event stream for the clients of this process, from last + 1, whatever happens to the connection."""

import asyncio

from nats.errors import Error as NATSError
from nats.js.api import StreamInfo

from notifications.history import History, epoch_of
from notifications.hub import Hub
from shared.broker import Broker
from shared.logs import get_logger
from shared.pull import following
from shared.streams import EVENTS, ensure

log = get_logger(__name__)

BATCH = 500
RETRY_INTERVAL = 0.5
BURST_BYTES = 256 * 1024
"""Bytes of events after which sockets get a chance to take what was written: a burst alone must make nobody slow."""


class LiveReader:
    """Feeds the hub. `caught_up` is set once the hub knows what was recent when the process started."""

    def __init__(self, broker: Broker, hub: Hub, history: History, *, memory: int) -> None:
        self._broker = broker
        self._hub = hub
        self._history = history
        self._memory = memory
        self.caught_up = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._broker.connected.wait()
            try:
                await self._follow()
            except (NATSError, OSError, TimeoutError) as error:
                log.warning("live.interrupted", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_INTERVAL)

    async def _follow(self) -> None:
        await self._find_start()
        # From the last event on, not behind it, to see that the stream still has it.
        start = max(self._hub.last, 1)
        burst = 0
        async with following(self._broker, EVENTS, start=start, batch=BATCH) as (messages, pending):
            if not pending:
                self.caught_up.set()
            async for message in messages:
                event = await self._history.live_event(message)
                if self._hub.contradicts(event):
                    # The server lost its newest messages and gave their numbers to others.
                    self._begin_anew(await ensure(self._broker.js, EVENTS))
                    return
                self._hub.publish(event)
                if message.metadata.num_pending == 0:
                    self.caught_up.set()
                burst += len(event.payload)
                if burst > BURST_BYTES:
                    burst = 0
                    await asyncio.sleep(0)

    async def _find_start(self) -> None:
        """Go on where the hub is, or begin anew where the stream is another one or has lost what the hub expects."""
        info = await ensure(self._broker.js, EVENTS)
        first, last = info.state.first_seq, info.state.last_seq
        if epoch_of(info.config.metadata) != self._hub.epoch or last < self._hub.last:
            self._begin_anew(info)
        elif first > self._hub.last + 1:
            self._hub.restart(self._hub.epoch, first - 1)

    def _begin_anew(self, info: StreamInfo) -> None:
        first, last = info.state.first_seq, info.state.last_seq
        self._hub.restart(epoch_of(info.config.metadata), max(first - 1, last - self._memory, 0))
