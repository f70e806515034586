"""The hub alone: what it remembers, drops and hands out, without a socket, a database or NATS."""

import asyncio
import json
from typing import Any

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from notifications.frames import MAX_CURSOR_LENGTH, Cursor, server_sent_event, websocket_text
from notifications.hub import Hub, LiveEvent, OutOfMemory
from notifications.topics import Channel

ITEMS = Channel("items")
ITEM_5 = Channel("items.5")
ALL = 1000


class Listener:
    """Takes frames."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(line) for data in self.writes for line in data.splitlines()]

    @property
    def cursors(self) -> list[str]:
        return [frame["cursor"] for frame in self.frames]


def lines(message: bytes, _cursor: Cursor | None) -> bytes:
    """The form that a Listener reads."""
    return message + b"\n"


def event(sequence: int, *channels: Channel) -> LiveEvent:
    return LiveEvent(sequence, channels or (ITEMS,), b'{"id":"%d"}' % sequence)


def publish(hub: Hub, *events: LiveEvent) -> None:
    """Publish and deliver, as the event loop would before it waits again."""
    for one in events:
        hub.publish(one)
    hub.deliver()


@pytest.fixture
def hub() -> Hub:
    """A hub that remembers three events of the epoch `e`, from sequence 11 on."""
    hub = Hub(memory=3)
    hub.restart("e", 10)
    return hub


def sequences(hub: Hub, cursor: Cursor, channel: Channel = ITEMS, *, limit: int = ALL) -> list[int]:
    return [event.sequence for _, event in hub.after(cursor, [channel], limit=limit)]


async def test_event_reaches_each_subscriber_of_its_channels_and_nobody_else(hub: Hub) -> None:
    everything, narrow, other, mine = Listener(), Listener(), Listener(), Listener()
    for channel, listener in (
        (ITEMS, everything),
        (ITEM_5, narrow),
        (Channel("items.6"), other),
        (Channel("me", 5), mine),
    ):
        hub.follow(listener, [channel], lines)

    publish(hub, event(11, ITEMS, ITEM_5))

    assert everything.frames == [{"type": "event", "topic": "items", "cursor": "e.11", "event": {"id": "11"}}]
    assert narrow.frames[0]["topic"] == "items.5"
    assert other.frames == mine.frames == []


async def test_event_that_is_not_newer_is_dropped(hub: Hub) -> None:
    listener = Listener()
    hub.follow(listener, [ITEMS], lines)

    publish(hub, *map(event, (11, 11, 10, 13, 12)))

    assert listener.cursors == ["e.11", "e.13"]
    assert hub.position == Cursor("e", 13)


async def test_each_users_own_channel_is_apart(hub: Hub) -> None:
    one, two = Listener(), Listener()
    hub.follow(one, [Channel("me", 1)], lines)
    hub.follow(two, [Channel("me", 2)], lines)

    publish(hub, event(11, Channel("me", 2)))

    assert one.frames == []
    assert two.cursors == ["e.11"]


async def test_unsubscribed_listener_hears_nothing_more_and_leaves_nothing_behind(hub: Hub) -> None:
    listener, stayer = Listener(), Listener()
    for subscriber in (listener, stayer):
        hub.follow(subscriber, [ITEMS], lines)

    hub.leave(listener)
    hub.leave(listener)
    publish(hub, event(11))
    hub.leave(stayer)

    assert listener.frames == []
    assert stayer.cursors == ["e.11"]
    assert not hub._audiences
    assert not hub._by_channel


async def test_listener_may_leave_while_it_is_told(hub: Hub) -> None:
    class Leaver(Listener):
        def write(self, data: bytes) -> None:
            super().write(data)
            hub.leave(self)

    leaver, stayer = Leaver(), Listener()
    hub.follow(leaver, [ITEMS], lines)
    hub.follow(stayer, [ITEMS], lines)

    publish(hub, event(11))
    publish(hub, event(12))

    assert leaver.cursors == ["e.11"]
    assert stayer.cursors == ["e.11", "e.12"]


async def test_what_came_after_a_cursor_is_remembered_by_channel(hub: Hub) -> None:
    publish(hub, event(11))
    publish(hub, event(12, ITEM_5))
    publish(hub, event(13))

    assert sequences(hub, Cursor("e", 10)) == [11, 13]
    assert sequences(hub, Cursor("e", 11)) == [13]
    assert sequences(hub, Cursor("e", 13)) == []
    assert sequences(hub, Cursor("e", 10), ITEM_5) == [12]
    assert sequences(hub, Cursor("e", 10), limit=1) == [11]


async def test_memory_ends_where_events_were_forgotten(hub: Hub) -> None:
    for sequence in (11, 12, 15, 16):  # 11 is forgotten
        publish(hub, event(sequence))

    assert sequences(hub, Cursor("e", 11)) == [12, 15, 16]
    assert sequences(hub, Cursor("e", 13)) == [15, 16]
    with pytest.raises(OutOfMemory):
        hub.after(Cursor("e", 10), [ITEMS], limit=ALL)


@pytest.mark.parametrize("cursor", [Cursor("other", 11), Cursor("e", 9), Cursor("e", 12), Cursor("", 11)])
async def test_cursor_of_another_epoch_from_before_or_from_the_future_is_out_of_memory(
    hub: Hub, cursor: Cursor
) -> None:
    publish(hub, event(11))

    with pytest.raises(OutOfMemory):
        hub.after(cursor, [ITEMS], limit=ALL)


async def test_restart_tells_every_subscriber_of_the_gap_and_forgets(hub: Hub) -> None:
    listener = Listener()
    hub.follow(listener, [ITEMS], lines)
    publish(hub, event(11))

    hub.restart("f", 2)
    publish(hub, event(3))

    assert listener.frames[1] == {"type": "gap", "topic": "items", "from": "e.11", "to": "f.2"}
    assert listener.frames[2]["cursor"] == "f.3"
    assert sequences(hub, Cursor("f", 2)) == [3]
    with pytest.raises(OutOfMemory):
        hub.after(Cursor("e", 11), [ITEMS], limit=ALL)


async def test_another_event_in_the_place_of_the_newest_is_noticed(hub: Hub) -> None:
    other = LiveEvent(11, (), b"{}")
    assert not hub.contradicts(other), "nothing is known yet"
    publish(hub, event(11))

    assert hub.contradicts(other)
    assert not hub.contradicts(event(11))
    assert not hub.contradicts(LiveEvent(12, (), b"{}"))


async def test_what_is_published_at_once_is_written_at_once_and_shared(hub: Hub) -> None:
    one, two, both = Listener(), Listener(), Listener()
    for listener in (one, two):
        hub.follow(listener, [ITEMS], websocket_text)
    hub.follow(both, [ITEMS, ITEM_5], websocket_text)

    publish(hub, event(11, ITEMS, ITEM_5), event(12), event(13))

    (burst,) = one.writes
    assert two.writes[0] is burst
    assert burst.count(b'"type":"event"') == 3
    assert [len(both.writes), both.writes[0].count(b'"type":"event"')] == [1, 4]
    assert (hub.events, hub.deliveries, hub.bytes_written) == (3, 10, 2 * len(burst) + len(both.writes[0]))


async def test_delivery_needs_no_call(hub: Hub) -> None:
    listener = Listener()
    hub.follow(listener, [ITEMS], lines)

    hub.publish(event(11))

    assert listener.writes == []
    await asyncio.sleep(0)
    assert listener.cursors == ["e.11"]


async def test_who_comes_or_leaves_between_publishing_and_delivery_gets_what_it_was_there_for(
    hub: Hub,
) -> None:
    leaver, stayer, comer = Listener(), Listener(), Listener()
    for listener in (leaver, stayer):
        hub.follow(listener, [ITEMS], lines)

    hub.publish(event(11))
    hub.leave(leaver)
    hub.publish(event(12))
    hub.follow(comer, [ITEMS], lines)
    publish(hub, event(13))

    assert leaver.cursors == ["e.11"]
    assert stayer.cursors == ["e.11", "e.12", "e.13"]
    assert comer.cursors == ["e.13"]


async def test_event_of_several_topics_comes_once_where_that_is_asked_for(hub: Hub) -> None:
    each, once = Listener(), Listener()
    hub.follow(each, [ITEMS, ITEM_5], lines)
    hub.follow(once, [ITEM_5, ITEMS], server_sent_event, once=True)

    publish(hub, event(11, ITEMS, ITEM_5))

    assert [frame["topic"] for frame in each.frames] == ["items", "items.5"]
    assert once.writes[0].count(b"data: ") == 1


async def test_hub_says_when_it_has_come_as_far_as_a_cursor(hub: Hub) -> None:
    reached = asyncio.create_task(hub.reaches(Cursor("e", 12)))
    elsewhere = asyncio.create_task(hub.reaches(Cursor("e", 99)))
    await asyncio.sleep(0)
    publish(hub, event(11))
    await asyncio.sleep(0)
    assert not reached.done()

    publish(hub, event(12))
    await reached
    hub.restart("f", 1)
    await elsewhere


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frame_is_what_a_websocket_library_reads(size: int) -> None:
    client = ClientProtocol(parse_uri("ws://x"), state=State.OPEN, max_size=None)
    client.receive_data(websocket_text(b"x" * size))
    client.receive_data(websocket_text(b"next"))

    first, following = client.events_received()
    assert isinstance(first, Frame)
    assert isinstance(following, Frame)
    assert (first.opcode, first.fin, len(first.data)) == (Opcode.TEXT, True, size)
    assert following.data == b"next"


def test_cursor_is_read_as_it_was_written() -> None:
    assert Cursor.parse(str(Cursor("0123456789abcdef" * 2, 2**63))) == Cursor("0123456789abcdef" * 2, 2**63)


@pytest.mark.parametrize(
    "text", ["", ".", "e", "e.", "e.-1", "e.x", "e.１", "e.1 ", "e" * MAX_CURSOR_LENGTH + ".1", "1"]
)
def test_other_text_is_no_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.parse(text)
