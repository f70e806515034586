"""Topics: what clients can follow, who may, and which events of the stream belong to each."""

import re
from dataclasses import dataclass
from typing import Any

from notifications.errors import UnknownTopic
from shared.errors import InsufficientScope
from shared.tokens import Principal

MAX_TOPICS = 100
"""Topics of one connection."""
MAX_TOPIC_LENGTH = 40
ME_SCOPE = "notifications:read"

_ITEM_ID = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True, slots=True)
class Channel:
    """What a subscription is to: the topic as clients call it, and whose it is where each user has an own one."""

    topic: str
    user_id: int | None = None

    @property
    def subject(self) -> str:
        """The NATS subject that all events of the channel have, perhaps with others between them."""
        kind, _, item_id = self.topic.partition(".")
        if kind == "items":
            return f"events.items.item.*.{item_id or '>'}"
        return "events.notifications.notification.created.>"


def channel_of(topic: str, principal: Principal) -> Channel:
    """Return the channel that a topic is for a person.

    Raises:
        UnknownTopic: there is none of this name.
        InsufficientScope: the person may not follow it.
    """
    match topic.split("."):
        case ["items"]:
            return Channel("items")
        case ["items", item_id] if _ITEM_ID.fullmatch(item_id):
            return Channel(topic)
        case ["me"]:
            if ME_SCOPE not in principal.scopes:
                raise InsufficientScope(ME_SCOPE)
            return Channel("me", principal.id)
    raise UnknownTopic


def channels_of(subject: str, event: Any) -> tuple[Channel, ...]:
    """Say who may hear of an event: item events are public, a notification is its receiver's alone.

    Raises:
        ValueError, LookupError, TypeError: it is no event.
    """
    match subject.split("."):
        case ["events", "items", "item", _, item_id]:
            return (Channel("items"), Channel(f"items.{item_id}"))
        case ["events", "notifications", "notification", "created", _]:
            return (Channel("me", int(event["data"]["user_id"])),)
        case _:
            return ()


def is_still_allowed(topic: str, principal: Principal) -> bool:
    """Say whether a person with a new token may go on following a topic."""
    try:
        channel_of(topic, principal)
    except InsufficientScope:
        return False
    return True
