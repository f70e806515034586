"""Live fan-out in one process: the last events of the stream, and who wants to hear of the next. Knows no DB and no NATS.

An event is encoded once for all listeners of a topic. Listeners that follow the same topics form an audience: what was
published in one turn of the event loop is joined once for each audience and written once to each of its listeners.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from notifications.frames import Cursor, Form, event_message, gap_message
from notifications.topics import Channel


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An event on its way to clients."""

    sequence: int
    channels: tuple[Channel, ...]
    payload: bytes
    """The CloudEvent, as one line."""

    def encoded(self, channel: Channel, epoch: str, form: Form) -> bytes:
        """Return what a client gets of it."""
        cursor = Cursor(epoch, self.sequence)
        return form(event_message(channel.topic, cursor, self.payload), cursor)


class Listener(Protocol):
    """Takes bytes without waiting; what it cannot hold is its own problem."""

    def write(self, data: bytes) -> None:
        """Take one or more whole messages."""


class OutOfMemory(LookupError):
    """The events after a cursor are not all in memory any more."""


class Audience:
    """Listeners that follow the same channels in the same form."""

    __slots__ = ("channels", "form", "last", "listeners", "once", "waiting")

    def __init__(self, channels: tuple[Channel, ...], form: Form, *, once: bool) -> None:
        self.channels = channels
        self.form = form
        self.once = once
        """Whether an event that belongs to several channels is told once only."""
        self.last = 0
        self.listeners: dict[Listener, None] = {}
        self.waiting: list[bytes] = []

    def deliver(self) -> int:
        """Write what waits to every listener; return how many bytes that were."""
        data = b"".join(self.waiting)
        self.waiting.clear()
        for listener in list(self.listeners):
            listener.write(data)
        return len(data) * len(self.listeners)


_Key = tuple[frozenset[Channel], Form]


class Hub:
    """The last events of the stream, and who wants to hear of the next."""

    def __init__(self, *, memory: int) -> None:
        self._recent: deque[LiveEvent] = deque(maxlen=memory)
        self._audiences: dict[_Key, Audience] = {}
        self._by_channel: dict[Channel, dict[Audience, None]] = {}
        self._audience_of: dict[Listener, Audience] = {}
        self._due: dict[Audience, None] = {}
        self._delivery: asyncio.Handle | None = None
        self._moved = asyncio.Event()
        self.floor = 0
        """Sequence behind which everything is in memory."""
        self.epoch = ""
        self.last = 0
        """Sequence of the newest event that was published here."""
        self.events = 0
        """Events that were published here since the start."""
        self.deliveries = 0
        """The same, times the listeners that each was written to."""
        self.bytes_written = 0

    @property
    def position(self) -> Cursor:
        """Where the stream is now."""
        return Cursor(self.epoch, self.last)

    @property
    def listeners(self) -> int:
        """How many follow something."""
        return len(self._audience_of)

    def restart(self, epoch: str, after: int) -> None:
        """Begin anew behind sequence `after`: every listener is told of a gap."""
        before = self.position
        self._recent.clear()
        self.epoch, self.last, self.floor = epoch, after, after
        self._move()
        for channel, audiences in self._by_channel.items():
            gap = gap_message(channel.topic, before, self.position)
            for audience in audiences:
                audience.last = 0
                self._add(audience, audience.form(gap, self.position))

    def publish(self, event: LiveEvent) -> None:
        """Hand an event to its listeners and remember it. What is not newer than the last is dropped."""
        if event.sequence <= self.last:
            return
        if len(self._recent) == self._recent.maxlen:
            self.floor = self._recent[0].sequence
        self._recent.append(event)
        self.last = event.sequence
        self.events += 1
        self._move()
        for channel in event.channels:
            audiences = self._by_channel.get(channel)
            if not audiences:
                continue
            encoded: dict[Form, bytes] = {}
            for audience in audiences:
                if audience.once and audience.last == event.sequence:
                    continue
                audience.last = event.sequence
                data = encoded.get(audience.form)
                if data is None:
                    data = encoded[audience.form] = event.encoded(channel, self.epoch, audience.form)
                self.deliveries += len(audience.listeners)
                self._add(audience, data)

    def _move(self) -> None:
        self._moved.set()
        self._moved.clear()

    async def reaches(self, cursor: Cursor) -> None:
        """Return once the stream is here where a cursor is, or was made anew."""
        while self.epoch == cursor.epoch and self.last < cursor.sequence:
            await self._moved.wait()

    def _add(self, audience: Audience, data: bytes) -> None:
        audience.waiting.append(data)
        self._due[audience] = None
        if self._delivery is None:
            self._delivery = asyncio.get_running_loop().call_soon(self.deliver)

    def deliver(self) -> None:
        """Write what was published to everybody, now; otherwise it is done before the event loop waits again."""
        if self._delivery is not None:
            self._delivery.cancel()
            self._delivery = None
        due, self._due = self._due, {}
        for audience in due:
            self.bytes_written += audience.deliver()

    def contradicts(self, event: LiveEvent) -> bool:
        """Say whether the newest event here is another one than the stream now has in its place."""
        return bool(
            self._recent
            and event.sequence == self._recent[-1].sequence
            and event.payload != self._recent[-1].payload
        )

    def follow(
        self, listener: Listener, channels: Collection[Channel], form: Form, *, once: bool = False
    ) -> None:
        """Deliver to a listener what is published on these channels from now on, and on no others."""
        self.leave(listener)
        if not channels:
            return
        key = (frozenset(channels), form)
        audience = self._audiences.get(key)
        if audience is None:
            audience = self._audiences[key] = Audience(tuple(channels), form, once=once)
            for channel in channels:
                self._by_channel.setdefault(channel, {})[audience] = None
        elif audience.waiting:
            self.deliver()  # it was published before the listener came
        audience.listeners[listener] = None
        self._audience_of[listener] = audience

    def leave(self, listener: Listener) -> None:
        """Deliver nothing more to a listener but what was published so far."""
        audience = self._audience_of.pop(listener, None)
        if audience is None:
            return
        if audience.waiting:
            self.deliver()
        audience.listeners.pop(listener, None)
        if not audience.listeners:
            self._audiences.pop((frozenset(audience.channels), audience.form), None)
            for channel in audience.channels:
                audiences = self._by_channel[channel]
                audiences.pop(audience, None)
                if not audiences:
                    del self._by_channel[channel]

    def after(
        self, cursor: Cursor, channels: Collection[Channel], *, limit: int
    ) -> list[tuple[Channel, LiveEvent]]:
        """Return at most `limit` remembered events behind a cursor, each with the channel it is asked for by.

        Raises:
            OutOfMemory: the cursor is of another epoch, from the future, or older than what is remembered.
        """
        if cursor.epoch != self.epoch or not self.floor <= cursor.sequence <= self.last:
            raise OutOfMemory
        newest_first: list[tuple[Channel, LiveEvent]] = []
        for event in reversed(self._recent):
            if event.sequence <= cursor.sequence:
                break
            channel = next((channel for channel in event.channels if channel in channels), None)
            if channel is not None:
                newest_first.append((channel, event))
        return list(islice(reversed(newest_first), limit))
