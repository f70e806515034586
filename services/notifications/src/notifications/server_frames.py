"""Frames of the live stream that the server sends, as they are documented; the tests hold every frame to them.

They are written without these models (`frames.py`): an event passes through as it came.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Frame(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ready(_Frame):
    """The client is known: it may subscribe."""

    type: Literal["ready"]
    user_id: int
    expires_at: int = Field(description="When the token expires, Unix time in seconds.")


class Subscribed(_Frame):
    """A topic is followed from here on."""

    type: Literal["subscribed"]
    topic: str
    cursor: str = Field(description="Opaque: where the topic is followed from.")


class EventFrame(_Frame):
    """An event of a topic."""

    type: Literal["event"]
    topic: str
    cursor: str = Field(description="Opaque: subscribe with it to get what comes after this event.")
    event: dict[str, Any] = Field(description="The CloudEvent, as its service published it.")


class Gap(_Frame):
    """Events between two cursors cannot be had any more: read anew what they were about."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True)

    type: Literal["gap"]
    topic: str
    start: str = Field(alias="from")
    end: str = Field(alias="to")


class Expiring(_Frame):
    """The token expires soon: send an auth frame with a new one."""

    model_config = ConfigDict(extra="forbid", validate_by_name=True)

    type: Literal["expiring"]
    seconds: int = Field(alias="in")


class ErrorFrame(_Frame):
    """A frame of the client's cannot be followed; the connection goes on."""

    type: Literal["error"]
    code: str
    detail: str


class Pong(_Frame):
    """The answer to a ping."""

    type: Literal["pong"]


ServerFrame = Ready | Subscribed | EventFrame | Gap | Expiring | ErrorFrame | Pong
server_frame: TypeAdapter[ServerFrame] = TypeAdapter(Annotated[ServerFrame, Field(discriminator="type")])
