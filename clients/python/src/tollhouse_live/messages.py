"""What an iteration yields."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened."""

    topic: str
    cursor: str
    """Where to resume from, to get everything after this event."""
    event: dict[str, Any]
    """The CloudEvent: `id`, `type`, `subject`, `sequence`, `time`, `data`, …"""

    @property
    def type(self) -> str:
        """What happened, such as `items.item.created.v1`."""
        return str(self.event["type"])

    @property
    def data(self) -> dict[str, Any]:
        """What the event says."""
        data: dict[str, Any] = self.event["data"]
        return data


@dataclass(frozen=True, slots=True)
class Gap:
    """Events between two cursors cannot be had any more: read anew, by HTTP, what you keep of the topic."""

    topic: str
    start: str
    end: str
