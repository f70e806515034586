"""Follows the event stream for the sockets of this process, from last + 1, whatever happens to the connection."""

import asyncio
from typing import Any

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NATSError
from nats.js.api import StreamInfo

from notifications.hub import Channel, Hub, LiveEvent
from shared.broker import Broker
from shared.logs import get_logger
from shared.pull import following
from shared.streams import EVENTS, ensure

log = get_logger(__name__)

BATCH = 500
RETRY_INTERVAL = 0.5


class LiveReader:
    """Feeds the hub. `caught_up` is set once the hub knows what was recent when the process started."""

    def __init__(self, broker: Broker, hub: Hub, *, memory: int) -> None:
        self._broker = broker
        self._hub = hub
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
        async with following(self._broker, EVENTS, start=start, batch=BATCH) as (messages, pending):
            if not pending:
                self.caught_up.set()
            async for message in messages:
                event = live_event(message)
                if self._hub.contradicts(event):
                    # The server lost its newest messages and gave their numbers to others.
                    self._begin_anew(await ensure(self._broker.js, EVENTS))
                    return
                self._hub.publish(event)
                if message.metadata.num_pending == 0:
                    self.caught_up.set()

    async def _find_start(self) -> None:
        """Go on where the hub is, or begin anew where the stream is another one or has lost what the hub expects."""
        info = await ensure(self._broker.js, EVENTS)
        first, last = info.state.first_seq, info.state.last_seq
        if _epoch(info) != self._hub.epoch or last < self._hub.last:
            self._begin_anew(info)
        elif first > self._hub.last + 1:
            self._hub.restart(self._hub.epoch, first - 1)

    def _begin_anew(self, info: StreamInfo) -> None:
        first, last = info.state.first_seq, info.state.last_seq
        self._hub.restart(_epoch(info), max(first - 1, last - self._memory, 0))


def _epoch(info: StreamInfo) -> str:
    return (info.config.metadata or {}).get("epoch", "")


def live_event(message: Msg) -> LiveEvent:
    """Read a message of the stream; one that is no event is for nobody, and must not end the stream for all."""
    sequence = message.metadata.sequence.stream
    try:
        channels = channels_of(message.subject, orjson.loads(message.data))
    except (ValueError, LookupError, TypeError) as error:
        log.error("live.unreadable", sequence=sequence, error=type(error).__name__)  # noqa: TRY400  # no payload in logs
        channels = ()
    return LiveEvent(sequence, channels, message.data)


def channels_of(subject: str, event: Any) -> tuple[Channel, ...]:
    """Say who may hear of an event: item events are public, a notification is its receiver's alone."""
    match subject.split("."):
        case ["events", "items", "item", _, item_id]:
            return (Channel("items"), Channel(f"items.{item_id}"))
        case ["events", "notifications", "notification", "created", _]:
            return (Channel("me", int(event["data"]["user_id"])),)
        case _:
            return ()
