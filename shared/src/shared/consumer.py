"""Durable consumers: effect and inbox row in one transaction, acknowledgement last, poison set aside.

A message is dead-lettered when it cannot be understood, or when its delivery count passes the limit *before* its
handler runs again, so that even a handler that kills the process cannot block or lose anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NATSError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, Header
from nats.js.errors import APIError
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from shared.broker import Broker
from shared.database import Database, database_is_away
from shared.events import Envelope
from shared.logs import get_logger
from shared.outbox import InboxRow
from shared.pull import Pull
from shared.streams import COMMANDS, DEAD, ensure
from shared.tasks import end

log = get_logger(__name__)

BATCH = 100
ACK_WAIT = 30.0
"""Seconds after which a message that was not acknowledged is delivered again."""
MAX_DELIVERIES = 10
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds until the next delivery, by number of deliveries so far."""
RECONNECT_INTERVAL = 0.5
DATABASE_RETRY = (0.2, 0.5, 1.0, 2.0, 5.0)
FINISH_TIMEOUT = 5.0
"""Seconds that a message in work has to end when the consumer stops; then it is left to the next delivery."""

_DATABASE_ERRORS = (DBAPIError, PoolTimeout)

Handler = Callable[[AsyncSession, Envelope], Awaitable[None]]
"""Applies one event's effect in the session's transaction; raises to have it delivered again later."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a durable consumer reads."""

    stream: str
    durable: str
    subject: str


class Consumer:
    """One durable consumer of one service."""

    def __init__(
        self,
        broker: Broker,
        database: Database,
        subscription: Subscription,
        handlers: Mapping[str, Handler],
        *,
        service: str,
    ) -> None:
        self._broker = broker
        self._database = database
        self._subscription = subscription
        self._handlers = handlers
        self._dead_subject = f"dead.{service}.{subscription.durable}"

    async def run(self) -> None:
        """Consume until cancelled. A message in work is finished first."""
        while True:
            await self._broker.connected.wait()
            try:
                await self._declare()
                await self._consume()
            except (NATSError, OSError, TimeoutError) as error:
                log.warning(
                    "consumer.interrupted",
                    consumer=self._subscription.durable,
                    error=str(error) or type(error).__name__,
                )
                await asyncio.sleep(RECONNECT_INTERVAL)

    async def _declare(self) -> None:
        await ensure(self._broker.js, self._subscription.stream)
        await ensure(self._broker.js, DEAD)
        await self._broker.js.add_consumer(
            self._subscription.stream,
            ConsumerConfig(
                name=self._subscription.durable,
                durable_name=self._subscription.durable,
                filter_subject=self._subscription.subject,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT,
                max_deliver=-1,
                max_ack_pending=4 * BATCH,
                deliver_policy=DeliverPolicy.ALL,
            ),
        )

    async def _consume(self) -> None:
        subscription = self._subscription
        async with Pull(self._broker, subscription.stream, subscription.durable, batch=BATCH) as messages:
            async for message in messages:
                work = asyncio.create_task(self.handle(message), name=f"handle-{subscription.durable}")
                try:
                    await asyncio.shield(work)
                except asyncio.CancelledError:
                    await _finish(work)
                    raise

    async def handle(self, message: Msg) -> None:
        """Deal with one message: apply it, set it aside, or hand it back for later."""
        deliveries = message.metadata.num_delivered
        if deliveries > MAX_DELIVERIES:
            await self._set_aside(message, cause=f"delivered {deliveries - 1} times without success")
            return
        try:
            event = Envelope.model_validate_json(message.data)
            await self._apply_when_possible(message, event)
        except ValidationError as error:
            await self._set_aside(message, cause=_explain(error))
        except Exception:
            delay = BACKOFF[min(deliveries, len(BACKOFF)) - 1]
            log.exception("consumer.handler_failed", consumer=self._subscription.durable, retry_in_s=delay)
            await message.nak(delay)
        else:
            await self._acknowledge(message)

    async def _apply_when_possible(self, message: Msg, event: Envelope) -> None:
        """Apply the event; while the database is away, hold on to the message instead of counting failures."""
        attempt = 0
        while True:
            try:
                await self._apply(event)
            except _DATABASE_ERRORS as error:
                if not database_is_away(error):
                    raise
                delay = DATABASE_RETRY[min(attempt, len(DATABASE_RETRY) - 1)]
                attempt += 1
                log.warning("consumer.database_away", error=type(error).__name__, retry_in_s=delay)
                await message.in_progress()
                await asyncio.sleep(delay)
            else:
                return

    async def _apply(self, event: Envelope) -> None:
        handler = self._handlers.get(event.type)
        if handler is None:
            return
        async with self._database.transaction() as session:
            received = await session.scalar(
                insert(InboxRow)
                .values(consumer=self._subscription.durable, event_id=event.id)
                .on_conflict_do_nothing()
                .returning(InboxRow.event_id)
            )
            if received is not None:
                await handler(session, event)

    async def _acknowledge(self, message: Msg) -> None:
        await message.ack()

    async def _set_aside(self, message: Msg, *, cause: str) -> None:
        """Move the message to the dead-letter stream; it is acknowledged only once it is there."""
        metadata = message.metadata
        headers = {
            Header.MSG_ID: f"{metadata.stream}.{self._subscription.durable}.{metadata.sequence.stream}",
            "Tollhouse-Cause": " ".join(cause.split())[:500],
            "Tollhouse-Subject": message.subject,
            "Tollhouse-Sequence": str(metadata.sequence.stream),
            "Tollhouse-Deliveries": str(metadata.num_delivered),
        }
        # A command may carry a secret that nobody but its receiver may read.
        payload = b"" if metadata.stream == COMMANDS else message.data
        try:
            await self._broker.js.publish(self._dead_subject, payload, headers=headers)
        except (NATSError, APIError, TimeoutError) as error:
            log.warning("consumer.dead_letter_failed", error=str(error) or type(error).__name__)
            with suppress(NATSError):
                await message.nak(BACKOFF[-1])
            return
        log.error("consumer.dead_letter", consumer=self._subscription.durable, cause=cause)
        await self._acknowledge(message)


async def _finish(work: asyncio.Task[None]) -> None:
    _, unfinished = await asyncio.wait({work}, timeout=FINISH_TIMEOUT)
    if unfinished:
        await end(work)


def _explain(error: ValidationError) -> str:
    """Say what is wrong with a message, without its values."""
    return orjson.dumps(error.errors(include_input=False, include_url=False, include_context=False)).decode()
