"""Dead letters: what a consumer could not deal with, as it is kept in the stream DEAD.

The message stays as it was: its payload is the letter's, its subject and headers are told in the letter's own headers.
"""

import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from traceback import extract_tb
from typing import Any, Self

from nats.js import JetStreamContext
from nats.js.api import Header, RawStreamMsg
from nats.js.errors import NotFoundError

from shared.streams import DEAD
from shared.times import utc_now

MAX_CAUSE = 500
"""Characters of a cause that are kept."""
MAX_FAILURES = 10_000
"""Messages whose failures a process remembers; of more, it forgets the oldest."""

_PREFIX = "Tollhouse-"


@dataclass(frozen=True, slots=True)
class Failure:
    """What this process saw of a message that fails."""

    first_at: datetime
    last_at: datetime
    cause: str


class Failures:
    """The messages that failed here and may come again, by their sequence in the stream.

    Each replica knows its own, and a process that dies forgets them: what a dead letter says of times and causes is
    what the process that set it aside had seen.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, Failure] = OrderedDict()

    def note(self, sequence: int, cause: str) -> Failure:
        """Remember that a message failed just now."""
        now = utc_now()
        earlier = self._known.get(sequence)
        failure = Failure(earlier.first_at if earlier else now, now, cause)
        self._known[sequence] = failure
        if len(self._known) > MAX_FAILURES:
            self._known.popitem(last=False)
        return failure

    def of(self, sequence: int) -> Failure | None:
        """Return what is known of a message."""
        return self._known.get(sequence)

    def forget(self, sequence: int) -> None:
        """The message is dealt with."""
        self._known.pop(sequence, None)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is known of a message beside its payload."""

    consumer: str
    cause: str
    stream: str
    subject: str
    sequence: int
    """In `stream`."""
    deliveries: int
    published_at: datetime
    first_failure_at: datetime | None
    last_failure_at: datetime | None
    headers: Mapping[str, str]
    """The message's own."""

    def to_headers(self) -> dict[str, str]:
        """Write it down as headers; a letter that is stored twice within the duplicate window is stored once."""
        told = {
            "Consumer": self.consumer,
            "Cause": _ascii(" ".join(self.cause.split())[:MAX_CAUSE]),
            "Stream": self.stream,
            "Subject": self.subject,
            "Sequence": str(self.sequence),
            "Deliveries": str(self.deliveries),
            "Published": self.published_at.isoformat(),
            "First-Failure": self.first_failure_at.isoformat() if self.first_failure_at else "",
            "Last-Failure": self.last_failure_at.isoformat() if self.last_failure_at else "",
            "Headers": json.dumps(dict(self.headers)),
        }
        return {
            # With its time: a stream that was made anew counts from 1 again.
            Header.MSG_ID: f"{self.stream}.{self.consumer}.{self.sequence}.{self.published_at.isoformat()}",
            **{_PREFIX + name: value for name, value in told.items() if value},
        }

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Self:
        """Read what `to_headers` wrote.

        Raises:
            ValueError: this is no dead letter of ours.
        """

        def told(name: str) -> str:
            return headers.get(_PREFIX + name, "")

        def moment(name: str) -> datetime | None:
            return datetime.fromisoformat(told(name)) if told(name) else None

        original: dict[str, Any] = json.loads(told("Headers") or "{}")
        published_at = moment("Published")
        if published_at is None:
            raise ValueError("not a dead letter")
        return cls(
            consumer=told("Consumer"),
            cause=told("Cause"),
            stream=told("Stream"),
            subject=told("Subject"),
            sequence=int(told("Sequence")),
            deliveries=int(told("Deliveries")),
            published_at=published_at,
            first_failure_at=moment("First-Failure"),
            last_failure_at=moment("Last-Failure"),
            headers=original,
        )


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter in its stream; `number` is what operators call it by."""

    number: int
    letter: DeadLetter
    payload: bytes
    """The message's own; empty for a command, which may have carried a secret."""


class DeadLetters:
    """The dead letters of one service. Only the NATS user `operator` may read and delete them."""

    def __init__(self, js: JetStreamContext, service: str) -> None:
        self._js = js
        self._subject = f"dead.{service}.>"

    async def all(self, *, consumer: str | None = None) -> AsyncIterator[StoredLetter]:
        """Yield every letter there is, oldest first."""
        number = 1
        while True:
            try:
                message = await self._js.get_msg(DEAD, number, subject=self._subject, next=True)
            except NotFoundError:
                return
            stored = _stored(message)
            if stored is not None and consumer in (None, stored.letter.consumer):
                yield stored
            number = int(message.seq or 0) + 1

    async def get(self, number: int) -> StoredLetter:
        """Return a letter.

        Raises:
            LookupError: this service has none of this number.
        """
        try:
            message = await self._js.get_msg(DEAD, number, subject=self._subject, next=True)
        except NotFoundError:
            raise LookupError(number) from None
        stored = _stored(message) if message.seq == number else None
        if stored is None:
            raise LookupError(number)
        return stored

    async def drop(self, number: int) -> None:
        """Delete a letter for good."""
        await self._js.delete_msg(DEAD, number)


def _stored(message: RawStreamMsg) -> StoredLetter | None:
    try:
        letter = DeadLetter.from_headers(message.headers or {})
    except ValueError:
        return None
    return StoredLetter(int(message.seq or 0), letter, message.data or b"")


def place_of(error: BaseException) -> str:
    """Name an error by its type and the line that raised it, never by its text: that may hold what was handled."""
    frames = extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    ours = [frame for frame in frames if "site-packages" not in frame.filename] or list(frames)
    path = Path(ours[-1].filename)
    return f"{type(error).__name__} at {path.parent.name}/{path.name}:{ours[-1].lineno}"
