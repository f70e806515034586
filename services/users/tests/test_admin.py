"""What administrators may do, and nobody else."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from sqlalchemy import event, text, update

from shared.testing import eventually, serving
from users.app import create_app
from users.models import User
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

ROOT = "root@example.com"
PASSWORD = "correct horse battery"


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(update={"admin_email": ROOT, "admin_password": SecretStr(PASSWORD)})


async def log_in(client: httpx.AsyncClient, email: str) -> dict[str, str]:
    answer = await client.post("/v1/users/token", data={"username": email, "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def register(client: httpx.AsyncClient, email: str, full_name: str | None = None) -> int:
    answer = await client.post(
        "/v1/users", json={"email": email, "password": PASSWORD, "full_name": full_name}
    )
    return int(answer.json()["id"])


@pytest.fixture
async def root(client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose requests are the administrator's."""
    headers = await log_in(client, ROOT)
    async with httpx.AsyncClient(base_url=client.base_url, headers=headers, trust_env=False) as admin:
        yield admin


async def test_others_are_refused(client: httpx.AsyncClient) -> None:
    user_id = await register(client, "ada@example.com")
    for headers, status in (({}, 401), (await log_in(client, "ada@example.com"), 403)):
        answers = [
            await client.get("/v1/users", headers=headers),
            await client.get(f"/v1/users/{user_id}", headers=headers),
            await client.patch(f"/v1/users/{user_id}", json={"scopes": ["users:admin"]}, headers=headers),
            await client.delete(f"/v1/users/{user_id}/sessions", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [status] * 4


async def test_list_pages_through_everybody_once(client: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
    made = [await register(client, f"user{number}@example.com") for number in range(5)]

    seen: list[int] = []
    url = "/v1/users?limit=2"
    while url:
        answer = await root.get(url)
        assert len(answer.json()) <= 2
        seen += [user["id"] for user in answer.json()]
        url = answer.links["next"]["url"] if "next" in answer.links else ""

    assert seen == sorted({*made, *seen}, reverse=True)
    assert set(made) < set(seen)


async def test_list_can_be_searched(client: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
    ada = await register(client, "Ada@Example.com", "Augusta King")
    bob = await register(client, "bob_100%@example.com", "Bob \\ Co")

    async def found(**query: str | bool) -> list[int]:
        return [user["id"] for user in (await root.get("/v1/users", params=query)).json()]

    assert await found(q="aDA@") == [ada]
    assert await found(q="king") == [ada]
    assert await found(q="_100%") == [bob]
    assert await found(q="%%") == []
    assert await found(q="\\") == [bob]
    assert await found(q="_example") == []
    assert await found(q="nobody") == []
    await root.patch(f"/v1/users/{bob}", json={"is_active": False})
    assert await found(is_active=False) == [bob]
    assert bob not in await found(is_active=True)


async def test_search_has_an_index(root: httpx.AsyncClient, app: FastAPI) -> None:
    asked: list[tuple[str, Any]] = []
    engine = app.state.database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    assert (await root.get("/v1/users", params={"q": "ada@example"})).status_code == 200
    statement, parameters = next(call for call in asked if "ILIKE" in call[0])

    async with app.state.database.transaction() as session:
        # What costs least where accounts are few.
        await session.execute(text("SET LOCAL enable_seqscan = off"))
        await session.execute(text("SET LOCAL enable_indexscan = off"))
        connection = await session.connection()
        plan = await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        assert "ix_users_search" in str(plan.all())


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "cursor=x", "cursor=-1", "is_active=perhaps", "q=%00", "q=" + "x" * 300]
)
async def test_bad_queries_are_refused(root: httpx.AsyncClient, query: str) -> None:
    assert (await root.get(f"/v1/users?{query}")).status_code == 422


async def test_no_page_is_larger_than_the_limit(root: httpx.AsyncClient, app: FastAPI) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO users (email, email_key, password_hash, scopes) "
                "SELECT n || '@example.com', n || '@example.com', '', '{}' FROM generate_series(1, 205) n"
            )
        )
    assert len((await root.get("/v1/users?limit=100000")).json()) == 200


async def test_unknown_and_impossible_ids(root: httpx.AsyncClient) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", "/sessions")):
        body = {"is_active": True} if method == "PATCH" else None
        for user_id, status in (("999999", 404), (str(2**63), 422), ("0", 422), ("ada", 404)):
            answer = await root.request(method, f"/v1/users/{user_id}{path}", json=body)
            assert answer.status_code == status, (method, user_id, answer.text)
    assert (await root.get("/v1/users/token")).status_code == 405


