"""What happens when two things happen to an account at once: the later one sees the earlier, and nobody waits for ever.

A test holds a row as one half of the race would, lets the other half run into it, and only then lets go.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.testing import eventually, serving
from users.app import create_app
from users.passwords import Passwords
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

EMAIL, ROOT = "ada@example.com", "root@example.com"
PASSWORD, NEW_PASSWORD = "correct horse battery", "a brand new password"


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(
        update={
            "code_interval": 0,
            "hashing_threads": 4,
            "admin_email": ROOT,
            "admin_password": SecretStr(PASSWORD),
        }
    )


@pytest.fixture
async def ada(client: httpx.AsyncClient) -> dict[str, Any]:
    """Ada's token response; her requests by `client` carry the access token."""
    await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD})
    tokens: dict[str, Any] = (await log_in(client)).json()
    client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
    return tokens


async def log_in(client: httpx.AsyncClient, email: str = EMAIL, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/v1/users/token", data={"username": email, "password": password})


async def refresh(client: httpx.AsyncClient, tokens: dict[str, Any]) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    return await client.post("/v1/users/token", data=form)


class Race:
    """The half that holds something, and the request that runs into it."""

    def __init__(self, app: FastAPI, session: AsyncSession) -> None:
        self._app = app
        self._session = session

    async def does(self, statement: str) -> None:
        await self._session.execute(text(statement))

    async def meets(self, request: Any) -> asyncio.Task[httpx.Response]:
        """Start the request; return once it waits for what is held."""

        async def waits() -> bool:
            if task.done():
                pytest.fail(f"it did not wait: {task.result().text}")
            async with self._app.state.database.reading() as session:
                blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
                return bool(await session.scalar(text(blocked)))

        task = asyncio.create_task(request)
        await eventually(waits)
        return task


@asynccontextmanager
async def race(app: FastAPI) -> AsyncIterator[Race]:
    """Hold what the block's statements touch until its end."""
    async with app.state.database.transaction() as session:
        yield Race(app, session)


async def count(app: FastAPI, query: str) -> int:
    async with app.state.database.reading() as session:
        return int(await session.scalar(text(query)) or 0)


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE users SET is_active = false WHERE id = 2",
        "UPDATE users SET password_hash = 'another' WHERE id = 2",
        "DELETE FROM users WHERE id = 2",
    ],
    ids=["deactivation", "password", "deletion"],
)
async def test_a_login_does_not_slip_past_what_ends_all_logins(
    client: httpx.AsyncClient, app: FastAPI, change: str
) -> None:
    async with race(app) as held:
        await held.does("DELETE FROM sessions WHERE user_id = 2")
        await held.does(change)
        login = await held.meets(log_in(client))

    answer = await login
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credentials")
    assert await count(app, "SELECT count(*) FROM sessions WHERE user_id = 2") == 0


