"""The live stream as Server-Sent Events, over real HTTP, fed from a real JetStream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from notifications import sse
from notifications.app import create_app
from notifications.live import LiveReader
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared.testing import TokenIssuer, eventually, serving
from stack.testing import Publisher

from .conftest import ItemCreated, ItemUpdated, UserRegistered
from .live_client import configure

pytestmark = pytest.mark.integration

READ = "notifications:read"


class Events:
    """A stream of events as a client reads it."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.last_id: str | None = None

    async def line(self) -> str | None:
        """Return the next line, or None at the end."""
        async with asyncio.timeout(20):
            return await anext(self._lines, None)

    async def message(self) -> dict[str, Any]:
        """Return the next message."""
        while (line := await self.line()) is not None:
            name, _, value = line.partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data":
                message: dict[str, Any] = json.loads(value)
                return message
        raise EOFError

    async def event(self) -> dict[str, Any]:
        """Return the next event, whatever is said before it."""
        while (message := await self.message())["type"] != "event":
            assert message["type"] in ("ready", "subscribed"), message
        event: dict[str, Any] = message["event"]
        return event

    async def subscribed(self) -> None:
        """Wait until events are followed."""
        while (await self.message())["type"] != "subscribed":
            pass

    async def ended(self) -> list[str]:
        """Read to the end; return the lines until then."""
        lines = []
        while (line := await self.line()) is not None:
            lines.append(line)
        return lines


@contextlib.asynccontextmanager
async def following(
    client: httpx.AsyncClient, headers: dict[str, str], topics: str = "items", *, last_id: str | None = None
) -> AsyncIterator[Events]:
    if last_id is not None:
        headers = {**headers, "Last-Event-ID": last_id}
    url = "/v1/events"
    async with client.stream("GET", url, params={"topics": topics}, headers=headers, timeout=20) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield Events(response)


