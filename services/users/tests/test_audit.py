"""Every sensitive act is on record, with who, whose and from where, and without a secret."""

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select, text

from shared.testing import eventually
from users import audit
from users.clients import Client
from users.models import AuditRow
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery"
ADDRESS = "192.0.2.7"


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(
        update={
            "admin_email": "root@example.com",
            "admin_password": SecretStr(PASSWORD),
            "refresh_grace": 0.0,
        }
    )


async def trail(app: FastAPI) -> list[AuditRow]:
    async with app.state.database.reading() as session:
        return list(await session.scalars(select(AuditRow).order_by(AuditRow.id)))


async def published(app: FastAPI) -> list[dict[str, Any]]:
    query = text("SELECT payload FROM outbox WHERE subject LIKE 'events.users.audit.recorded.%' ORDER BY id")
    async with app.state.database.reading() as session:
        return [json.loads(payload) for payload in await session.scalars(query)]


async def log_in(client: httpx.AsyncClient, email: str, password: str = PASSWORD) -> dict[str, Any]:
    answer = await client.post("/v1/users/token", data={"username": email, "password": password})
    tokens: dict[str, Any] = answer.json()
    return tokens


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def test_the_trail_tells_the_whole_story(client: httpx.AsyncClient, app: FastAPI) -> None:
    client.headers["X-Forwarded-For"] = ADDRESS
    before = len(await trail(app))
    registered = await client.post(
        "/v1/users",
        json={"email": "ada@example.com", "password": PASSWORD},
        headers={"X-Request-ID": "story-1"},
    )
    ada: int = registered.json()["id"]
    await log_in(client, "ada@example.com", "wrong but long enough")
    await log_in(client, "nobody@example.com", "wrong but long enough")
    tokens = await log_in(client, "ada@example.com")
    refresh = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    for _ in range(2):
        await client.post("/v1/users/token", data=refresh)
    left = await log_in(client, "ada@example.com")
    await client.post("/v1/users/token/revoke", data={"token": left["refresh_token"]})
    mine = bearer(await log_in(client, "ada@example.com"))
    change = {"current_password": PASSWORD, "new_password": "a brand new password"}
    assert (await client.post("/v1/users/me/password", json=change, headers=mine)).status_code == 204
    root = bearer(await log_in(client, "root@example.com"))
    root_id = (await client.get("/v1/users/me", headers=root)).json()["id"]
    await client.patch(f"/v1/users/{ada}", json={"scopes": []}, headers=root)
    await client.delete(f"/v1/users/{ada}/sessions", headers=root)
    assert (await client.post("/v1/users/keys/rotate", headers=root)).status_code == 202
    assert (await client.delete("/v1/users/me/sessions", headers=root)).status_code == 204

    rows = (await trail(app))[before:]
    assert [(row.action, row.actor_id, row.subject_user_id) for row in rows] == [
        ("account.registered", ada, ada),
        ("code.mailed", ada, ada),
        ("login.failed", None, ada),
        ("login.failed", None, None),
        ("login.succeeded", ada, ada),
        ("token.reused", None, ada),
        ("login.succeeded", ada, ada),
        ("sessions.ended", ada, ada),
        ("login.succeeded", ada, ada),
        ("password.changed", ada, ada),
        ("login.succeeded", root_id, root_id),
        ("account.changed", root_id, ada),
        ("sessions.ended", root_id, ada),
        ("key.rotated", root_id, None),
        ("sessions.ended", root_id, root_id),
    ]
    assert {row.address for row in rows} == {ADDRESS}
    assert rows[0].request_id == "story-1"
    assert rows[1].detail == {"purpose": "verify_email"}
    assert rows[11].detail == {"scopes": []}

    events = (await published(app))[before:]
    assert [event["data"]["id"] for event in events] == [
        row.id for row in rows if row.action not in ("login.failed", "code.mailed")
    ]
    told = json.dumps([[row.detail, row.address] for row in rows]) + json.dumps(events)
    for secret in (PASSWORD, "wrong but", "a brand new", "example.com", tokens["refresh_token"]):
        assert secret not in told


async def test_codes_by_mail_are_on_record_with_who_asked(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/users", json={"email": "ada@example.com", "password": PASSWORD})
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Request-ID": "asked-1"}
    for email in ("ada@example.com", "nobody@example.com"):
        answer = await client.post("/v1/users/password-reset", json={"email": email}, headers=headers)
        assert answer.status_code == 202

    async def reset_mailed() -> AuditRow | None:
        last = (await trail(app))[-1]
        return last if last.detail == {"purpose": "reset_password"} else None

    row = await eventually(reset_mailed)
    assert row is not None
    assert (row.action, row.actor_id) == ("code.mailed", None)
    assert (row.address, row.request_id) == ("203.0.113.9", "asked-1")
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE mailed_codes SET digest = sha256('code') WHERE purpose = 'reset_password'")
        )
    body = {"code": "code", "new_password": "a brand new password"}
    assert (await client.post("/v1/users/password-reset/confirm", json=body)).status_code == 204
    assert (await trail(app))[-1].action == "password.reset"


async def test_deletion_stays_on_record(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/users", json={"email": "ada@example.com", "password": PASSWORD})
    mine = bearer(await log_in(client, "ada@example.com"))
    await client.delete("/v1/users/me", headers=mine)
    assert (await trail(app))[-1].action == "account.deleted"


@pytest.mark.usefixtures("client")
async def test_what_the_service_does_itself_is_on_record(app: FastAPI) -> None:
    rows = await trail(app)
    assert [(row.action, row.actor_id) for row in rows] == [
        ("key.rotated", None),
        ("account.registered", None),
    ]
    assert "users:admin" in rows[1].detail["scopes"]


@pytest.mark.usefixtures("client")
async def test_no_record_of_what_did_not_happen_and_none_for_ever(
    app: FastAPI, settings: UsersSettings
) -> None:
    before = [row.id for row in await trail(app)]

    async def fail_after_recording() -> None:
        async with app.state.database.transaction() as session:
            await audit.record(session, "account.deleted", client=Client())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_after_recording()
    assert [row.id for row in await trail(app)] == before
    async with app.state.database.transaction() as session:
        await session.execute(text("UPDATE audit SET at = at - interval '366 days'"))
        await audit.prune(session, settings)
    assert await trail(app) == []
