"""Durable consumers: effect and inbox row in one transaction, acknowledgement last, poison set aside.

A message is dead-lettered when it cannot be understood, or when its delivery count passes the limit *before* its
handler runs again, so that even a handler that kills the process cannot block or lose anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NATSError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, BadRequestError, ServerError
from pydantic import ValidationError
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from shared.broker import Broker
from shared.consumer_meter import ConsumerMeter
from shared.database import Database, database_is_away
from shared.dead_letters import DeadLetter, Failure, Failures, place_of
from shared.events import Envelope
from shared.logs import get_logger
from shared.metrics import Metrics
from shared.outbox import InboxRow
from shared.pull import Pull
from shared.streams import COMMANDS, DEAD, ensure
from shared.tasks import end, running
from shared.times import utc_now

log = get_logger(__name__)

BATCH = 20
"""Messages delivered ahead. The last of them waits for the others: all together must take less than ACK_WAIT, or it is
delivered again, and its deliveries are counted, though nothing failed."""
MAX_ACK_PENDING = 400
"""Messages delivered ahead to all replicas together."""
ACK_WAIT = 30.0
"""Seconds after which a message that was not acknowledged is delivered again."""
MAX_DELIVERIES = 10
BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Seconds until the next delivery, by number of deliveries so far."""
RECONNECT_INTERVAL = 0.5
CONFLICT_INTERVAL = 30.0
"""Seconds until a declaration that the server refused is tried again: an operator has to change something first."""
MEASURE_INTERVAL = 5.0
"""Seconds between two looks at how far a consumer is behind."""
DATABASE_RETRY = (0.2, 0.5, 1.0, 2.0, 5.0)
FINISH_TIMEOUT = 5.0
"""Seconds that a message in work has to end when the consumer stops; then it is left to the next delivery."""

_REFUSED_CHANGES = frozenset({10012, 10148})
"""Error codes of JetStream: the consumer cannot be made so, or it exists and cannot be changed so."""
_DATABASE_ERRORS = (DBAPIError, PoolTimeout)

Result = Literal["applied", "repeated", "ignored"]
"""What became of an event: it had its effect, it had had it before, or it is of a type that is not handled."""

Handler = Callable[[AsyncSession, Envelope], Awaitable[None]]
"""Applies one event's effect in the session's transaction; raises to have it delivered again later."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a durable consumer reads."""

    stream: str
    durable: str
    subject: str


