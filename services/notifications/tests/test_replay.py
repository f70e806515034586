"""From a cursor to live: from memory, from JetStream where memory does not reach, and without what came twice."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from notifications.app import create_app
from notifications.frames import Cursor
from notifications.history import History
from notifications.hub import LiveEvent
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared.events import Event, encode
from shared.testing import TokenIssuer, eventually, serving
from shared.times import utc_now
from stack.testing import Publisher

from .conftest import ItemCreated, ItemUpdated, UserRegistered, operator
from .live_client import closed, configure, receive, subscribed

pytestmark = pytest.mark.integration

READ = "notifications:read"


@pytest.fixture
def settings(settings: NotificationsSettings) -> NotificationsSettings:
    """Memory of five events: whatever is older comes from JetStream."""
    return settings.model_copy(update={"replay_memory": 5})


async def publish_late(publisher: Publisher, event: Event, *, hours: float = 2) -> None:
    """Publish an event that is older than JetStream's own memory of repeats."""
    outgoing = encode(event, time=utc_now() - timedelta(hours=hours))
    await publisher.publish_raw(outgoing.subject, outgoing.payload)


async def start_of(app: FastAPI) -> str:
    """Return the cursor of the stream's very beginning."""
    await eventually(app.state.live.reader.caught_up.is_set)
    return str(Cursor(app.state.live.hub.epoch, 0))


