"""What the stream holds beyond memory: old events for clients that were away for long, and whether one came before."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NATSError

from notifications.frames import Cursor
from notifications.hub import Hub, LiveEvent
from notifications.topics import Channel, channels_of
from shared.broker import REQUEST_TIMEOUT, Broker
from shared.logs import get_logger
from shared.pull import following
from shared.streams import DUPLICATE_WINDOW, EVENTS

log = get_logger(__name__)

PAGE = 200
"""Events read for one client at a time."""
READERS = 4
"""Clients of one process for whom the stream is read at the same time; the others wait."""
PAGE_TIMEOUT = 15.0
"""Seconds that a client waits for a page, its turn included, before it is told to come back later."""
SUSPECT_AFTER = timedelta(seconds=DUPLICATE_WINDOW / 2)
"""Age at which an event arrives that may have been published before: JetStream itself drops repeats for twice as long."""

_DIRECT_GET = f"$JS.API.DIRECT.GET.{EVENTS}"


@dataclass(frozen=True, slots=True)
class Page:
    """Some of what came after a cursor."""

    events: list[tuple[Channel, LiveEvent]]
    position: Cursor
    """Everything up to here is in the page."""
    lost_until: Cursor | None = None
    """Where the stream begins, if it does not reach back to the cursor."""


class History:
    """Reads the stream for clients and for the hub."""

    def __init__(self, broker: Broker, hub: Hub) -> None:
        self._broker = broker
        self._hub = hub
        self._turns = asyncio.Semaphore(READERS)

    async def after(self, cursor: Cursor, channels: Collection[Channel], *, limit: int = PAGE) -> Page:
        """Return what came after a cursor, oldest first: from memory, or from the stream as far as memory reaches.

        Raises:
            TimeoutError: the stream could not be read in time.
        """
        hub = self._hub
        try:
            if cursor.epoch == hub.epoch and cursor.sequence > hub.last:
                await self._catch_up(cursor)
            if cursor.epoch != hub.epoch or cursor.sequence > hub.last:
                return Page([], hub.position, lost_until=hub.position)
            if cursor.sequence >= hub.floor:
                events = hub.after(cursor, channels, limit=limit)
                position = events[-1][1].sequence if len(events) == limit else hub.last
                return Page(events, Cursor(cursor.epoch, position))
            async with asyncio.timeout(PAGE_TIMEOUT), self._turns:
                return await self._read(cursor, channels, until=hub.floor, limit=limit)
        except (NATSError, OSError) as error:
            log.warning("history.interrupted", error=str(error) or type(error).__name__)
            raise TimeoutError("the stream cannot be read now") from error

    async def _catch_up(self, cursor: Cursor) -> None:
        """Another replica gave the cursor and is ahead of this one, if the stream has come as far."""
        async with asyncio.timeout(PAGE_TIMEOUT):
            info = await self._broker.js.stream_info(EVENTS)
            if info.state.last_seq >= cursor.sequence and epoch_of(info.config.metadata) == cursor.epoch:
                await self._hub.reaches(cursor)

    async def _read(self, cursor: Cursor, channels: Collection[Channel], *, until: int, limit: int) -> Page:
        """Read the stream behind a cursor up to where memory begins."""
        info = await self._broker.js.stream_info(EVENTS)
        first = info.state.first_seq
        if epoch_of(info.config.metadata) != cursor.epoch:
            raise TimeoutError("the stream was made anew, and the hub does not know it yet")
        lost_until = None
        if first > cursor.sequence + 1:
            lost_until = cursor = Cursor(cursor.epoch, min(first - 1, until))
        events: list[tuple[Channel, LiveEvent]] = []
        subjects = {channel.subject for channel in channels}
        if any(channel.topic == "items" for channel in channels):  # NATS takes no subjects that overlap
            subjects = {subject for subject in subjects if not subject.startswith("events.items.")}
            subjects.add(Channel("items").subject)
        reader = following(
            self._broker, EVENTS, start=cursor.sequence + 1, batch=limit, subjects=sorted(subjects)
        )
        async with reader as (messages, pending):
            if not pending:
                return Page([], Cursor(cursor.epoch, until), lost_until)
            async for message in messages:
                sequence = message.metadata.sequence.stream
                if sequence > until:
                    break
                event = await self.live_event(message)
                channel = next((one for one in event.channels if one in channels), None)
                if channel is not None:
                    events.append((channel, event))
                if len(events) == limit:
                    return Page(events, Cursor(cursor.epoch, sequence), lost_until)
                if message.metadata.num_pending == 0:
                    break
        return Page(events, Cursor(cursor.epoch, until), lost_until)

    async def live_event(self, message: Msg) -> LiveEvent:
        """Read a message of the stream; one that is no event, or was there before, is for nobody and stops nothing."""
        sequence = message.metadata.sequence.stream
        payload = message.data
        try:
            event = orjson.loads(payload)
            channels = channels_of(message.subject, event)
            suspect = bool(channels) and _came_late(message, event)
        except (ValueError, LookupError, TypeError) as error:
            log.error("live.unreadable", sequence=sequence, error=type(error).__name__)  # noqa: TRY400  # no payload in logs
            return LiveEvent(sequence, (), payload)
        if suspect and await self._came_before(message.subject, event["sequence"], sequence):
            log.info("live.repeat_dropped", sequence=sequence, event_id=event.get("id"))
            channels = ()
        if b"\n" in payload or b"\r" in payload:
            payload = orjson.dumps(event)  # as one line: event streams end a message at an empty one
        return LiveEvent(sequence, channels, payload)

    async def _came_before(self, subject: str, version: int, sequence: int) -> bool:
        """Say whether the stream has this version of the aggregate, or a newer one, before `sequence`.

        A question to the stream, not to what this process remembers: every replica must answer it alike.
        """
        *kind, _verb, aggregate_id = subject.split(".")
        subjects = ".".join((*kind, "*", aggregate_id))
        try:
            last = await self._last_before(subjects, sequence)
            if any(_version_of(message) >= version for message in last):
                return True
            # The last one may be a repeat itself, of an earlier version: then only all of them can tell.
            repeats = bool(last) and _is_late(max(last, key=_sequence_of))
            return repeats and await self._was_ever(subjects, version, before=sequence)
        except TimeoutError:  # rather twice than not at all
            log.warning("live.lookup_failed", sequence=sequence)
            return False

    async def _last_before(self, subjects: str, sequence: int) -> list[Msg]:
        """Return the last message before `sequence` of each of the subjects."""
        question = {"multi_last": [subjects], "up_to_seq": sequence - 1}
        if not question["up_to_seq"]:
            return []
        inbox = self._broker.client.new_inbox()
        answers: asyncio.Queue[Msg] = asyncio.Queue()
        subscription = await self._broker.client.subscribe(inbox, cb=answers.put)
        found = []
        try:
            await self._broker.client.publish(_DIRECT_GET, orjson.dumps(question), reply=inbox)
            async with asyncio.timeout(REQUEST_TIMEOUT):
                while (answer := await answers.get()).data:
                    found.append(answer)
        finally:
            await subscription.unsubscribe()
        return found

    async def _was_ever(self, subjects: str, version: int, *, before: int) -> bool:
        """Read everything of an aggregate before a sequence."""
        reader = following(self._broker, EVENTS, start=1, batch=PAGE, subjects=[subjects])
        async with asyncio.timeout(PAGE_TIMEOUT), reader as (messages, pending):
            if not pending:
                return False
            async for message in messages:
                if message.metadata.sequence.stream >= before:
                    break
                if _version_of(message) >= version:
                    return True
                if message.metadata.num_pending == 0:
                    break
        return False


def epoch_of(metadata: dict[str, str] | None) -> str:
    """Return what tells this stream from earlier ones of its name."""
    return (metadata or {}).get("epoch", "")


def _came_late(message: Msg, event: Any) -> bool:
    int(event["sequence"])
    return bool(message.metadata.timestamp - datetime.fromisoformat(event["time"]) > SUSPECT_AFTER)


def _version_of(message: Msg) -> int:
    try:
        return int(orjson.loads(message.data)["sequence"])
    except (ValueError, LookupError, TypeError):
        return -1


def _sequence_of(answer: Msg) -> int:
    return int((answer.headers or {})["Nats-Sequence"])


def _is_late(answer: Msg) -> bool:
    """Say of an answer to a direct get whether it came to the stream late."""
    try:
        stored_at = datetime.fromisoformat((answer.headers or {})["Nats-Time-Stamp"])
        return stored_at - datetime.fromisoformat(orjson.loads(answer.data)["time"]) > SUSPECT_AFTER
    except (ValueError, LookupError, TypeError):
        return False
