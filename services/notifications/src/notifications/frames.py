"""What goes over the wire, in both directions, and how it is encoded once for all who get it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter

from notifications.topics import MAX_TOPIC_LENGTH

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


class Auth(BaseModel):
    """A token: the first frame of who could send none before, or a new one in time."""

    type: Literal["auth"]
    token: str


class Subscribe(BaseModel):
    """Follow a topic, from behind a cursor or from now on."""

    type: Literal["subscribe"]
    topic: Annotated[str, StringConstraints(max_length=MAX_TOPIC_LENGTH)]
    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR_LENGTH)] | None = None


class Unsubscribe(BaseModel):
    """Follow a topic no longer."""

    type: Literal["unsubscribe"]
    topic: Annotated[str, StringConstraints(max_length=MAX_TOPIC_LENGTH)]


class Ping(BaseModel):
    """Ask for a pong."""

    type: Literal["ping"]


ClientFrame = Auth | Subscribe | Unsubscribe | Ping
client_frame: TypeAdapter[ClientFrame] = TypeAdapter(Annotated[ClientFrame, Field(discriminator="type")])

Form = Callable[[bytes, Cursor | None], bytes]
"""How a message becomes bytes: the JSON of a server frame, and the cursor that a client may resume from behind it."""


def websocket_text(message: bytes, _cursor: Cursor | None = None) -> bytes:
    """Make an unmasked, unfragmented text frame (RFC 6455 section 5.2)."""
    size = len(message)
    if size < 126:
        return b"\x81%c%b" % (size, message)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), message)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), message)


def server_sent_event(message: bytes, cursor: Cursor | None = None) -> bytes:
    """Make a message of an event stream (HTML, section 9.2.6); `id` is what a client sends back as Last-Event-ID."""
    if cursor is None:
        return b"data: %b\n\n" % message
    return b"id: %b\ndata: %b\n\n" % (str(cursor).encode(), message)


def event_message(topic: str, cursor: Cursor, payload: bytes) -> bytes:
    """Wrap a CloudEvent without decoding it."""
    head = f'{{"type":"event","topic":"{topic}","cursor":"{cursor}","event":'
    return b"%b%b}" % (head.encode(), payload)


def gap_message(topic: str, start: Cursor, end: Cursor) -> bytes:
    """Tell a client that events between two cursors cannot be had any more."""
    return orjson.dumps({"type": "gap", "topic": topic, "from": str(start), "to": str(end)})


def message(**members: object) -> bytes:
    """Make any other server frame's JSON."""
    return orjson.dumps(members)