async def test_events_come_in_order_and_a_last_event_id_resumes(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with following(client, headers) as events:
        await events.subscribed()
        for version in range(1, 4):
            await publisher.publish(ItemUpdated(id=1, version=version))
        assert [(await events.event())["sequence"] for _ in range(3)] == [1, 2, 3]
        last_id = events.last_id
    for version in range(4, 500):  # more than one page
        await publisher.publish(ItemUpdated(id=1, version=version))

    async with following(client, headers, last_id=last_id) as events:
        await publisher.publish(ItemUpdated(id=1, version=500))
        versions = [(await events.event())["sequence"] for _ in range(4, 501)]

    assert versions == list(range(4, 501))


async def test_who_saw_no_event_yet_resumes_too(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with following(client, headers) as events:
        await events.subscribed()
        last_id = events.last_id
    await publisher.publish(ItemCreated(id=1))

    async with following(client, headers, last_id=last_id) as events:
        assert (await events.event())["subject"] == "1"


async def test_an_event_of_several_topics_comes_once_and_topics_keep_the_streams_order(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(7, scope=READ)
    async with following(client, headers, "items,items.1,me") as events:
        await events.subscribed()
        start = events.last_id
        await publisher.publish(ItemCreated(id=1))
        await publisher.publish(UserRegistered(id=7))
        await eventually(lambda: publisher.published("events.notifications.>"))
        await publisher.publish(ItemUpdated(id=1, version=2))
        live = [(await events.event())["type"] for _ in range(3)]
    async with following(client, headers, "items.1,me,items", last_id=start) as events:
        replayed = [(await events.event())["type"] for _ in range(3)]

    assert live == replayed
    assert live == ["items.item.created.v1", "notifications.notification.created.v1", "items.item.updated.v1"]


async def test_an_unknown_id_is_answered_with_a_gap(
    client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1)
    async with following(client, headers, last_id="0123456789abcdef.1") as events:
        while (gap := await events.message())["type"] != "gap":
            pass
        assert (gap["topic"], gap["from"]) == ("items", "0123456789abcdef.1")
        assert events.last_id == gap["to"]


async def test_a_pretty_printed_event_stays_one_message(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with following(client, token_issuer.authorization(1)) as events:
        await events.subscribed()
        pretty = b'{\r\n\r\n"sequence":1,\n"time":"2099-01-01T00:00:00Z","subject":"1"}'
        await publisher.publish_raw("events.items.item.created.1", pretty)
        assert (await events.event())["subject"] == "1"


async def test_quiet_streams_say_that_they_are_there(
    client: httpx.AsyncClient, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE", 0.05)
    async with following(client, token_issuer.authorization(1)) as events:
        await events.subscribed()
        lines = [await events.line() for _ in range(5)]
    assert ": still here" in lines


async def test_the_stream_says_that_its_token_expires_and_ends_then(
    client: httpx.AsyncClient, token_issuer: TokenIssuer, app: FastAPI
) -> None:
    async with following(client, token_issuer.authorization(1, expires_in=2)) as events:
        lines = await events.ended()
    assert any(line.startswith('data: {"type":"expiring","in":') for line in lines)
    await eventually(lambda: len(app.state.live.connections) == 0)


async def test_the_stream_ends_when_its_session_is_revoked(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with following(client, token_issuer.authorization(1, sid="the-session")) as events:
        await events.subscribed()
        await publisher.revoke("the-session")
        await events.ended()


async def test_a_session_that_ends_before_the_stream_begins_is_a_401(
    app: FastAPI, client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    live = app.state.live
    reader = LiveReader(live.history._broker, live.hub, live.history, memory=1)
    app.state.live = replace(live, reader=reader)  # one that does not run
    headers = token_issuer.authorization(1, sid="the-session")
    asked = asyncio.create_task(client.get("/v1/events?topics=items", headers=headers))
    await eventually(lambda: len(reader.caught_up._waiters) == 1)  # its token was good

    await publisher.revoke("the-session")
    await eventually(lambda: "the-session" in live.connections._revocations)
    reader.caught_up.set()
    answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


async def test_a_drain_ends_the_stream(settings: NotificationsSettings, token_issuer: TokenIssuer) -> None:
    app = create_app(settings)
    async with (
        serving(app, ws=SocketProtocol) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        following(client, token_issuer.authorization(1)) as events,
    ):
        await events.subscribed()
        app.state.draining.set()
        await events.ended()


async def test_a_client_that_does_not_read_is_cut_off_and_delays_nobody(
    app: FastAPI, client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    configure(app, socket_backlog=100_000)
    async with (
        following(client, token_issuer.authorization(1)) as stalled,
        following(client, token_issuer.authorization(2)) as healthy,
    ):
        await stalled.subscribed()
        await healthy.subscribed()
        for number in range(1, 1000):
            await publisher.publish(ItemCreated(id=number, name="x" * 50_000))
            assert (await healthy.event())["subject"] == str(number)
            if app.state.live.hub.listeners == 1:
                break
        assert app.state.live.hub.listeners == 1


async def test_a_client_that_leaves_is_forgotten(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    async with following(client, token_issuer.authorization(1)) as events:
        await events.subscribed()
        assert len(app.state.live.connections) == 1
    await eventually(lambda: len(app.state.live.connections) == 0 == app.state.live.hub.listeners)


@pytest.mark.parametrize(
    ("topics", "last_id", "status", "code"),
    [
        ("weather", None, 422, "unknown_topic"),
        ("items,", None, 422, "unknown_topic"),
        ("me", None, 403, "insufficient_scope"),
        (",".join(f"items.{n}" for n in range(1, 102)), None, 422, "too_many_topics"),
        ("items", "zzz", 400, "cursor_invalid"),
        ("x" * 10_000, None, 422, "validation_failed"),
    ],
)
async def test_what_cannot_be_followed_is_a_problem(
    client: httpx.AsyncClient,
    token_issuer: TokenIssuer,
    topics: str,
    last_id: str | None,
    status: int,
    code: str,
) -> None:
    headers = token_issuer.authorization(1) | ({"Last-Event-ID": last_id} if last_id else {})
    answer = await client.get("/v1/events", params={"topics": topics}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_it_needs_a_token_and_a_topic(client: httpx.AsyncClient, token_issuer: TokenIssuer) -> None:
    assert (await client.get("/v1/events?topics=items")).status_code == 401
    assert (await client.get("/v1/events", headers=token_issuer.authorization(1))).status_code == 422


async def test_head_is_answered_and_ends(client: httpx.AsyncClient, token_issuer: TokenIssuer) -> None:
    answer = await client.head("/v1/events?topics=items", headers=token_issuer.authorization(1))
    assert (answer.status_code, answer.content) == (200, b"")


async def test_without_nats_it_is_a_503(
    settings: NotificationsSettings, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STREAM_TIMEOUT", 0.05)
    nowhere = settings.model_copy(update={"nats_url": "nats://127.0.0.1:1"})
    async with (
        serving(create_app(nowhere), ws=SocketProtocol) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        answer = await client.get("/v1/events?topics=items", headers=token_issuer.authorization(1))
    assert (answer.status_code, answer.json()["code"]) == (503, "stream_unavailable")
