"""Pulls messages from a JetStream consumer, and notices when the consumer has gone silent.

nats-py's `fetch` waits its whole time-out for a batch to fill once the first live message has come, and pull
consumers have gone silent after a server restart (nats-py#504). So: one pull request is always open, messages are
handed over as they arrive, and missing heartbeats end the iteration for the caller to begin anew.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Self

import orjson
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, ConnectionDrainingError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from shared.broker import Broker
from shared.ids import new_id

HEARTBEAT = 1.0
"""Seconds of quiet after which the server says that it is still there."""
SILENCE = 2.5 * HEARTBEAT
INACTIVE_THRESHOLD = 60.0
"""Seconds after which the server forgets the reader of a process that is gone."""
EXPIRES = 30.0
"""Seconds after which an unfilled pull request ends and is repeated."""

_NANOSECONDS = 1_000_000_000
_REQUEST_ENDED = frozenset({"404", "408"})
_HEARTBEAT_STATUS = "100"


class ConsumerSilent(ConnectionError):
    """The consumer does not answer any more: the connection, the server or the consumer is gone."""


class Pull:
    """Messages of one consumer, at most `batch` of them delivered ahead. Use as an async context manager.

    Iterating raises ConsumerSilent when the pull must be opened anew. On exit, messages that were delivered but not
    taken are handed back to the server, unless the consumer `acknowledges` nothing.
    """

    def __init__(
        self, broker: Broker, stream: str, consumer: str, *, batch: int, acknowledges: bool = True
    ) -> None:
        self._broker = broker
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._batch = batch
        self._acknowledges = acknowledges
        self._inbox = broker.client.new_inbox()
        # Bounded by `batch`: one request is open at a time.
        self._arrived: asyncio.Queue[Msg] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._subscription = await self._broker.client.subscribe(self._inbox, cb=self._arrived.put)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Without a connection too: the client would subscribe anew, and the server answer an old request to nobody.
        with suppress(ConnectionClosedError, ConnectionDrainingError):
            await self._subscription.unsubscribe()
        if not self._broker.connected.is_set():
            return
        while not self._arrived.empty():
            message = self._arrived.get_nowait()
            if self._acknowledges and message.reply.startswith("$JS.ACK."):
                await message.nak()

    async def __aiter__(self) -> AsyncIterator[Msg]:
        request = orjson.dumps(
            {
                "batch": self._batch,
                "expires": int(EXPIRES * _NANOSECONDS),
                "idle_heartbeat": int(HEARTBEAT * _NANOSECONDS),
            }
        )
        while True:
            await self._broker.client.publish(self._subject, request, reply=self._inbox)
            left = self._batch
            while left:
                message = await self._next()
                status = None if message.data or not message.headers else message.headers.get("Status")
                if status is None:
                    left -= 1
                    yield message
                elif status in _REQUEST_ENDED:
                    break
                elif status != _HEARTBEAT_STATUS:
                    raise ConsumerSilent(f"{status} {(message.headers or {}).get('Description', '')}")

    async def _next(self) -> Msg:
        if not self._arrived.empty():
            return self._arrived.get_nowait()
        try:
            async with asyncio.timeout(SILENCE):
                return await self._arrived.get()
        except TimeoutError:
            raise ConsumerSilent("no heartbeat") from None


@asynccontextmanager
async def following(
    broker: Broker, stream: str, *, start: int, batch: int, subjects: Sequence[str] = ()
) -> AsyncIterator[tuple[Pull, int]]:
    """Read a stream from sequence `start` on, acknowledging nothing: a reader of this process alone.

    `subjects` narrow it to what is published there.

    Yields the pull and how many messages there were to begin with. The server forgets the reader soon after it is gone.
    """
    name = f"reader-{new_id()}"
    consumer = await broker.js.add_consumer(
        stream,
        ConsumerConfig(
            name=name,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            filter_subjects=list(subjects) or None,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=INACTIVE_THRESHOLD,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    async with Pull(broker, stream, name, batch=batch, acknowledges=False) as pull:
        yield pull, consumer.num_pending or 0
