"""The live stream over real WebSockets, fed from a real JetStream."""

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from notifications import websocket
from notifications.app import create_app
from notifications.frames import Cursor
from notifications.history import History
from notifications.hub import Hub
from notifications.live import LiveReader
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from notifications.topics import Channel
from shared.broker import Broker
from shared.tasks import running
from shared.testing import TokenIssuer, eventually, serving
from stack.testing import Publisher

from .conftest import ItemCreated, ItemUpdated, UserRegistered, operator
from .live_client import closed, configure, receive, subscribed, ws

pytestmark = pytest.mark.integration

READ = "notifications:read"


class Listener:
    """A subscriber of a hub without a socket."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        self.frames += [json.loads(line) for line in data.splitlines()]


def lines(message: bytes, _cursor: Cursor | None) -> bytes:
    """The form that a Listener reads."""
    return message + b"\n"


@contextlib.asynccontextmanager
async def reading(settings: NotificationsSettings, hub: Hub) -> AsyncIterator[LiveReader]:
    """Feed a hub, as a process of the service does while it runs."""
    async with Broker(settings) as broker:
        reader = LiveReader(broker, hub, History(broker, hub), memory=100)
        async with running(reader.run()):
            yield reader


async def test_item_events_reach_every_subscriber_in_order(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with (
        subscribed(url, token_issuer.authorization(1), "items") as one,
        subscribed(url, token_issuer.authorization(2), "items") as two,
        subscribed(url, token_issuer.authorization(3), "items.5") as narrow,
    ):
        for number in range(1, 11):
            await publisher.publish(ItemCreated(id=number))

        for socket in (one, two):
            frames = [await receive(socket) for _ in range(10)]
            assert [frame["event"]["subject"] for frame in frames] == [str(n) for n in range(1, 11)]
            assert {frame["event"]["type"] for frame in frames} == {"items.item.created.v1"}
        assert (await receive(narrow))["event"]["subject"] == "5"


async def test_a_notification_reaches_its_receiver_only(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with (
        subscribed(url, token_issuer.authorization(7, scope=READ), "me") as receiver,
        subscribed(url, token_issuer.authorization(8, scope=READ), "me") as stranger,
    ):
        await publisher.publish(UserRegistered(id=7))
        await publisher.publish(UserRegistered(id=8))

        assert (await receive(receiver))["event"]["data"]["user_id"] == 7
        assert (await receive(stranger))["event"]["data"]["user_id"] == 8


async def test_a_cursor_brings_everything_missed_once_then_live(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with subscribed(url, headers, "items") as socket:
        await publisher.publish(ItemCreated(id=1))
        cursor = (await receive(socket))["cursor"]
    for version in range(2, 700):  # more than one batch of a replay
        await publisher.publish(ItemUpdated(id=1, version=version))

    async with subscribed(url, headers, "items", cursor) as socket:
        await publisher.publish(ItemUpdated(id=1, version=700))
        versions = [(await receive(socket))["event"]["sequence"] for _ in range(699)]

    assert versions == list(range(2, 701))


async def test_a_cursor_survives_a_restart_of_the_service(
    settings: NotificationsSettings, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with (
        serving(create_app(settings), ws=SocketProtocol) as url,
        subscribed(url, headers, "items") as socket,
    ):
        await publisher.publish(ItemCreated(id=1))
        cursor = (await receive(socket))["cursor"]
    await publisher.publish(ItemCreated(id=2))

    async with (
        serving(create_app(settings), ws=SocketProtocol) as url,
        subscribed(url, headers, "items", cursor) as socket,
    ):
        assert (await receive(socket))["event"]["subject"] == "2"


@pytest.mark.parametrize("cursor", ["0123456789abcdef.1", "{epoch}.999999"])
async def test_an_unknown_cursor_is_answered_with_a_gap(
    url: str, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer, cursor: str
) -> None:
    await publisher.publish(ItemCreated(id=1))
    await eventually(lambda: app.state.live.hub.last == 1)
    cursor = cursor.format(epoch=app.state.live.hub.epoch)
    async with subscribed(url, token_issuer.authorization(1), "items", cursor) as socket:
        gap = await receive(socket)
        await publisher.publish(ItemCreated(id=2))
        event = await receive(socket)

    assert gap == {"type": "gap", "topic": "items", "from": cursor, "to": f"{app.state.live.hub.epoch}.1"}
    assert event["event"]["subject"] == "2"


async def test_the_stream_goes_on_after_nats_was_killed(
    url: str, publisher: Publisher, token_issuer: TokenIssuer, nats_server: Any
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        await publisher.publish(ItemCreated(id=1))
        assert (await receive(socket))["event"]["subject"] == "1"

        nats_server.stop(9)
        nats_server.start()
        async with Publisher(nats_server) as again:
            await again.publish(ItemCreated(id=2))

        assert (await receive(socket))["event"]["subject"] == "2"


async def test_authentication_by_first_frame(url: str, token_issuer: TokenIssuer) -> None:
    async with connect(ws(url), proxy=None) as socket:
        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(5)}))

        ready = await receive(socket)

    assert ready["type"] == "ready"
    assert ready["user_id"] == 5


@pytest.mark.parametrize(
    "first_frame",
    ['{"type":"auth","token":"nonsense"}', '{"type":"ping"}', "not json", '{"type":"auth"}'],
)
async def test_a_bad_first_frame_closes_with_1008(url: str, first_frame: str) -> None:
    async with connect(ws(url), proxy=None) as socket:
        await socket.send(first_frame)
        assert await closed(socket) == 1008


async def test_no_first_frame_closes_with_1008(app: FastAPI, url: str) -> None:
    configure(app, auth_timeout=0.05)
    async with connect(ws(url), proxy=None) as socket:
        assert await closed(socket) == 1008


async def test_a_bad_token_in_the_handshake_is_a_401_problem(url: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(ws(url), additional_headers={"Authorization": "Bearer x.y.z"}, proxy=None):
            pass
    assert refusal.value.response.status_code == 401
    assert json.loads(refusal.value.response.body)["code"] == "invalid_token"


async def test_the_socket_closes_with_4401_when_its_token_expires(
    url: str, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1, expires_in=1)
    async with connect(ws(url), additional_headers=headers, proxy=None) as socket:
        assert await closed(socket) == 4401


async def test_a_new_token_in_band_keeps_the_socket_open(url: str, token_issuer: TokenIssuer) -> None:
    headers = token_issuer.authorization(1, expires_in=2)
    async with connect(ws(url), additional_headers=headers, proxy=None) as socket:
        first = await receive(socket)
        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1)}))
        renewed = await receive(socket)
        assert renewed["expires_at"] > first["expires_at"]

        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(2)}))
        assert await closed(socket) == 1008


async def test_frames_that_cannot_be_followed_are_answered_and_the_socket_stays(
    url: str, token_issuer: TokenIssuer
) -> None:
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await receive(socket)
        cases: list[tuple[str | bytes, str]] = [
            ("nonsense", "bad_frame"),
            ('{"type":"dance"}', "bad_frame"),
            ('{"type":"subscribe","topic":"weather"}', "unknown_topic"),
            ('{"type":"subscribe","topic":"me"}', "insufficient_scope"),
            ('{"type":"subscribe","topic":"items","cursor":"zzz"}', "cursor_invalid"),
            (b"\x00\x01", "bad_frame"),
        ]
        for frame, code in cases:
            await socket.send(frame)
            answer = await receive(socket)
            assert (answer["type"], answer["code"]) == ("error", code)
        await socket.send('{"type":"ping"}')
        assert await receive(socket) == {"type": "pong"}


async def test_unsubscribing_ends_the_events(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        await socket.send('{"type":"unsubscribe","topic":"items"}')
        await socket.send('{"type":"ping"}')
        assert await receive(socket) == {"type": "pong"}
        await publisher.publish(ItemCreated(id=1))
        async with subscribed(url, token_issuer.authorization(2), "items", None):
            await socket.send('{"type":"ping"}')
            assert await receive(socket) == {"type": "pong"}


async def test_a_client_that_does_not_read_is_closed_and_delays_nobody(
    app: FastAPI, url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    configure(app, socket_backlog=100_000)
    async with (
        subscribed(url, token_issuer.authorization(1), "items") as stalled,
        subscribed(url, token_issuer.authorization(2), "items") as healthy,
    ):
        stalled.transport.pause_reading()
        for number in range(1, 1000):
            await publisher.publish(ItemCreated(id=number, name="x" * 50_000))
            assert (await receive(healthy))["event"]["subject"] == str(number)
            if _subscribers(app) == 1:
                break
        assert _subscribers(app) == 1
        stalled.transport.resume_reading()
        assert await closed(stalled) == 1013


def _subscribers(app: FastAPI) -> int:
    return int(app.state.live.hub.listeners)


async def test_echo_needs_no_token(url: str) -> None:
    for path in ("/ws/echo", "/v1/ws/echo"):
        async with connect(ws(url, path), proxy=None) as socket:
            await socket.send("hello")
            answer = await receive(socket)
            assert answer["echo"] == "hello"
            assert "T" in answer["server_time"]
            await socket.send(b"binary")
            assert await closed(socket) == 1003


async def test_a_frame_above_64_kib_closes_with_1009(url: str, token_issuer: TokenIssuer) -> None:
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await socket.send("x" * (64 * 1024 + 1))
        assert await closed(socket) == 1009


async def test_stream_that_was_made_anew_is_a_gap_and_goes_on(
    url: str, publisher: Publisher, token_issuer: TokenIssuer, nats_server: Any
) -> None:
    headers = token_issuer.authorization(1)
    async with subscribed(url, headers, "items") as socket, operator(nats_server) as broker:
        for number in range(1, 4):
            await publisher.publish(ItemCreated(id=number))
        old = [await receive(socket) for _ in range(3)][-1]["cursor"]

        await broker.js.delete_stream("EVENTS")

        gap = await receive(socket)
        assert (gap["type"], gap["topic"], gap["from"]) == ("gap", "items", old)
        assert gap["to"].partition(".")[0] != old.partition(".")[0]
        await publisher.publish(ItemCreated(id=4))
        assert (await receive(socket))["event"]["subject"] == "4"

        async with subscribed(url, headers, "items", old) as late:
            gap = await receive(late)
            assert (gap["type"], gap["from"]) == ("gap", old)


@pytest.mark.parametrize("published_after", [0, 3, 10])
async def test_server_that_lost_its_newest_messages_is_a_gap_and_goes_on(
    settings: NotificationsSettings, nats_server: Any, tmp_path: Path, published_after: int
) -> None:
    """Whether or not others have taken the numbers of the lost ones by the time that the reader is back."""
    store, backup = tmp_path / "nats-server", tmp_path / "backup"
    hub, listener = Hub(memory=100), Listener()
    async with Publisher(nats_server) as before:
        await before.publish(ItemCreated(id=1))
    nats_server.stop()
    shutil.copytree(store, backup)
    nats_server.start()
    async with Publisher(nats_server) as before, reading(settings, hub):
        for number in (2, 3, 4):
            await before.publish(ItemCreated(id=number))
        await eventually(lambda: hub.last == 4)
    hub.follow(listener, [Channel("items")], lines)

    nats_server.stop()
    shutil.rmtree(store)
    shutil.copytree(backup, store)
    nats_server.start()
    new = range(10, 10 + published_after)
    async with Publisher(nats_server) as after:
        for number in new:
            await after.publish(ItemCreated(id=number))

    async with reading(settings, hub):
        await eventually(lambda: len(listener.frames) == 2 + published_after)

    gap, *events = listener.frames
    assert (gap["type"], gap["from"]) == ("gap", f"{hub.epoch}.4")
    assert [frame["event"]["subject"] for frame in events] == ["1", *map(str, new)]


async def test_reader_that_was_away_too_long_tells_of_the_gap(
    settings: NotificationsSettings, publisher: Publisher, nats_server: Any
) -> None:
    hub, listener = Hub(memory=100), Listener()
    async with reading(settings, hub):
        await publisher.publish(ItemCreated(id=1))
        await eventually(lambda: hub.last == 1)
    hub.follow(listener, [Channel("items")], lines)
    for number in (2, 3, 4):
        await publisher.publish(ItemCreated(id=number))
    async with operator(nats_server) as broker:
        await broker.js.purge_stream("EVENTS", seq=4)

    async with reading(settings, hub):
        await eventually(lambda: len(listener.frames) == 2)

    gap, event = listener.frames
    assert (gap["type"], gap["from"], gap["to"]) == ("gap", f"{hub.epoch}.1", f"{hub.epoch}.3")
    assert event["event"]["subject"] == "4"


async def test_reader_of_a_long_stream_remembers_its_end_only(
    settings: NotificationsSettings, publisher: Publisher
) -> None:
    for number in range(1, 21):
        await publisher.publish(ItemCreated(id=number))
    hub = Hub(memory=5)
    async with Broker(settings) as broker:
        reader = LiveReader(broker, hub, History(broker, hub), memory=5)
        async with running(reader.run()):
            await eventually(reader.caught_up.is_set)

    assert (hub.last, hub.floor, [event.sequence for event in hub._recent]) == (20, 15, [16, 17, 18, 19, 20])


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("events.items.item.created.1", b"not json"),
        ("events.items.item.created.1", b""),
        ("events.items.item.created.1", b"\xff"),
        ("events.notifications.notification.created.1", b"[]"),
        ("events.notifications.notification.created.1", b"{}"),
        ("events.notifications.notification.created.1", b'{"data":{"user_id":"x"}}'),
        ("events.notifications.notification.created.1", b'{"data":{"user_id":null}}'),
        ("events.items.item", b"{}"),
    ],
)
async def test_message_that_is_no_event_reaches_nobody_and_stops_nothing(
    url: str, publisher: Publisher, token_issuer: TokenIssuer, subject: str, payload: bytes
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        await publisher.publish_raw(subject, payload)
        await publisher.publish(ItemCreated(id=2))
        assert (await receive(socket))["event"]["subject"] == "2"


async def test_replay_longer_than_the_backlog_is_no_reason_to_close(
    app: FastAPI, url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    configure(app, socket_backlog=1000)
    headers = token_issuer.authorization(1)
    async with subscribed(url, headers, "items") as socket:
        await publisher.publish(ItemCreated(id=1))
        cursor = (await receive(socket))["cursor"]
        for number in range(2, 102):
            await publisher.publish(ItemCreated(id=number))
            await receive(socket)

    async with subscribed(url, headers, "items", cursor) as socket:
        subjects = [(await receive(socket))["event"]["subject"] for _ in range(100)]

    assert subjects == [str(number) for number in range(2, 102)]


async def test_bad_cursor_leaves_the_subscription_there_is(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        await socket.send('{"type":"subscribe","topic":"items","cursor":"zzz"}')
        assert (await receive(socket))["code"] == "cursor_invalid"

        await publisher.publish(ItemCreated(id=1))

        assert (await receive(socket))["event"]["subject"] == "1"


async def test_subscribing_again_repeats_nothing_and_loses_nothing(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        await publisher.publish(ItemCreated(id=1))
        cursor = (await receive(socket))["cursor"]
        await socket.send(json.dumps({"type": "subscribe", "topic": "items", "cursor": cursor}))
        assert await receive(socket) == {"type": "subscribed", "topic": "items", "cursor": cursor}
        await publisher.publish(ItemCreated(id=2))
        await publisher.publish(ItemCreated(id=3))

        assert [(await receive(socket))["event"]["subject"] for _ in range(2)] == ["2", "3"]


async def test_an_item_has_one_topic(url: str, token_issuer: TokenIssuer) -> None:
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await receive(socket)
        for topic in ("items.007", "items.", "items.-1", "items.1.2", "items.x", "items.１", "me.1", ""):
            await socket.send(json.dumps({"type": "subscribe", "topic": topic}))
            assert (await receive(socket))["code"] == "unknown_topic", topic


async def test_topics_of_a_socket_are_bounded(
    url: str, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MAX_TOPICS", 3)
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await receive(socket)
        answers = []
        for topic in ("items", "items.1", "items.2", "items.3", "items.2"):
            await socket.send(json.dumps({"type": "subscribe", "topic": topic}))
            answers.append((await receive(socket)).get("code", "subscribed"))

    assert answers == ["subscribed"] * 3 + ["too_many_topics", "subscribed"]


async def test_new_token_without_the_scope_of_a_topic_closes_with_1008(
    url: str, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1, scope=READ), "me") as socket:
        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1)}))
        assert await closed(socket) == 1008


async def test_bad_token_in_band_closes_with_1008(url: str, token_issuer: TokenIssuer) -> None:
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await socket.send('{"type":"auth","token":"x.y.z"}')
        assert await closed(socket) == 1008


async def test_sub_protocol_is_confirmed_and_the_token_in_it_is_not_echoed(
    url: str, token_issuer: TokenIssuer
) -> None:
    async with connect(
        ws(url),
        additional_headers=token_issuer.authorization(1),
        subprotocols=[Subprotocol("tollhouse.v1"), Subprotocol("bearer.x")],
        proxy=None,
    ) as socket:
        assert socket.subprotocol == "tollhouse.v1"


async def test_without_nats_a_subscriber_is_told_to_come_back(
    settings: NotificationsSettings, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "STREAM_TIMEOUT", 0.05)
    nowhere = settings.model_copy(update={"nats_url": "nats://127.0.0.1:1"})
    async with (
        serving(create_app(nowhere), ws=SocketProtocol) as url,
        connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket,
    ):
        await socket.send('{"type":"subscribe","topic":"items"}')
        assert await closed(socket) == 1013


async def test_without_keys_a_client_is_told_to_come_back(
    settings: NotificationsSettings, token_issuer: TokenIssuer
) -> None:
    keyless = settings.model_copy(update={"jwks_url": "http://127.0.0.1:1/jwks.json"})
    async with serving(create_app(keyless), ws=SocketProtocol) as url:
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None):
                pass
        assert refusal.value.response.status_code == 503

        async with connect(ws(url), proxy=None) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1)}))
            assert await closed(socket) == 1013


async def test_client_that_vanishes_leaves_no_subscription(
    app: FastAPI, url: str, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1), "items") as socket:
        assert _subscribers(app) == 1
        socket.transport.abort()
    await eventually(lambda: _subscribers(app) == 0)


async def test_a_burst_of_pings_is_answered_not_punished(
    app: FastAPI, url: str, token_issuer: TokenIssuer
) -> None:
    configure(app, socket_backlog=1000)
    async with connect(ws(url), additional_headers=token_issuer.authorization(1), proxy=None) as socket:
        await receive(socket)
        for _ in range(500):
            await socket.send('{"type":"ping"}')
        assert [(await receive(socket))["type"] for _ in range(500)] == ["pong"] * 500


async def test_an_unknown_socket_path_is_a_404_problem(url: str) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(ws(url, "/v1/ws/nowhere"), proxy=None):
            pass
    assert refusal.value.response.status_code == 404
    assert json.loads(refusal.value.response.body)["code"] == "route_not_found"


@pytest.mark.parametrize("field", ["Sec-WebSocket-Version: 8", "Sec-WebSocket-Version: 13"])
async def test_a_broken_handshake_is_a_400_problem(url: str, field: str) -> None:
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{field}\r\n\r\n".encode()
    )
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer
