"""Events become stored notifications, which their receiver alone may list and read."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from notifications import service
from notifications.app import create_app
from notifications.settings import NotificationsSettings
from shared import consumer
from shared.broker import Broker
from shared.ids import new_id
from shared.testing import TokenIssuer, eventually, serving
from stack.testing import Publisher

from .conftest import Fact, ItemCreated, ItemDeleted, ItemUpdated, UserRegistered, operator

pytestmark = pytest.mark.integration

READ = "notifications:read"


async def listed(
    client: httpx.AsyncClient, issuer: TokenIssuer, user_id: int, **query: str | int
) -> list[dict[str, Any]]:
    response = await client.get(
        "/v1/notifications", params=query, headers=issuer.authorization(user_id, scope=READ)
    )
    assert response.status_code == 200, response.text
    return list(response.json())


async def test_a_new_user_is_welcomed_once_however_often_the_event_comes(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    event_id = new_id()
    for _ in range(3):
        await publisher.publish(UserRegistered(id=7), event_id=event_id)
    await publisher.publish(ItemCreated(id=1, owner_id=7, actor_id=7))

    found = await eventually(lambda: _at_least(2, client, token_issuer, 7))

    assert [notification["kind"] for notification in found] == ["item_created", "welcome"]


async def _at_least(
    count: int, client: httpx.AsyncClient, issuer: TokenIssuer, user_id: int
) -> list[dict[str, Any]] | None:
    found = await listed(client, issuer, user_id)
    return found if len(found) >= count else None


async def test_only_changes_by_somebody_else_are_reported_to_the_owner(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    await publisher.publish(ItemUpdated(id=1, version=2, owner_id=7, actor_id=7))
    await publisher.publish(ItemDeleted(id=1, version=3, owner_id=7, actor_id=7))
    await publisher.publish(ItemUpdated(id=2, version=2, owner_id=7, actor_id=99))
    await publisher.publish(ItemDeleted(id=2, version=3, owner_id=7, actor_id=99))

    found = await eventually(lambda: _at_least(2, client, token_issuer, 7))

    assert [notification["kind"] for notification in found] == [
        "item_removed_by_admin",
        "item_changed_by_admin",
    ]
    assert found[0]["data"] == {"item_id": 2, "name": "Brass compass"}
    assert await listed(client, token_issuer, 99) == []


@pytest.mark.parametrize("fact", [ItemCreated, ItemUpdated, ItemDeleted])
async def test_nobody_is_told_of_an_item_without_an_owner(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer, fact: type[ItemCreated]
) -> None:
    await publisher.publish(fact(id=1, owner_id=None, actor_id=7))
    await publisher.publish(UserRegistered(id=7))

    (only,) = await eventually(lambda: _at_least(1, client, token_issuer, 7))

    assert only["kind"] == "welcome"


class NewerUserRegistered(UserRegistered):
    """The event as a later release may publish it."""

    nickname: str = "Ada"
    address: dict[str, Any] = {"city": "London"}  # noqa: RUF012  # a field of a model


class UserRegisteredBare(Fact):
    """An event that lacks the id that its handler needs."""

    type = "users.user.registered.v1"

    id: int = 0

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"nickname": "Ada"}


async def test_unknown_fields_are_ignored_and_missing_ones_are_dead_letters(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer, nats_server: Any
) -> None:
    sequence = await publisher.publish(UserRegisteredBare())
    await publisher.publish(NewerUserRegistered(id=7))

    assert await eventually(lambda: _at_least(1, client, token_issuer, 7))

    async with operator(nats_server) as broker:
        dead = await eventually(lambda: broker.js.get_msg("DEAD", seq=1))
    assert dead.subject == "dead.notifications.notifications"
    assert dead.headers is not None
    assert dead.headers["Tollhouse-Sequence"] == str(sequence)
    assert "missing" in dead.headers["Tollhouse-Cause"]


async def test_consumer_killed_between_commit_and_ack_notifies_once(
    settings: NotificationsSettings,
    publisher: Publisher,
    token_issuer: TokenIssuer,
    nats_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await publisher.publish(UserRegistered(id=7))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("crashing_consumer.py")),
        env={
            **os.environ,
            **nats_server.environment("notifications"),
            "NOTIFICATIONS_DATABASE_URL": settings.database_url.get_secret_value(),
        },
    )
    assert await process.wait() == -signal.SIGKILL
    await publisher.publish(ItemCreated(id=1, owner_id=7, actor_id=7))
    monkeypatch.setattr(consumer, "ACK_WAIT", 1.0)  # as the dead one had it

    async with (
        serving(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
        operator(nats_server) as broker,
    ):
        await eventually(lambda: _settled(broker))
        found = await listed(client, token_issuer, 7)

    assert [notification["kind"] for notification in found] == ["item_created", "welcome"]


async def _settled(broker: Broker) -> bool:
    """Say whether every event was delivered and acknowledged; the service's own events count too."""
    info = await broker.js.consumer_info("EVENTS", "notifications")
    return not info.num_pending and not info.num_ack_pending


