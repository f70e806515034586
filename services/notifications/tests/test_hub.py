"""The hub alone: what it remembers, drops and hands out, without a socket, a database or NATS."""

import json
from typing import Any

import pytest

from notifications.hub import MAX_CURSOR_LENGTH, Channel, Cursor, Hub, LiveEvent, OutOfMemory

ITEMS = Channel("items")
ITEM_5 = Channel("items.5")
ALL = 1000


class Listener:
    """Takes frames."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def offer(self, frame: str) -> None:
        self.frames.append(json.loads(frame))

    @property
    def cursors(self) -> list[str]:
        return [frame["cursor"] for frame in self.frames]


def event(sequence: int, *channels: Channel) -> LiveEvent:
    return LiveEvent(sequence, channels or (ITEMS,), b'{"id":"%d"}' % sequence)


@pytest.fixture
def hub() -> Hub:
    """A hub that remembers three events of the epoch `e`, from sequence 11 on."""
    hub = Hub(memory=3)
    hub.restart("e", 10)
    return hub


def sequences(hub: Hub, cursor: Cursor, channel: Channel = ITEMS, *, limit: int = ALL) -> list[int]:
    return [sequence for sequence, _ in hub.after(cursor, channel, limit=limit)]


def test_event_reaches_each_subscriber_of_its_channels_and_nobody_else(hub: Hub) -> None:
    everything, narrow, other, mine = Listener(), Listener(), Listener(), Listener()
    for channel, listener in (
        (ITEMS, everything),
        (ITEM_5, narrow),
        (Channel("items.6"), other),
        (Channel("me", 5), mine),
    ):
        hub.subscribe(channel, listener)

    hub.publish(event(11, ITEMS, ITEM_5))

    assert everything.frames == [{"type": "event", "topic": "items", "cursor": "e.11", "event": {"id": "11"}}]
    assert narrow.frames[0]["topic"] == "items.5"
    assert other.frames == mine.frames == []


def test_event_that_is_not_newer_is_dropped(hub: Hub) -> None:
    listener = Listener()
    hub.subscribe(ITEMS, listener)

    for sequence in (11, 11, 10, 13, 12):
        hub.publish(event(sequence))

    assert listener.cursors == ["e.11", "e.13"]
    assert hub.position == Cursor("e", 13)


def test_each_users_own_channel_is_apart(hub: Hub) -> None:
    one, two = Listener(), Listener()
    hub.subscribe(Channel("me", 1), one)
    hub.subscribe(Channel("me", 2), two)

    hub.publish(event(11, Channel("me", 2)))

    assert one.frames == []
    assert two.cursors == ["e.11"]


def test_unsubscribed_listener_hears_nothing_more_and_leaves_nothing_behind(hub: Hub) -> None:
    listener, stayer = Listener(), Listener()
    for subscriber in (listener, stayer):
        hub.subscribe(ITEMS, subscriber)

    hub.unsubscribe(ITEMS, listener)
    hub.unsubscribe(ITEMS, listener)
    hub.publish(event(11))
    hub.unsubscribe(ITEMS, stayer)

    assert listener.frames == []
    assert stayer.cursors == ["e.11"]
    assert hub._subscribers == {}


def test_listener_may_leave_while_it_is_told(hub: Hub) -> None:
    class Leaver(Listener):
        def offer(self, frame: str) -> None:
            super().offer(frame)
            hub.unsubscribe(ITEMS, self)

    leaver, stayer = Leaver(), Listener()
    hub.subscribe(ITEMS, leaver)
    hub.subscribe(ITEMS, stayer)

    hub.publish(event(11))
    hub.publish(event(12))

    assert leaver.cursors == ["e.11"]
    assert stayer.cursors == ["e.11", "e.12"]


def test_what_came_after_a_cursor_is_remembered_by_channel(hub: Hub) -> None:
    hub.publish(event(11))
    hub.publish(event(12, ITEM_5))
    hub.publish(event(13))

    assert sequences(hub, Cursor("e", 10)) == [11, 13]
    assert sequences(hub, Cursor("e", 11)) == [13]
    assert sequences(hub, Cursor("e", 13)) == []
    assert sequences(hub, Cursor("e", 10), ITEM_5) == [12]
    assert sequences(hub, Cursor("e", 10), limit=1) == [11]


def test_memory_ends_where_events_were_forgotten(hub: Hub) -> None:
    for sequence in (11, 12, 15, 16):  # 11 is forgotten
        hub.publish(event(sequence))

    assert sequences(hub, Cursor("e", 11)) == [12, 15, 16]
    assert sequences(hub, Cursor("e", 13)) == [15, 16]
    with pytest.raises(OutOfMemory):
        hub.after(Cursor("e", 10), ITEMS, limit=ALL)


@pytest.mark.parametrize("cursor", [Cursor("other", 11), Cursor("e", 9), Cursor("e", 12), Cursor("", 11)])
def test_cursor_of_another_epoch_from_before_or_from_the_future_is_out_of_memory(
    hub: Hub, cursor: Cursor
) -> None:
    hub.publish(event(11))

    with pytest.raises(OutOfMemory):
        hub.after(cursor, ITEMS, limit=ALL)


def test_restart_tells_every_subscriber_of_the_gap_and_forgets(hub: Hub) -> None:
    listener = Listener()
    hub.subscribe(ITEMS, listener)
    hub.publish(event(11))

    hub.restart("f", 2)
    hub.publish(event(3))

    assert listener.frames[1] == {"type": "gap", "topic": "items", "from": "e.11", "to": "f.2"}
    assert listener.frames[2]["cursor"] == "f.3"
    assert sequences(hub, Cursor("f", 2)) == [3]
    with pytest.raises(OutOfMemory):
        hub.after(Cursor("e", 11), ITEMS, limit=ALL)


def test_another_event_in_the_place_of_the_newest_is_noticed(hub: Hub) -> None:
    other = LiveEvent(11, (), b"{}")
    assert not hub.contradicts(other), "nothing is known yet"
    hub.publish(event(11))

    assert hub.contradicts(other)
    assert not hub.contradicts(event(11))
    assert not hub.contradicts(LiveEvent(12, (), b"{}"))


def test_cursor_is_read_as_it_was_written() -> None:
    assert Cursor.parse(str(Cursor("0123456789abcdef" * 2, 2**63))) == Cursor("0123456789abcdef" * 2, 2**63)


@pytest.mark.parametrize(
    "text", ["", ".", "e", "e.", "e.-1", "e.x", "e.１", "e.1 ", "e" * MAX_CURSOR_LENGTH + ".1", "1"]
)
def test_other_text_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.parse(text)
