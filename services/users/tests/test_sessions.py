"""Refresh tokens rotate, sessions end, and what ended is refused within a second."""

import asyncio
import base64
import os
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from shared.testing import eventually, serving
from users import housekeeping
from users.app import create_app
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

PASSWORD = "correct horse battery"
EMAIL = "ada@example.com"


async def log_in(
    client: httpx.AsyncClient, *, register: bool = True, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a token response."""
    if register:
        await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD})
    response = await client.post(
        "/v1/users/token", data={"username": EMAIL, "password": PASSWORD}, headers=headers
    )
    assert response.status_code == 200, response.text
    tokens: dict[str, Any] = response.json()
    return tokens


async def refresh(client: httpx.AsyncClient, token: str, **form: str) -> httpx.Response:
    return await client.post(
        "/v1/users/token", data={"grant_type": "refresh_token", "refresh_token": token, **form}
    )


async def me(client: httpx.AsyncClient, tokens: dict[str, Any]) -> int:
    """Return the status that the access token is answered with."""
    response = await client.get("/v1/users/me", headers=bearer(tokens))
    return response.status_code


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


def session_of(tokens: dict[str, Any]) -> str:
    return str(jwt.decode(tokens["access_token"], options={"verify_signature": False})["sid"])


async def refused(client: httpx.AsyncClient, tokens: dict[str, Any]) -> None:
    """Wait until the access token is refused."""

    async def is_refused() -> bool:
        return await me(client, tokens) == 401

    await eventually(is_refused, within=5)


async def test_a_refresh_token_is_exchanged_for_its_successor_in_the_same_session(
    client: httpx.AsyncClient,
) -> None:
    first = await log_in(client)

    response = await refresh(client, first["refresh_token"])
    second = response.json()

    assert response.headers["Cache-Control"] == "no-store"
    assert second["refresh_token"] != first["refresh_token"]
    assert session_of(second) == session_of(first)
    assert await me(client, second) == 200
    assert (await refresh(client, second["refresh_token"])).status_code == 200


async def test_a_repeat_while_the_successor_is_unused_gets_the_same_successor(
    client: httpx.AsyncClient,
) -> None:
    first = await log_in(client)

    answers = [(await refresh(client, first["refresh_token"])).json() for _ in range(3)]

    assert len({answer["refresh_token"] for answer in answers}) == 1
    assert len({answer["access_token"] for answer in answers}) == 3


async def test_reuse_after_the_successor_was_used_ends_the_session(client: httpx.AsyncClient) -> None:
    first = await log_in(client)
    second = (await refresh(client, first["refresh_token"])).json()
    third = (await refresh(client, second["refresh_token"])).json()

    stolen = await refresh(client, first["refresh_token"])

    assert stolen.status_code == 400
    assert (stolen.json()["code"], stolen.json()["error"]) == ("invalid_grant", "invalid_grant")
    assert (await refresh(client, third["refresh_token"])).status_code == 400
    await refused(client, third)


async def test_reuse_after_the_grace_ends_the_session(settings: UsersSettings) -> None:
    impatient = create_app(settings.model_copy(update={"refresh_grace": 0}))
    async with serving(impatient) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        first = await log_in(client)
        second = (await refresh(client, first["refresh_token"])).json()

        assert (await refresh(client, first["refresh_token"])).status_code == 400
        assert (await refresh(client, second["refresh_token"])).status_code == 400


async def age_uses(app: FastAPI, seconds: float) -> None:
    """Let all uses of refresh tokens be longer ago, instead of waiting."""
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE refresh_tokens SET used_at = used_at - :by * interval '1 second'").bindparams(
                by=seconds
            )
        )


async def test_the_grace_is_ten_seconds_and_ends_with_the_first_use_of_the_successor(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    first = await log_in(client)
    second = (await refresh(client, first["refresh_token"])).json()
    await age_uses(app, 9)
    again = await refresh(client, first["refresh_token"])
    assert again.json()["refresh_token"] == second["refresh_token"]

    await age_uses(app, 1.01)
    assert (await refresh(client, first["refresh_token"])).status_code == 400
    assert (await refresh(client, second["refresh_token"])).status_code == 400, "the family is gone"


async def test_a_grandparent_is_no_repeat_even_within_the_grace(client: httpx.AsyncClient) -> None:
    first = await log_in(client)
    second = (await refresh(client, first["refresh_token"])).json()
    third = (await refresh(client, second["refresh_token"])).json()
    assert (await refresh(client, second["refresh_token"])).status_code == 200, "a repeat"

    assert (await refresh(client, first["refresh_token"])).status_code == 400
    for tokens in (second, third):
        assert (await refresh(client, tokens["refresh_token"])).status_code == 400


async def test_there_is_no_grace_for_a_session_that_has_ended(client: httpx.AsyncClient) -> None:
    first = await log_in(client)
    second = (await refresh(client, first["refresh_token"])).json()
    await client.post("/v1/users/token/revoke", data={"token": second["refresh_token"]})

    for tokens in (first, second):
        assert (await refresh(client, tokens["refresh_token"])).json()["code"] == "invalid_grant"


async def test_a_refresh_does_not_prolong_a_session(client: httpx.AsyncClient, app: FastAPI) -> None:
    first = await log_in(client)
    async with app.state.database.transaction() as session:
        expires_at = await session.scalar(
            text("UPDATE sessions SET expires_at = now() + interval '1 hour' RETURNING expires_at")
        )
    second = (await refresh(client, first["refresh_token"])).json()
    async with app.state.database.transaction() as session:
        assert await session.scalar(text("SELECT expires_at FROM sessions")) == expires_at
        await session.execute(text("UPDATE sessions SET expires_at = now() - interval '1 second'"))

    assert (await refresh(client, second["refresh_token"])).status_code == 400
    assert (await client.get("/v1/users/me/sessions", headers=bearer(second))).json() == []


async def test_what_ends_at_one_replica_is_refused_at_the_others(
    client: httpx.AsyncClient, settings: UsersSettings
) -> None:
    tokens = await log_in(client)
    async with (
        serving(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as replica,
    ):
        assert await me(replica, tokens) == 200
        await client.delete("/v1/users/me/sessions", headers=bearer(tokens))

        await refused(replica, tokens)
        assert (await refresh(replica, tokens["refresh_token"])).status_code == 400


async def test_sessions_say_when_they_began_and_were_last_used(client: httpx.AsyncClient) -> None:
    tokens = await log_in(client)
    (before,) = (await client.get("/v1/users/me/sessions", headers=bearer(tokens))).json()
    await refresh(client, tokens["refresh_token"])
    (after,) = (await client.get("/v1/users/me/sessions", headers=bearer(tokens))).json()

    assert before["created_at"] == after["created_at"] <= before["last_used_at"] < after["last_used_at"]


async def test_twenty_parallel_refreshes_leave_one_live_chain(client: httpx.AsyncClient) -> None:
    first = await log_in(client)

    answers = await asyncio.gather(*(refresh(client, first["refresh_token"]) for _ in range(20)))

    assert {answer.status_code for answer in answers} == {200}
    successors = {answer.json()["refresh_token"] for answer in answers}
    assert len(successors) == 1
    assert (await refresh(client, successors.pop())).status_code == 200


async def test_the_database_holds_no_refresh_token(client: httpx.AsyncClient, app: FastAPI) -> None:
    tokens = await log_in(client)
    raw = base64.urlsafe_b64decode(tokens["refresh_token"] + "=")
    async with app.state.database.reading() as session:
        stored = [bytes(row[0]) for row in await session.execute(text("SELECT digest FROM refresh_tokens"))]
        dump = (await session.execute(text("SELECT payload FROM outbox"))).scalars().all()

    assert len(stored) == 1
    assert raw not in stored
    assert all(tokens["refresh_token"].encode() not in payload for payload in dump)


@pytest.mark.parametrize(
    "token",
    ["x", "A" * 43, "é" * 43, "A" * 5000, base64.urlsafe_b64encode(os.urandom(32)).decode()],
    ids=["short", "unknown", "non-ascii", "huge", "padded"],
)
async def test_a_bad_refresh_token_is_a_client_error(client: httpx.AsyncClient, token: str) -> None:
    answer = await refresh(client, token)

    assert answer.status_code == (422 if len(token) > 4096 else 400)
    if answer.status_code == 400:
        assert answer.json()["error"] == "invalid_grant"


async def test_scopes_can_be_narrowed_and_never_widened(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD})
    narrow = (
        await client.post(
            "/v1/users/token",
            data={"username": EMAIL, "password": PASSWORD, "scope": "items:write notifications:read"},
        )
    ).json()

    narrower = (await refresh(client, narrow["refresh_token"], scope="items:write")).json()
    wider = await refresh(client, narrower["refresh_token"], scope="notifications:send")
    again = (await refresh(client, narrower["refresh_token"])).json()

    assert narrower["scope"] == "items:write"
    assert (wider.status_code, wider.json()["error"]) == (400, "invalid_scope")
    assert set(again["scope"].split()) == {"items:write", "notifications:read"}


async def test_an_expired_session_cannot_be_refreshed(settings: UsersSettings) -> None:
    short = create_app(settings.model_copy(update={"session_ttl": -1}))
    async with serving(short) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        tokens = await log_in(client)
        assert (await refresh(client, tokens["refresh_token"])).status_code == 400


@pytest.mark.parametrize("kind", ["refresh_token", "access_token"])
async def test_revoking_either_token_ends_the_session(client: httpx.AsyncClient, kind: str) -> None:
    tokens, other = await log_in(client), await log_in(client, register=False)

    answer = await client.post("/v1/users/token/revoke", data={"token": tokens[kind]})

    assert answer.status_code == 200
    await refused(client, tokens)
    assert (await refresh(client, tokens["refresh_token"])).status_code == 400
    assert await me(client, other) == 200


@pytest.mark.parametrize("hint", ["refresh_token", "access_token", "something else"])
async def test_a_wrong_hint_does_not_keep_a_token_from_being_revoked(
    client: httpx.AsyncClient, hint: str
) -> None:
    tokens = await log_in(client)
    for kind in ("refresh_token", "access_token"):
        form = {"token": tokens[kind], "token_type_hint": hint}
        assert (await client.post("/v1/users/token/revoke", data=form)).status_code == 200
    await refused(client, tokens)


async def test_revoking_what_is_no_token_is_no_error(client: httpx.AsyncClient) -> None:
    tokens = await log_in(client)
    head, _, signature = tokens["access_token"].split(".")
    forged = jwt.encode({"sid": session_of(tokens)}, key="x" * 32, algorithm="HS256").split(".")[1]
    for token in ("nonsense", "a.b.c", "A" * 43, "é\0", f"{head}.{forged}.{signature}"):
        assert (await client.post("/v1/users/token/revoke", data={"token": token})).status_code == 200
    assert await me(client, tokens) == 200
    missing = await client.post("/v1/users/token/revoke", data={"x": "y"})
    assert (missing.status_code, missing.json()["error"]) == (422, "invalid_request")


async def test_sessions_are_listed_with_device_and_address(client: httpx.AsyncClient) -> None:
    await log_in(client, headers={"User-Agent": "Phone", "X-Forwarded-For": "192.0.2.7"})
    tokens = await log_in(client, register=False, headers={"User-Agent": "Laptop" * 100})

    listed = (await client.get("/v1/users/me/sessions", headers=bearer(tokens))).json()

    assert [session["current"] for session in listed] == [True, False]
    assert (listed[1]["label"], listed[1]["address"]) == ("Phone", "192.0.2.7")
    assert len(listed[0]["label"]) == 200


async def test_one_session_is_ended_and_the_others_stay(client: httpx.AsyncClient) -> None:
    phone, laptop = await log_in(client), await log_in(client, register=False)

    path = f"/v1/users/me/sessions/{session_of(phone)}"
    assert (await client.delete(path, headers=bearer(laptop))).status_code == 204

    await refused(client, phone)
    assert await me(client, laptop) == 200
    gone = await client.delete(path, headers=bearer(laptop))
    assert (gone.status_code, gone.json()["code"]) == (404, "session_not_found")


async def test_nobody_ends_the_session_of_somebody_else(client: httpx.AsyncClient) -> None:
    ada = await log_in(client)
    await client.post("/v1/users", json={"email": "eve@example.com", "password": PASSWORD})
    eve = (
        await client.post("/v1/users/token", data={"username": "eve@example.com", "password": PASSWORD})
    ).json()

    answer = await client.delete(f"/v1/users/me/sessions/{session_of(ada)}", headers=bearer(eve))

    assert answer.status_code == 404
    assert await me(client, ada) == 200


async def test_all_sessions_end_the_current_one_included(client: httpx.AsyncClient) -> None:
    phone, laptop = await log_in(client), await log_in(client, register=False)

    assert (await client.delete("/v1/users/me/sessions", headers=bearer(laptop))).status_code == 204

    await refused(client, phone)
    await refused(client, laptop)


async def test_a_new_password_ends_all_other_sessions(client: httpx.AsyncClient) -> None:
    phone, laptop = await log_in(client), await log_in(client, register=False)
    change = {"current_password": PASSWORD, "new_password": "a much better one"}

    wrong = await client.post(
        "/v1/users/me/password", json={**change, "current_password": "wrong"}, headers=bearer(laptop)
    )
    right = await client.post("/v1/users/me/password", json=change, headers=bearer(laptop))

    assert (wrong.status_code, right.status_code) == (401, 204)
    await refused(client, phone)
    assert await me(client, laptop) == 200
    old = await client.post("/v1/users/token", data={"username": EMAIL, "password": PASSWORD})
    new = await client.post("/v1/users/token", data={"username": EMAIL, "password": "a much better one"})
    assert (old.status_code, new.status_code) == (401, 200)


async def test_a_restarted_service_still_refuses_what_was_revoked(
    settings: UsersSettings, client: httpx.AsyncClient
) -> None:
    tokens = await log_in(client)
    await client.post("/v1/users/token/revoke", data={"token": tokens["refresh_token"]})
    await refused(client, tokens)

    async with (
        serving(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as replica,
    ):
        await refused(replica, tokens)


async def test_no_list_of_sessions_is_endless(client: httpx.AsyncClient, app: FastAPI) -> None:
    tokens = await log_in(client)
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO sessions (id, user_id, expires_at) "
                "SELECT n::text, 1, now() + interval '1 day' FROM generate_series(1, 250) n"
            )
        )
    assert len((await client.get("/v1/users/me/sessions", headers=bearer(tokens))).json()) == 200


async def test_what_nobody_can_use_any_more_is_deleted(
    client: httpx.AsyncClient, app: FastAPI, settings: UsersSettings
) -> None:
    tokens = await log_in(client)
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO sessions (id, user_id, expires_at) "
                "SELECT n::text, 1, now() - n * interval '1 hour' FROM generate_series(1, 250) n"
            )
        )
        await session.execute(
            text("INSERT INTO refresh_tokens (digest, session_id) SELECT sha256(id::bytea), id FROM sessions")
        )
        await session.execute(text("UPDATE mailed_codes SET expires_at = now() - interval '1 second'"))

    await housekeeping.make_round(app.state.database, settings)

    async with app.state.database.reading() as session:
        # Those that expired within a day stay: access tokens of theirs may live and have to be revoked.
        assert await session.scalar(text("SELECT count(*) FROM sessions")) == 1 + 23
        assert await session.scalar(text("SELECT count(*) FROM refresh_tokens")) == 2 + 23
        assert await session.scalar(text("SELECT count(*) FROM mailed_codes")) == 0
    assert (await refresh(client, tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize("issuer", ["https://shop.example.com", "https://shop.example.com/"])
async def test_metadata_is_what_rfc_8414_says(settings: UsersSettings, issuer: str) -> None:
    app = create_app(settings.model_copy(update={"token_issuer": issuer}))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        metadata = (await client.get("/.well-known/oauth-authorization-server")).json()

        assert metadata["issuer"] == issuer  # exactly what is in the tokens
        endpoints = {name: value for name, value in metadata.items() if name.endswith(("_endpoint", "_uri"))}
        assert endpoints == {
            "token_endpoint": "https://shop.example.com/v1/users/token",
            "revocation_endpoint": "https://shop.example.com/v1/users/token/revoke",
            "jwks_uri": "https://shop.example.com/.well-known/jwks.json",
        }
        assert metadata["grant_types_supported"] == ["password", "refresh_token"]
        assert metadata["response_types_supported"] == []
        assert metadata["token_endpoint_auth_methods_supported"] == ["none"]
        for endpoint in endpoints.values():
            path = endpoint.removeprefix("https://shop.example.com")
            assert (await client.options(path)).status_code == 405, "it is no endpoint"