@pytest.mark.parametrize(
    "body",
    [
        {"is_active": None},
        {"is_active": "no"},
        {"scopes": None},
        {"scopes": "items:write"},
        {"scopes": ["items:fly"]},
        {"scopes": ["items:write"] * 51},
        {"email": "eve@example.com"},
        {"version": 7},
        [],
    ],
    ids=str,
)
async def test_bad_changes_are_refused(root: httpx.AsyncClient, body: object) -> None:
    answer = await root.patch("/v1/users/1", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


async def test_deactivation_logs_out_everywhere_and_can_be_undone(
    client: httpx.AsyncClient, root: httpx.AsyncClient, app: FastAPI
) -> None:
    user_id = await register(client, "ada@example.com")
    ada = await log_in(client, "ada@example.com")

    answer = await root.patch(f"/v1/users/{user_id}", json={"is_active": False})
    assert (answer.status_code, answer.json()["is_active"]) == (200, False)

    async def refused() -> bool:
        return (await client.get("/v1/users/me", headers=ada)).status_code == 401

    await eventually(refused)
    form = {"username": "ada@example.com", "password": PASSWORD}
    assert (await client.post("/v1/users/token", data=form)).json()["code"] == "invalid_credentials"
    await root.patch(f"/v1/users/{user_id}", json={"is_active": True})
    assert await log_in(client, "ada@example.com")
    async with app.state.database.reading() as session:
        versions = await session.scalars(
            text("SELECT version FROM users WHERE id = :id").bindparams(id=user_id)
        )
        events = await session.scalar(
            text("SELECT count(*) FROM outbox WHERE subject = :subject").bindparams(
                subject=f"events.users.user.updated.{user_id}"
            )
        )
    assert (versions.one(), events) == (3, 2)


async def test_granted_scopes_are_in_the_next_token_and_taken_ones_in_none(
    client: httpx.AsyncClient, root: httpx.AsyncClient
) -> None:
    user_id = await register(client, "ada@example.com")
    granted = await root.patch(
        f"/v1/users/{user_id}", json={"scopes": ["users:admin", "items:write", "items:write"]}
    )
    assert granted.json()["scopes"] == ["items:write", "users:admin"]
    ada = await log_in(client, "ada@example.com")
    assert (await client.get("/v1/users", headers=ada)).status_code == 200

    await root.patch(f"/v1/users/{user_id}", json={"scopes": ["items:write"]})

    async def refused() -> bool:
        return (await client.get("/v1/users", headers=ada)).status_code == 401

    await eventually(refused)
    again = await log_in(client, "ada@example.com")
    assert (await client.get("/v1/users", headers=again)).status_code == 403


async def test_nothing_changed_is_no_event(
    client: httpx.AsyncClient, root: httpx.AsyncClient, app: FastAPI
) -> None:
    user_id = await register(client, "ada@example.com")
    for body in ({}, {"is_active": True}):
        assert (await root.patch(f"/v1/users/{user_id}", json=body)).status_code == 200
    async with app.state.database.reading() as session:
        assert await session.scalar(text("SELECT max(version) FROM users")) == 1


async def test_administrators_cannot_delete_themselves(
    client: httpx.AsyncClient, root: httpx.AsyncClient
) -> None:
    refused = await root.delete("/v1/users/me")
    assert (refused.status_code, refused.json()["code"]) == (409, "cannot_demote_self")

    user_id = await register(client, "ada@example.com")
    await root.patch(f"/v1/users/{user_id}", json={"scopes": ["users:admin"]})
    ada = await log_in(client, "ada@example.com")
    me = (await root.get("/v1/users/me")).json()
    assert (await client.patch(f"/v1/users/{me['id']}", json={"scopes": []}, headers=ada)).status_code == 200
    private = await log_in(client, ROOT)
    assert (await client.delete("/v1/users/me", headers=private)).status_code == 204


async def test_who_takes_the_address_of_the_first_admin_gets_no_more_than_an_account(
    settings: UsersSettings, client: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    await register(client, "boss@example.com")
    again = create_app(settings.model_copy(update={"admin_email": "boss@example.com"}))
    async with serving(again):
        pass
    assert "admin.not_made" in "".join(capfd.readouterr())
    boss = await log_in(client, "boss@example.com")
    assert (await client.get("/v1/users", headers=boss)).status_code == 403


def test_the_first_admin_has_a_password_like_everybody() -> None:
    key = SecretStr(base64.b64encode(bytes(32)).decode())
    for password in ("short", "x" * 129):
        with pytest.raises(ValidationError) as refusal:
            UsersSettings(
                database_url=SecretStr("x"), key_encryption_key=key, admin_password=SecretStr(password)
            )
        (told,) = UsersSettings.explain(refusal.value)
        assert told.startswith("users: USERS_ADMIN_PASSWORD: ")
        assert password not in told


@pytest.mark.parametrize("body", [{"is_active": False}, {"scopes": ["items:write"]}, {"scopes": []}])
async def test_administrators_cannot_remove_themselves(root: httpx.AsyncClient, body: object) -> None:
    me = (await root.get("/v1/users/me")).json()
    answer = await root.patch(f"/v1/users/{me['id']}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (409, "cannot_demote_self")
    fewer = await root.patch(f"/v1/users/{me['id']}", json={"scopes": ["users:admin"]})
    assert fewer.status_code == 200


async def test_a_token_outlives_no_administration(
    client: httpx.AsyncClient, root: httpx.AsyncClient, app: FastAPI
) -> None:
    user_id = await register(client, "ada@example.com")
    async with app.state.database.transaction() as session:
        await session.execute(update(User).where(User.email == ROOT).values(scopes=["items:write"]))

    answer = await root.patch(f"/v1/users/{user_id}", json={"is_active": False})
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


async def test_sessions_of_others_can_be_ended(client: httpx.AsyncClient, root: httpx.AsyncClient) -> None:
    user_id = await register(client, "ada@example.com")
    ada = await log_in(client, "ada@example.com")

    assert (await root.delete(f"/v1/users/{user_id}/sessions")).status_code == 204

    async def refused() -> bool:
        return (await client.get("/v1/users/me", headers=ada)).status_code == 401

    await eventually(refused)
    assert await log_in(client, "ada@example.com")
