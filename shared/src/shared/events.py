"""Domain events as CloudEvents 1.0 (JSON), and the commands that travel the same way."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, NamedTuple

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from shared.ids import new_id
from shared.telemetry import current_traceparent
from shared.times import utc_now

MAX_EVENT_BYTES = 64 * 1024
"""Longest event as it travels. It bounds what a relay and a consumer hold in memory, by their batch."""
_SUBJECT_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")
EVENT_TYPE = r"^[a-z_]+\.[a-z_]+\.[a-z_]+\.v[0-9]+$"


class Event(BaseModel):
    """Base of the events a service publishes; fields are the event's data.

    A subclass names its `type`, `<service>.<entity>.<verb>.v<n>`, and tells its aggregate's id and version.
    """

    model_config = ConfigDict(frozen=True)

    type: ClassVar[str]

    def aggregate_id(self) -> int | str:
        """Return the id of what changed: the CloudEvents `subject`."""
        raise NotImplementedError

    def aggregate_version(self) -> int:
        """Return the version that the aggregate has since this change: the `sequence`."""
        raise NotImplementedError


class Command(Event):
    """Something that another service is asked to do, named by its receiver: `<receiver>.<entity>.<verb>.v<n>`.

    It may carry secrets: only its receiver may read it, and the outbox forgets it as soon as it is on its way.
    """

    sender: ClassVar[str]

    def aggregate_version(self) -> int:
        """Return 1: a command has no history."""
        return 1


class Envelope(BaseModel):
    """A CloudEvent as any consumer reads it: unknown attributes are ignored, data is judged by the handler."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    type: Annotated[str, StringConstraints(pattern=EVENT_TYPE)]
    subject: str
    time: AwareDatetime
    sequence: int = Field(ge=0)
    traceparent: str | None = None
    data: dict[str, Any]


class Outgoing(NamedTuple):
    """An encoded event on its way: what the outbox stores and the relay publishes."""

    event_id: str
    subject: str
    aggregate: str
    payload: bytes


def encode(event: Event, *, event_id: str | None = None, time: datetime | None = None) -> Outgoing:
    """Wrap an event in its CloudEvents envelope and address it on NATS.

    Raises:
        ValueError: it could never be published (longer than MAX_EVENT_BYTES, or its aggregate's id is no token of a
            NATS subject): better that its transaction fails than that it stops the outbox.
    """
    service, entity, verb, _version = event.type.split(".")
    kind, sender = ("commands", event.sender) if isinstance(event, Command) else ("events", service)
    event_id = event_id or new_id()
    aggregate_id = str(event.aggregate_id())
    if not _SUBJECT_TOKEN.fullmatch(aggregate_id):
        raise ValueError(f"{event.type}: the aggregate's id cannot stand in a subject")
    envelope = {
        "specversion": "1.0",
        "id": event_id,
        "source": f"/tollhouse/{sender}",
        "type": event.type,
        "subject": aggregate_id,
        "time": (time or utc_now()).isoformat(),
        "datacontenttype": "application/json",
        "dataschema": f"urn:tollhouse:{kind.removesuffix('s')}:{event.type}",
        "sequence": event.aggregate_version(),
        "data": event.model_dump(mode="json"),
    }
    if (traceparent := current_traceparent()) is not None:
        envelope["traceparent"] = traceparent
    payload = orjson.dumps(envelope)
    if len(payload) > MAX_EVENT_BYTES:
        raise ValueError(f"{event.type}: {len(payload)} bytes are more than an event may have")
    return Outgoing(
        event_id=event_id,
        subject=f"{kind}.{service}.{entity}.{verb}.{aggregate_id}",
        aggregate=f"{service}.{entity}.{aggregate_id}",
        payload=payload,
    )
