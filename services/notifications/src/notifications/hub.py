"""Live fan-out in one process: a log of recent events and the subscribers of each channel. Knows no DB and no NATS."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import orjson

MAX_CURSOR_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the stream: `<epoch>.<sequence>`, opaque to clients. The epoch changes when the stream is made anew."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read a cursor.

        Raises:
            ValueError: it is none of ours.
        """
        epoch, separator, sequence = text.rpartition(".")
        if not separator or not sequence.isascii() or not sequence.isdigit() or len(text) > MAX_CURSOR_LENGTH:
            raise ValueError("not a cursor")
        return cls(epoch, int(sequence))


@dataclass(frozen=True, slots=True)
class Channel:
    """What a subscription is to: the topic as clients call it, and whose it is where each user has an own one."""

    topic: str
    user_id: int | None = None


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An event on its way to sockets."""

    sequence: int
    channels: tuple[Channel, ...]
    payload: bytes
    """The CloudEvent, as it came."""


class Subscriber(Protocol):
    """Takes frames without waiting; what it cannot hold is its own problem."""

    def offer(self, frame: str) -> None:
        """Take one frame."""


class OutOfMemory(LookupError):
    """The events after a cursor are not all in memory any more."""


class Hub:
    """The last events of the stream, and who wants to hear of the next."""

    def __init__(self, *, memory: int) -> None:
        self._recent: deque[LiveEvent] = deque(maxlen=memory)
        self._subscribers: dict[Channel, dict[Subscriber, None]] = {}
        self._floor = 0
        self.epoch = ""
        self.last = 0
        """Sequence of the newest event that was published here."""

    @property
    def position(self) -> Cursor:
        """Where the stream is now."""
        return Cursor(self.epoch, self.last)

    def restart(self, epoch: str, after: int) -> None:
        """Begin anew behind sequence `after`: every subscriber is told of a gap."""
        before = self.position
        self._recent.clear()
        self.epoch, self.last, self._floor = epoch, after, after
        for channel, subscribers in self._subscribers.items():
            frame = gap_frame(channel.topic, before, self.position)
            for subscriber in list(subscribers):
                subscriber.offer(frame)

    def publish(self, event: LiveEvent) -> None:
        """Hand an event to its subscribers and remember it. What is not newer than the last is dropped."""
        if event.sequence <= self.last:
            return
        if len(self._recent) == self._recent.maxlen:
            self._floor = self._recent[0].sequence
        self._recent.append(event)
        self.last = event.sequence
        for channel in event.channels:
            if subscribers := self._subscribers.get(channel):
                frame = event_frame(channel.topic, Cursor(self.epoch, event.sequence), event.payload)
                for subscriber in list(subscribers):
                    subscriber.offer(frame)

    def contradicts(self, event: LiveEvent) -> bool:
        """Say whether the newest event here is another one than the stream now has in its place."""
        return bool(
            self._recent and event.sequence == self.last and event.payload != self._recent[-1].payload
        )

    def subscribe(self, channel: Channel, subscriber: Subscriber) -> None:
        """Deliver everything published on `channel` from now on."""
        self._subscribers.setdefault(channel, {})[subscriber] = None

    def unsubscribe(self, channel: Channel, subscriber: Subscriber) -> None:
        """Stop delivering; nothing happens where there was no subscription."""
        if subscribers := self._subscribers.get(channel):
            subscribers.pop(subscriber, None)
            if not subscribers:
                del self._subscribers[channel]

    def after(self, cursor: Cursor, channel: Channel, *, limit: int) -> list[tuple[int, str]]:
        """Return at most `limit` remembered events of a channel behind a cursor, as (sequence, frame).

        Raises:
            OutOfMemory: the cursor is of another epoch, from the future, or older than what is remembered.
        """
        if cursor.epoch != self.epoch or not self._floor <= cursor.sequence <= self.last:
            raise OutOfMemory
        return [
            (event.sequence, event_frame(channel.topic, Cursor(self.epoch, event.sequence), event.payload))
            for event in islice(self._of(channel, after=cursor.sequence), limit)
        ]

    def _of(self, channel: Channel, *, after: int) -> Iterator[LiveEvent]:
        newest_first: list[LiveEvent] = []
        for event in reversed(self._recent):
            if event.sequence <= after:
                break
            if channel in event.channels:
                newest_first.append(event)
        return reversed(newest_first)


def event_frame(topic: str, cursor: Cursor, payload: bytes) -> str:
    """Wrap a CloudEvent for the wire without decoding it."""
    return f'{{"type":"event","topic":"{topic}","cursor":"{cursor}","event":{payload.decode()}}}'


def gap_frame(topic: str, start: Cursor, end: Cursor) -> str:
    """Tell a client that events between two cursors cannot be had any more."""
    return orjson.dumps({"type": "gap", "topic": topic, "from": str(start), "to": str(end)}).decode()