@pytest.mark.usefixtures("ada")
async def test_a_login_gets_no_scope_that_is_just_being_taken_away(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    async with race(app) as held:
        await held.does("UPDATE users SET scopes = '{items:write}' WHERE id = 2")
        login = await held.meets(log_in(client))

    assert (await login).json()["scope"] == "items:write"


@pytest.mark.usefixtures("ada")
async def test_renewing_a_hash_does_not_bring_back_an_old_password(
    settings: UsersSettings, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stronger = create_app(settings.model_copy(update={"argon2_iterations": 2}))
    verified, release = threading.Event(), threading.Event()
    async with serving(stronger) as url, httpx.AsyncClient(base_url=url, trust_env=False) as other:
        passwords: Passwords = stronger.state.passwords
        original = passwords._hasher.verify_and_update

        def verify_and_wait(password: str, stored: str) -> Any:
            result = original(password, stored)
            verified.set()
            release.wait(20)
            return result

        monkeypatch.setattr(passwords._hasher, "verify_and_update", verify_and_wait)
        login = asyncio.create_task(log_in(other))
        await eventually(verified.is_set)
        change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
        changed = await client.post("/v1/users/me/password", json=change)
        release.set()

        assert changed.status_code == 204
        assert (await login).status_code == 401
    assert (await log_in(client)).status_code == 401
    assert (await log_in(client, password=NEW_PASSWORD)).status_code == 200


@pytest.mark.usefixtures("ada")
async def test_parallel_logins_renew_a_hash_and_all_get_in(settings: UsersSettings) -> None:
    stronger = create_app(settings.model_copy(update={"argon2_iterations": 2}))
    async with serving(stronger) as url, httpx.AsyncClient(base_url=url, trust_env=False) as other:
        answers = await asyncio.gather(*(log_in(other) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.usefixtures("ada")
async def test_of_two_who_change_the_password_at_once_one_must_know_the_new_one(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords: Passwords = app.state.passwords
    original, both = passwords._hasher.verify_and_update, threading.Barrier(2, timeout=20)

    def verify_together(password: str, stored: str) -> Any:
        both.wait()
        return original(password, stored)

    monkeypatch.setattr(passwords._hasher, "verify_and_update", verify_together)
    changes = ({"current_password": PASSWORD, "new_password": f"{NEW_PASSWORD} {n}"} for n in range(2))
    answers = await asyncio.gather(*(client.post("/v1/users/me/password", json=body) for body in changes))
    monkeypatch.undo()

    assert sorted(answer.status_code for answer in answers) == [204, 401]
    changed = "SELECT count(*) FROM outbox WHERE subject LIKE 'events.users.user.password_changed.%'"
    assert await count(app, changed) == 1
    won = [answer.status_code for answer in answers].index(204)
    assert (await log_in(client, password=f"{NEW_PASSWORD} {won}")).status_code == 200


async def test_a_refresh_and_the_deletion_of_the_account_do_not_wait_for_each_other(
    client: httpx.AsyncClient, app: FastAPI, ada: dict[str, Any]
) -> None:
    async with race(app) as held:
        await held.does("SELECT 1 FROM sessions WHERE user_id = 2 FOR UPDATE")
        refreshing = await held.meets(refresh(client, ada))
        await held.does("DELETE FROM users WHERE id = 2")

    assert (await refreshing).json()["code"] == "invalid_grant"


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    "end",
    [
        ("DELETE", "/v1/users/me/sessions", None),
        ("POST", "/v1/users/me/password", {"current_password": PASSWORD, "new_password": NEW_PASSWORD}),
        ("DELETE", "/v1/users/me", None),
    ],
    ids=["sessions", "password", "account"],
)
async def test_no_refresh_outlives_what_ends_its_session(
    client: httpx.AsyncClient, end: tuple[str, str, Any]
) -> None:
    phone = (await log_in(client)).json()
    method, path, body = end

    refreshed, *_, ended = await asyncio.gather(
        *(refresh(client, phone) for _ in range(4)), client.request(method, path, json=body)
    )

    assert ended.status_code == 204, ended.text
    assert refreshed.status_code in (200, 400)
    survivors = [phone, *([refreshed.json()] if refreshed.status_code == 200 else [])]
    for tokens in survivors:
        assert (await refresh(client, tokens)).status_code == 400

        async def refused(headers: dict[str, str]) -> bool:
            return (await client.get("/v1/users/me", headers=headers)).status_code == 401

        authorization = {"Authorization": f"Bearer {tokens['access_token']}"}
        await eventually(lambda headers=authorization: refused(headers))  # type: ignore[misc]


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PATCH", "/v1/users/me", {"full_name": "Ada"}, 404),
        ("POST", "/v1/users/me/email", {"email": "king@example.com"}, 404),
        ("DELETE", "/v1/users/me", None, 404),
    ],
)
async def test_what_comes_too_late_for_an_account_is_told_so(
    client: httpx.AsyncClient, app: FastAPI, method: str, path: str, body: Any, status: int
) -> None:
    async with race(app) as held:
        await held.does("DELETE FROM users WHERE id = 2")
        late = await held.meets(client.request(method, path, json=body))

    answer = await late
    assert (answer.status_code, answer.json()["code"]) == (status, "user_not_found")


@pytest.mark.usefixtures("ada")
async def test_a_code_and_its_successor_do_not_wait_for_each_other(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    code = "a code that was mailed"
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE mailed_codes SET digest = sha256(convert_to(:code, 'UTF8'))").bindparams(code=code)
        )
    async with race(app) as held:
        await held.does("SELECT 1 FROM users WHERE id = 2 FOR UPDATE")
        confirming = await held.meets(client.post("/v1/users/verify-email/confirm", json={"code": code}))
        await held.does("DELETE FROM mailed_codes")

    assert (await confirming).json()["code"] == "code_invalid"


@pytest.mark.usefixtures("ada")
async def test_a_code_is_used_once_however_many_try(client: httpx.AsyncClient, app: FastAPI) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE mailed_codes SET digest = sha256('code'), purpose = 'reset_password'")
        )
    body = {"code": "code", "new_password": NEW_PASSWORD}

    answers = await asyncio.gather(
        *(client.post("/v1/users/password-reset/confirm", json=body) for _ in range(8))
    )

    assert sorted(answer.status_code for answer in answers) == [204] + [400] * 7
    changed = "SELECT count(*) FROM outbox WHERE subject LIKE 'events.users.user.password_changed.%'"
    assert await count(app, changed) == 1


async def test_two_accounts_that_confirm_one_address_at_once(client: httpx.AsyncClient, app: FastAPI) -> None:
    for name in ("ada", "eve"):
        await client.post("/v1/users", json={"email": f"{name}@example.com", "password": PASSWORD})
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "UPDATE mailed_codes SET digest = sha256(convert_to(user_id::text, 'UTF8')), "
                "purpose = 'change_email', email = 'king@example.com', email_key = 'king@example.com'"
            )
        )

    answers = await asyncio.gather(
        *(client.post("/v1/users/verify-email/confirm", json={"code": code}) for code in ("2", "3"))
    )

    assert sorted(answer.status_code for answer in answers) == [204, 409]
    assert await count(app, "SELECT count(*) FROM users WHERE email_key = 'king@example.com'") == 1


async def test_of_two_administrators_who_remove_each_other_one_stays(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD})
    async with app.state.database.transaction() as session:
        await session.execute(text("UPDATE users SET scopes = '{users:admin}'"))
    headers = [
        {"Authorization": f"Bearer {(await log_in(client, email)).json()['access_token']}"}
        for email in (ROOT, EMAIL)
    ]

    answers = await asyncio.gather(
        client.patch("/v1/users/2", json={"is_active": False}, headers=headers[0]),
        client.patch("/v1/users/1", json={"scopes": []}, headers=headers[1]),
    )

    first, second = sorted(answer.status_code for answer in answers)
    assert (first, second) in ((200, 403), (200, 401))
    assert await count(app, "SELECT count(*) FROM users WHERE is_active AND 'users:admin' = ANY(scopes)") == 1