async def tell(app: FastAPI, user_id: int, count: int) -> list[int]:
    """Tell a person something, several times; returns the ids, newest first."""
    async with app.state.database.transaction() as session:
        told = [
            await service.notify(session, user_id=user_id, kind="news", title=f"Nr. {number}", data={})
            for number in range(count)
        ]
    return [notification.id for notification in reversed(told)]


async def test_pages_lead_to_the_end_and_miss_nothing(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    ids = await tell(app, 7, 7)
    await tell(app, 8, 3)
    headers = token_issuer.authorization(7, scope=READ)

    pages: list[list[int]] = []
    url = "/v1/notifications?limit=3"
    while True:
        response = await client.get(url, headers=headers)
        pages.append([notification["id"] for notification in response.json()])
        if "next" not in response.links:
            break
        url = response.links["next"]["url"]
        await tell(app, 7, 1)  # what is new does not move the pages

    assert pages == [ids[:3], ids[3:6], ids[6:]]


async def test_list_is_capped_and_checked(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    await tell(app, 7, 201)
    headers = token_issuer.authorization(7, scope=READ)

    assert len(await listed(client, token_issuer, 7)) == 50
    assert len(await listed(client, token_issuer, 7, limit=100_000)) == 200
    (newest,) = await listed(client, token_issuer, 7, limit=1)
    assert newest.keys() == {"id", "kind", "title", "data", "read_at", "created_at"}
    for query in ("limit=0", "limit=x", "cursor=0", "cursor=x", f"cursor={2**63}", "unread=perhaps"):
        assert (await client.get(f"/v1/notifications?{query}", headers=headers)).status_code == 422, query


async def test_reading_changes_what_is_unread(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    third, second, first = await tell(app, 7, 3)
    await tell(app, 8, 1)
    headers = token_issuer.authorization(7, scope=READ)

    async def unread() -> tuple[int, list[int]]:
        count = (await client.get("/v1/notifications/unread-count", headers=headers)).json()["unread"]
        found = await listed(client, token_issuer, 7, unread="true")
        return count, [notification["id"] for notification in found]

    assert await unread() == (3, [third, second, first])

    read_at = set()
    for _ in range(2):
        assert (await client.post(f"/v1/notifications/{second}/read", headers=headers)).status_code == 204
        read_at.add((await listed(client, token_issuer, 7))[1]["read_at"])
    assert len(read_at) == 1, "reading twice changes nothing"
    assert None not in read_at
    assert await unread() == (2, [third, first])

    assert (await client.post("/v1/notifications/read-all", headers=headers)).status_code == 204
    assert await unread() == (0, [])
    assert len(await listed(client, token_issuer, 7)) == 3
    assert len(await listed(client, token_issuer, 8, unread="true")) == 1


async def test_pages_of_unread_ones_stay_unread_ones(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    ids = await tell(app, 7, 4)
    headers = token_issuer.authorization(7, scope=READ)
    await client.post(f"/v1/notifications/{ids[1]}/read", headers=headers)

    first = await client.get("/v1/notifications?unread=true&limit=2", headers=headers)
    second = await client.get(first.links["next"]["url"], headers=headers)

    assert [entry["id"] for page in (first, second) for entry in page.json()] == [ids[0], ids[2], ids[3]]


async def test_others_and_unknown_notifications_cannot_be_told_apart(
    app: FastAPI, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    (others,) = await tell(app, 8, 1)
    headers = token_issuer.authorization(7, scope=READ)

    for notification_id in (others, others + 1, 2**63 - 1):
        answer = await client.post(f"/v1/notifications/{notification_id}/read", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "notification_not_found")
    for bad in ("0", "x", str(2**63)):
        assert (await client.post(f"/v1/notifications/{bad}/read", headers=headers)).status_code == 422
    assert (await listed(client, token_issuer, 8))[0]["read_at"] is None


async def test_notifications_need_a_token_with_the_scope(
    client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    sender = token_issuer.authorization(7, scope="notifications:send")
    expired = token_issuer.authorization(7, scope=READ, expires_in=-120)
    for method, path in (
        ("GET", ""),
        ("GET", "/unread-count"),
        ("POST", "/1/read"),
        ("POST", "/read-all"),
    ):
        for headers, status, code in (
            ({}, 401, "not_authenticated"),
            (expired, 401, "invalid_token"),
            (sender, 403, "insufficient_scope"),
        ):
            answer = await client.request(method, f"/v1/notifications{path}", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code), (method, path)


async def test_own_problems_are_in_the_catalogue(client: httpx.AsyncClient) -> None:
    codes = {problem["code"] for problem in (await client.get("/errors")).json()}

    assert codes >= {
        "notification_not_found",
        "email_not_found",
        "recipient_not_allowed",
        "too_many_emails",
        "database_unavailable",
    }
