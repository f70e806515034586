"""Follows the event stream for the sockets of this process, from last + 1, whatever happens to the connection."""

import asyncio

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NATSError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from notifications.hub import Channel, Hub, LiveEvent
from shared.broker import Broker
from shared.ids import new_id
from shared.logs import get_logger
from shared.pull import Pull
from shared.streams import EVENTS, ensure

log = get_logger(__name__)

BATCH = 500
RETRY_INTERVAL = 0.5
INACTIVE_THRESHOLD = 60.0
"""Seconds after which the server forgets the reader of a process that is gone."""


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
        name = f"live-{new_id()}"
        consumer = await self._broker.js.add_consumer(
            EVENTS,
            ConsumerConfig(
                name=name,
                deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
                opt_start_seq=self._hub.last + 1,
                ack_policy=AckPolicy.NONE,
                inactive_threshold=INACTIVE_THRESHOLD,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        if not consumer.num_pending:
            self.caught_up.set()
        async with Pull(self._broker, EVENTS, name, batch=BATCH) as messages:
            async for message in messages:
                metadata = message.metadata
                self._hub.publish(LiveEvent(metadata.sequence.stream, channels_of(message), message.data))
                if metadata.num_pending == 0:
                    self.caught_up.set()

    async def _find_start(self) -> None:
        """Go on where the hub is, or begin anew where the stream is another one or has lost what comes next."""
        info = await ensure(self._broker.js, EVENTS)
        epoch = (info.config.metadata or {}).get("epoch", "")
        first, last = info.state.first_seq, info.state.last_seq
        if epoch != self._hub.epoch:
            self._hub.restart(epoch, max(first - 1, last - self._memory, 0))
        elif first > self._hub.last + 1:
            self._hub.restart(epoch, first - 1)


def channels_of(message: Msg) -> tuple[Channel, ...]:
    """Say who may hear of an event: item events are public, a notification is its receiver's alone."""
    match message.subject.split("."):
        case ["events", "items", "item", _, item_id]:
            return (Channel("items"), Channel(f"items.{item_id}"))
        case ["events", "notifications", "notification", "created", _]:
            return (Channel("me", _receiver(message.data)),)
        case _:
            return ()


def _receiver(payload: bytes) -> int:
    user_id = orjson.loads(payload)["data"]["user_id"]
    return int(user_id)
