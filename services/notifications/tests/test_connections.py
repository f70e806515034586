"""Who may be connected, for how long, and who is let go: caps, expiry, revocation, dead peers."""

import contextlib
import json

import httpx
import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from notifications import protocol
from notifications.app import create_app
from notifications.connections import address_of
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared.metrics import Metrics
from shared.testing import TokenIssuer, eventually, serving
from stack.testing import Publisher

from .conftest import ItemCreated
from .live_client import closed, receive, subscribed, ws

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(settings: NotificationsSettings) -> NotificationsSettings:
    """Caps that a test can reach."""
    caps = {
        "max_connections_per_user": 2,
        "max_connections_per_address": 4,
        "max_unauthenticated_per_address": 2,
        "max_connections": 6,
    }
    return settings.model_copy(update=caps)


async def refused(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """Connect in vain; return status and problem code."""
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(ws(url), additional_headers=headers, proxy=None):
            pass
    response = refusal.value.response
    assert response.headers["Retry-After"] == "10"
    return response.status_code, json.loads(response.body)["code"]


TOO_MANY = (429, "too_many_connections")


async def test_a_users_connections_are_capped_sockets_and_streams_alike(
    url: str, client: httpx.AsyncClient, app: FastAPI, token_issuer: TokenIssuer
) -> None:
    me = token_issuer.authorization(1)
    async with (
        subscribed(url, me, "items"),
        client.stream("GET", "/v1/events?topics=items", headers=me) as stream,
    ):
        assert stream.status_code == 200
        assert await refused(url, me) == TOO_MANY
        answer = await client.get("/v1/events?topics=items", headers=me)
        assert (answer.status_code, answer.json()["code"]) == TOO_MANY
        async with connect(ws(url), proxy=None) as socket:  # by its first frame, too
            await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1)}))
            assert await closed(socket) == 1013
        async with subscribed(url, token_issuer.authorization(2), "items"):
            pass
    await eventually(lambda: len(app.state.live.connections) == 0)
    async with subscribed(url, me, "items"):
        pass


async def test_an_addresss_connections_are_capped_by_the_address_that_the_gateway_names(
    url: str, token_issuer: TokenIssuer
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for user in range(1, 5):
            headers = token_issuer.authorization(user) | {"X-Forwarded-For": "203.0.113.9"}
            await stack.enter_async_context(subscribed(url, headers, "items"))
        here = {"X-Forwarded-For": "203.0.113.9"}
        assert await refused(url, token_issuer.authorization(9) | here) == TOO_MANY
        elsewhere = token_issuer.authorization(9) | {"X-Forwarded-For": "203.0.113.10"}
        await stack.enter_async_context(subscribed(url, elsewhere, "items"))
        await stack.enter_async_context(connect(ws(url), additional_headers=elsewhere, proxy=None))
        assert await refused(url, token_issuer.authorization(10)) == TOO_MANY, "the process is full"


async def test_sockets_that_have_not_authenticated_are_capped_apart(
    url: str, token_issuer: TokenIssuer
) -> None:
    async with connect(ws(url), proxy=None) as one, connect(ws(url), proxy=None):
        assert await refused(url, {}) == TOO_MANY
        async with subscribed(url, token_issuer.authorization(1), "items"):
            pass
        await one.send(json.dumps({"type": "auth", "token": token_issuer.token(2)}))
        assert (await receive(one))["type"] == "ready"
        async with connect(ws(url), proxy=None):  # whoever authenticated makes room
            assert await refused(url, {}) == TOO_MANY


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        ("10.1.2.3", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", "10.9.9.9", "10.9.9.9"),
        ("127.0.0.1", "1.2.3.4, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("198.51.100.1", "203.0.113.9", "198.51.100.1"),
        ("fd00::1", "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ],
)
def test_only_the_gateways_word_counts(peer: str, forwarded: str | None, counted: str) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    proxies = NotificationsSettings.model_fields["trusted_proxies"].default
    assert address_of({"client": (peer, 1), "headers": headers}, proxies) == counted


async def test_a_client_is_told_that_its_token_expires_and_closed_when_it_has(
    url: str, token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(1, expires_in=3)
    async with connect(ws(url), additional_headers=headers, proxy=None) as socket:
        assert (await receive(socket))["type"] == "ready"
        notice = await receive(socket)
        assert notice["type"] == "expiring"
        assert 0 <= notice["in"] <= 3
        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1, expires_in=3)}))
        assert (await receive(socket))["type"] == "ready"
        assert (await receive(socket))["type"] == "expiring"
        assert await closed(socket) == 4401