async def test_a_cursor_older_than_memory_is_served_from_the_stream_then_memory_then_live(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    cursor = await start_of(app)
    for number in range(1, 501):  # several pages
        await publisher.publish(ItemCreated(id=number))
    await eventually(lambda: app.state.live.hub.last == 500)

    stop = asyncio.Event()
    last = 500

    async def publish_meanwhile() -> None:
        nonlocal last
        while not stop.is_set():
            last += 1
            await publisher.publish(ItemCreated(id=last))

    publishing = asyncio.create_task(publish_meanwhile())
    async with subscribed(url, token_issuer.authorization(1), "items", cursor) as socket:
        subjects = [(await receive(socket))["event"]["subject"] for _ in range(600)]
        stop.set()
        await publishing
        subjects += [(await receive(socket))["event"]["subject"] for _ in range(last - 600)]

    assert subjects == [str(number) for number in range(1, last + 1)]


async def test_old_events_of_one_topic_are_found_between_others(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    cursor = await start_of(app)
    await publisher.publish(UserRegistered(id=7))
    await publisher.publish(UserRegistered(id=8))
    await eventually(lambda: publisher.published("events.notifications.>"), within=20)
    for number in range(1, 21):
        await publisher.publish(ItemCreated(id=number))
    await eventually(lambda: app.state.live.hub.last >= 23)

    async with subscribed(url, token_issuer.authorization(8, scope=READ), "me", cursor) as socket:
        assert (await receive(socket))["event"]["data"]["user_id"] == 8
        await publisher.publish(UserRegistered(id=8))
        assert (await receive(socket))["event"]["data"]["user_id"] == 8
    async with subscribed(url, token_issuer.authorization(1), "items.3", cursor) as socket:
        assert (await receive(socket))["event"]["subject"] == "3"
        await publisher.publish(ItemUpdated(id=3, version=2))
        assert (await receive(socket))["event"]["sequence"] == 2


async def test_what_the_stream_no_longer_has_is_a_gap_and_the_rest_follows(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer, nats_server: Any
) -> None:
    cursor = await start_of(app)
    for number in range(1, 21):
        await publisher.publish(ItemCreated(id=number))
    async with operator(nats_server) as broker:
        await broker.js.purge_stream("EVENTS", seq=11)
    await eventually(lambda: app.state.live.hub.last == 20)

    async with subscribed(url, token_issuer.authorization(1), "items", cursor) as socket:
        gap = await receive(socket)
        subjects = [(await receive(socket))["event"]["subject"] for _ in range(10)]

    epoch = app.state.live.hub.epoch
    assert gap == {"type": "gap", "topic": "items", "from": cursor, "to": f"{epoch}.10"}
    assert subjects == [str(number) for number in range(11, 21)]


async def test_a_cursor_of_a_replica_that_is_ahead_is_no_gap(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    await publisher.publish(ItemCreated(id=1))
    await eventually(lambda: app.state.live.hub.last == 1)
    hub = app.state.live.hub
    cursor = f"{hub.epoch}.2"
    held: list[LiveEvent] = []
    publish = hub.publish
    hub.publish = held.append  # this replica hears of the second event later than another one
    await publisher.publish(ItemCreated(id=2))
    await eventually(lambda: len(held))

    async with subscribed(url, token_issuer.authorization(1), "items", cursor) as socket:
        hub.publish = publish
        for event in held:
            publish(event)
        await publisher.publish(ItemCreated(id=3))
        assert (await receive(socket))["event"]["subject"] == "3"


async def test_an_event_published_again_is_dropped_live_and_in_replay(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    cursor = await start_of(app)
    headers = token_issuer.authorization(1)
    async with subscribed(url, headers, "items") as live:
        await publish_late(publisher, ItemCreated(id=1))  # late, but new: the outbox waited for NATS
        await publish_late(publisher, ItemUpdated(id=1, version=2))
        await publish_late(publisher, ItemUpdated(id=1, version=3))
        await publish_late(publisher, ItemCreated(id=1))
        await publish_late(publisher, ItemUpdated(id=1, version=2))
        await publish_late(publisher, ItemUpdated(id=1, version=3))  # behind a repeat of an older one
        await publish_late(publisher, ItemUpdated(id=1, version=4))
        await publisher.publish(ItemCreated(id=2))
        seen = [(await receive(live))["event"] for _ in range(5)]
    for number in range(3, 20):  # out of memory with them
        await publisher.publish(ItemCreated(id=number))
    await eventually(lambda: app.state.live.hub.floor > 8)
    async with subscribed(url, headers, "items", cursor) as replayed:
        again = [(await receive(replayed))["event"] for _ in range(5)]

    assert [(event["subject"], event["sequence"]) for event in seen] == [
        ("1", 1),
        ("1", 2),
        ("1", 3),
        ("1", 4),
        ("2", 1),
    ]
    assert again == seen


async def test_every_replica_tells_the_same_in_the_same_order(
    settings: NotificationsSettings, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for _ in range(2):
            url = await stack.enter_async_context(serving(create_app(settings), ws=SocketProtocol))
            sockets.append(await stack.enter_async_context(subscribed(url, headers, "items")))
        await publisher.publish(ItemCreated(id=1))
        await asyncio.gather(*(publisher.publish(ItemCreated(id=number)) for number in range(2, 101)))
        one, two = [[await receive(socket) for _ in range(100)] for socket in sockets]
        assert one == two  # the cursors, too: a client may go on at any of them


async def test_a_fault_of_the_service_ends_the_clients_connection_and_no_other(
    app: FastAPI, url: str, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    headers = token_issuer.authorization(1)
    async with subscribed(url, headers, "items") as other:
        cursor = str(app.state.live.hub.position)
        monkeypatch.setattr(History, "after", fail)
        async with subscribed(url, headers, "items", cursor) as socket:
            assert await closed(socket) == 1011
        async with (
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
            client.stream("GET", "/v1/events?topics=items", headers=headers, timeout=20) as response,
        ):
            assert b"subscribed" in await response.aread()  # it ends
        await other.send('{"type":"ping"}')
        assert (await receive(other))["type"] == "pong"


async def test_clients_wait_their_turn_to_have_the_stream_read(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    cursor = await start_of(app)
    for number in range(1, 51):
        await publisher.publish(ItemCreated(id=number))
    await eventually(lambda: app.state.live.hub.last == 50)

    async def count(user: int) -> int:
        async with subscribed(url, token_issuer.authorization(user), "items", cursor) as socket:
            return len([await receive(socket) for _ in range(50)])

    assert await asyncio.gather(*(count(user) for user in range(1, 21))) == [50] * 20


async def test_a_slow_client_gets_a_long_replay_at_its_own_pace(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    cursor = await start_of(app)
    configure(app, socket_backlog=1000)
    for number in range(1, 301):
        await publisher.publish(ItemCreated(id=number, name="x" * 50_000))
    await eventually(lambda: app.state.live.hub.last == 300)

    async with subscribed(url, token_issuer.authorization(1), "items", cursor) as socket:
        socket.transport.pause_reading()
        (connection,) = app.state.live.connections._members
        await eventually(lambda: not connection._wire.writable.is_set())
        socket.transport.resume_reading()
        assert [(await receive(socket))["event"]["subject"] for _ in range(300)] == [
            str(number) for number in range(1, 301)
        ]