class ConsumerConflict(RuntimeError):
    """A durable consumer exists with a configuration that cannot be changed to ours."""


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
        metrics: Metrics | None = None,
    ) -> None:
        self._broker = broker
        self._database = database
        self._subscription = subscription
        self._handlers = handlers
        self._failures = Failures()
        self._meter = ConsumerMeter(metrics or Metrics(), subscription.durable)
        self._dead_subject = f"dead.{service}.{subscription.durable}"

    async def run(self) -> None:
        """Consume until cancelled. A message in work is finished first."""
        async with running(self._measure()):
            while True:
                await self._broker.connected.wait()
                try:
                    await self._declare()
                    await self._consume()
                except ConsumerConflict as conflict:
                    log.error("consumer.conflict", consumer=self._subscription.durable, error=str(conflict))  # noqa: TRY400  # the sentence says it all
                    await asyncio.sleep(CONFLICT_INTERVAL)
                except (NATSError, OSError, TimeoutError) as error:
                    log.warning(
                        "consumer.interrupted",
                        consumer=self._subscription.durable,
                        error=str(error) or type(error).__name__,
                    )
                    await asyncio.sleep(RECONNECT_INTERVAL)

    async def _declare(self) -> None:
        """Create the consumer, or bring it up to the declaration; where it stands in the stream stays.

        Raises:
            ConsumerConflict: the server refuses the change; nothing was changed.
        """
        await ensure(self._broker.js, self._subscription.stream)
        await ensure(self._broker.js, DEAD)
        try:
            await self._broker.js.add_consumer(self._subscription.stream, self._config())
        except (BadRequestError, ServerError) as error:
            if error.err_code not in _REFUSED_CHANGES:
                raise
            raise ConsumerConflict(
                f"Consumer {self._subscription.durable} of stream {self._subscription.stream} cannot be changed: "
                f"{error.description}. Delete it as the operator, or give the new one another name."
            ) from error

    def _config(self) -> ConsumerConfig:
        return ConsumerConfig(
            name=self._subscription.durable,
            durable_name=self._subscription.durable,
            filter_subject=self._subscription.subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT,
            max_deliver=-1,
            max_ack_pending=MAX_ACK_PENDING,
            deliver_policy=DeliverPolicy.ALL,
        )

    async def _measure(self) -> None:
        """Show how far the consumer is behind."""
        while True:
            if self._broker.connected.is_set():
                with suppress(NATSError, OSError, TimeoutError):
                    self._meter.show(
                        await self._broker.js.consumer_info(
                            self._subscription.stream, self._subscription.durable
                        )
                    )
            await asyncio.sleep(MEASURE_INTERVAL)

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
        sequence = message.metadata.sequence.stream
        if deliveries > 1:
            self._meter.redelivered()
        if deliveries > MAX_DELIVERIES:
            cause = f"delivered {deliveries - 1} times without success"
            await self._set_aside(message, cause=cause, failure=self._failures.of(sequence))
            return
        try:
            event = Envelope.model_validate_json(message.data)
            result = await self._apply_when_possible(message, event)
        except ValidationError as error:
            failure = self._failures.note(sequence, "it cannot be understood")
            await self._set_aside(message, cause=_explain(error), failure=failure)
        except Exception as error:
            self._failures.note(sequence, place_of(error))
            self._meter.count("failed")
            delay = BACKOFF[min(deliveries, len(BACKOFF)) - 1]
            log.exception("consumer.handler_failed", consumer=self._subscription.durable, retry_in_s=delay)
            await message.nak(delay)
        else:
            self._failures.forget(sequence)
            self._meter.count(result)
            if result == "applied":
                self._meter.delay((utc_now() - event.time).total_seconds())
            await self._acknowledge(message)

    async def _apply_when_possible(self, message: Msg, event: Envelope) -> Result:
        """Apply the event; while the database is away, hold on to the message instead of counting failures."""
        attempt = 0
        while True:
            try:
                return await self._apply(event)
            except _DATABASE_ERRORS as error:
                if not database_is_away(error):
                    raise
                delay = DATABASE_RETRY[min(attempt, len(DATABASE_RETRY) - 1)]
                attempt += 1
                log.warning("consumer.database_away", error=type(error).__name__, retry_in_s=delay)
                await message.in_progress()
                await asyncio.sleep(delay)

    async def _apply(self, event: Envelope) -> Result:
        return await apply(self._database, self._subscription.durable, self._handlers, event)

    async def _acknowledge(self, message: Msg) -> None:
        await message.ack()

    async def _set_aside(self, message: Msg, *, cause: str, failure: Failure | None) -> None:
        """Move the message to the dead-letter stream; it is acknowledged only once it is there."""
        metadata = message.metadata
        # A command may carry a secret that nobody but its receiver may read.
        payload = b"" if metadata.stream == COMMANDS else message.data
        letter = DeadLetter(
            consumer=self._subscription.durable,
            cause=cause if failure is None else f"{cause}; last: {failure.cause}",
            stream=metadata.stream,
            subject=message.subject,
            sequence=metadata.sequence.stream,
            deliveries=metadata.num_delivered,
            published_at=metadata.timestamp,
            first_failure_at=failure.first_at if failure else None,
            last_failure_at=failure.last_at if failure else None,
            headers=message.headers or {},
        )
        try:
            await self._broker.js.publish(self._dead_subject, payload, headers=letter.to_headers())
        except (NATSError, APIError, TimeoutError) as error:
            log.warning("consumer.dead_letter_failed", error=str(error) or type(error).__name__)
            with suppress(NATSError):
                await message.nak(BACKOFF[-1])
            return
        self._failures.forget(letter.sequence)
        self._meter.count("dead")
        log.error("consumer.dead_letter", consumer=self._subscription.durable, cause=letter.cause)
        await self._acknowledge(message)


async def apply(database: Database, durable: str, handlers: Mapping[str, Handler], event: Envelope) -> Result:
    """Let an event have its effect, once: the inbox row and the effect share one commit.

    An event type without a handler is ignored: producers add types before consumers know them.
    """
    handler = handlers.get(event.type)
    if handler is None:
        return "ignored"
    async with database.transaction() as session:
        received = await session.scalar(
            insert(InboxRow)
            .values(consumer=durable, event_id=event.id)
            .on_conflict_do_nothing()
            .returning(InboxRow.event_id)
        )
        if received is None:
            return "repeated"
        await handler(session, event)
        return "applied"


async def _finish(work: asyncio.Task[None]) -> None:
    _, unfinished = await asyncio.wait({work}, timeout=FINISH_TIMEOUT)
    if unfinished:
        await end(work)


def _explain(error: ValidationError) -> str:
    """Say what is wrong with a message, without its values."""
    return orjson.dumps(error.errors(include_input=False, include_url=False, include_context=False)).decode()
