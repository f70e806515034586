"""Pulls messages from a JetStream consumer, and notices when the consumer has gone silent.

nats-py's `fetch` waits its whole time-out for a batch to fill once the first live message has come, and pull
consumers have gone silent after a server restart (nats-py#504). So: one pull request is always open, messages are
handed over as they arrive, and missing heartbeats end the iteration for the caller to begin anew.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import orjson
from nats.aio.msg import Msg

from shared.broker import Broker

HEARTBEAT = 1.0
"""Seconds of quiet after which the server says that it is still there."""
SILENCE = 2.5 * HEARTBEAT
EXPIRES = 30.0
"""Seconds after which an unfilled pull request ends and is repeated."""

_NANOSECONDS = 1_000_000_000
_REQUEST_ENDED = frozenset({"404", "408"})
_HEARTBEAT_STATUS = "100"


class ConsumerSilent(ConnectionError):
    """The consumer does not answer any more: the connection, the server or the consumer is gone."""


@asynccontextmanager
async def pulling(
    broker: Broker, stream: str, consumer: str, *, batch: int
) -> AsyncIterator[AsyncIterator[Msg]]:
    """Open an iterator over the consumer's messages, at most `batch` of them delivered ahead.

    The iterator raises ConsumerSilent when it must be opened anew. When the block ends, messages delivered but not
    taken are handed back to the server.
    """
    arrived: asyncio.Queue[Msg] = asyncio.Queue()  # bounded by `batch`: one request is open at a time

    async def receive(message: Msg) -> None:
        arrived.put_nowait(message)

    inbox = broker.client.new_inbox()
    subscription = await broker.client.subscribe(inbox, cb=receive)
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
    request = orjson.dumps(
        {
            "batch": batch,
            "expires": int(EXPIRES * _NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT * _NANOSECONDS),
        }
    )

    async def messages() -> AsyncIterator[Msg]:
        while True:
            await broker.client.publish(subject, request, reply=inbox)
            left = batch
            while left:
                message = await _next(arrived)
                status = message.headers.get("Status") if message.headers and not message.data else None
                if status is None:
                    left -= 1
                    yield message
                elif status in _REQUEST_ENDED:
                    break
                elif status != _HEARTBEAT_STATUS:
                    raise ConsumerSilent(f"{consumer}: {status} {(message.headers or {}).get('Description', '')}")

    try:
        yield messages()
    finally:
        if broker.connected.is_set():
            await subscription.unsubscribe()
            while not arrived.empty():
                message = arrived.get_nowait()
                if message.reply.startswith("$JS.ACK."):
                    await message.nak()


async def _next(arrived: asyncio.Queue[Msg]) -> Msg:
    if not arrived.empty():
        return arrived.get_nowait()
    try:
        async with asyncio.timeout(SILENCE):
            return await arrived.get()
    except TimeoutError:
        raise ConsumerSilent("no heartbeat") from None