async def test_a_revoked_session_closes_its_sockets_and_no_others(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with (
        subscribed(url, token_issuer.authorization(1, sid="ended"), "items") as one,
        connect(ws(url), proxy=None) as two,
        subscribed(url, token_issuer.authorization(1, sid="lasting"), "items") as other,
    ):
        await two.send(json.dumps({"type": "auth", "token": token_issuer.token(2, sid="ended")}))
        assert (await receive(two))["type"] == "ready"

        await publisher.revoke("ended")

        assert [await closed(one), await closed(two)] == [1008, 1008]
        await publisher.publish(ItemCreated(id=1))
        assert (await receive(other))["event"]["subject"] == "1"
        assert (await _status(url, token_issuer.authorization(1, sid="ended"))) == 401


async def test_a_new_token_moves_a_socket_to_its_session(
    url: str, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    async with subscribed(url, token_issuer.authorization(1, sid="old"), "items") as socket:
        await socket.send(json.dumps({"type": "auth", "token": token_issuer.token(1, sid="new")}))
        assert (await receive(socket))["type"] == "ready"

        await publisher.revoke("old")
        await socket.send('{"type":"ping"}')
        assert (await receive(socket))["type"] == "pong"
        await publisher.revoke("new")
        assert await closed(socket) == 1008


async def _status(url: str, headers: dict[str, str]) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(ws(url), additional_headers=headers, proxy=None):
            pass
    return refusal.value.response.status_code


async def test_a_peer_that_answers_no_ping_is_let_go(
    settings: NotificationsSettings, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PING_INTERVAL", 0.05)
    monkeypatch.setattr(protocol, "PONG_TIMEOUT", 3.0)  # the living must answer on a busy machine, too
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT", 0.1)
    app = create_app(settings)
    async with (
        serving(app, ws=SocketProtocol) as url,
        subscribed(url, token_issuer.authorization(1), "items") as dead,
        subscribed(url, token_issuer.authorization(2), "items") as alive,
    ):
        dead.transport.pause_reading()
        await eventually(lambda: len(app.state.live.connections) == 1)
        await alive.send('{"type":"ping"}')
        assert (await receive(alive))["type"] == "pong"
        dead.transport.abort()


async def test_who_is_too_slow_is_named_and_counted(
    settings: NotificationsSettings,
    publisher: Publisher,
    token_issuer: TokenIssuer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = create_app(settings.model_copy(update={"socket_backlog": 100_000}))
    async with (
        serving(app, ws=SocketProtocol) as url,
        subscribed(url, token_issuer.authorization(41), "items") as stalled,
    ):
        stalled.transport.pause_reading()
        number = 0
        while app.state.live.hub.listeners:
            number += 1
            await publisher.publish(ItemCreated(id=number, name="x" * 50_000))
        await eventually(lambda: len(app.state.live.connections) == 0)
        stalled.transport.abort()
        metrics: Metrics = app.state.live.meters._metrics
        metrics.refresh()
        numbers = {
            (cell.family, *dict(cell.labels).values()): metrics.cells[index]
            for cell, index in metrics._indexes.items()
        }

    logged = capsys.readouterr().out
    (line,) = [line for line in logged.splitlines() if "live.ended" in line]
    for expected in ("too slow", "41", "127.0.0.1", "items"):
        assert expected in line
    assert numbers["notifications_live_ended_total", "1013", "too slow"] == 1
    assert 0 < numbers["notifications_live_deliveries_total",] <= number
