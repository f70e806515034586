"""Passwords that nobody may have."""

import hashlib
from time import perf_counter

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import HttpUrl, SecretStr
from sqlalchemy import text

from shared.errors import StartupRefused
from shared.testing import serving
from users.app import create_app
from users.password_rules import LONGEST_COMMON, BreachList, is_common
from users.passwords import Passwords
from users.settings import UsersSettings

BREACHED = "tr0ub4dor and three"


@pytest.mark.parametrize(
    "password",
    [
        "password1234",
        "PASSWORD1234",
        "P@ssw0rd1234",
        "Password1234!",
        "qwertyuiop12",
        "a" * 12,
        "letmeinletmein",
    ],
)
def test_common_passwords_are_known_however_they_are_dressed_up(password: str) -> None:
    assert is_common(password)


@pytest.mark.parametrize(
    "password",
    [
        "correct horse battery",
        "vex dog 7umb",
        "пароль из двенадцати 🔑",
        "x" * 128,
        "\0\u0301\u200d🔑 vex dog 7umb",
    ],
)
def test_others_are_not(password: str) -> None:
    assert not is_common(password)


def test_no_password_takes_long_to_judge() -> None:
    started = perf_counter()
    is_common(("4@8({[<369!1|70$5+%2" * 7)[:128])
    is_common(("4@8({[<369!1|70$5+%2" * 7)[:LONGEST_COMMON])
    assert perf_counter() - started < 5


def _breach_list(app: FastAPI) -> FastAPI:
    """Serve the range protocol; remember what was asked."""
    app.state.asked = []
    digest = hashlib.sha1(BREACHED.encode(), usedforsecurity=False).hexdigest().upper()

    @app.get("/range/{prefix}")
    async def search(prefix: str, request: Request) -> Response:
        request.app.state.asked.append(prefix)
        padding = f"{'0' * 35}:0"
        return Response("\r\n".join([padding, f"{digest[5:]}:3"] if prefix == digest[:5] else [padding]))

    @app.get("/broken/{prefix}")
    async def fail(prefix: str) -> Response:
        return Response(prefix, status_code=500)

    @app.get("/endless/{prefix}")
    async def overdo(prefix: str) -> Response:
        return Response(prefix * 1_000_000)

    return app


async def test_breach_list_sees_five_digits_only() -> None:
    server = _breach_list(FastAPI())
    async with serving(server) as url:
        breaches = BreachList(f"{url}/range/")
        assert await breaches.has(BREACHED)
        assert not await breaches.has("correct horse battery")
        await breaches.aclose()
    assert [len(prefix) for prefix in server.state.asked] == [5, 5]


@pytest.mark.parametrize("path", ["/broken", "/endless", "/nothing"])
async def test_breach_list_that_fails_stops_nobody(path: str) -> None:
    async with serving(_breach_list(FastAPI())) as url:
        breaches = BreachList(f"{url}{path}")
        assert not await breaches.has(BREACHED)
        await breaches.aclose()


async def test_breach_list_that_is_away_stops_nobody() -> None:
    breaches = BreachList("http://127.0.0.1:1/range")
    assert not await breaches.has(BREACHED)
    await breaches.aclose()


@pytest.mark.integration
async def test_every_way_to_set_a_password_refuses_common_ones_before_hashing(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = {"email": "ada@example.com", "password": "correct horse battery"}
    await client.post("/v1/users", json=ada)
    token = await client.post("/v1/users/token", data={"username": ada["email"], "password": ada["password"]})
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE mailed_codes SET digest = sha256('x'), purpose = 'reset_password'")
        )
    passwords: Passwords = app.state.passwords
    monkeypatch.setattr(passwords._hasher, "hash", lambda _: pytest.fail("it was hashed"))

    common = "Password1234!"
    answers = [
        await client.post("/v1/users", json={"email": "b@example.com", "password": common}),
        await client.post(
            "/v1/users/me/password",
            json={"current_password": ada["password"], "new_password": common},
            headers={"Authorization": f"Bearer {token.json()['access_token']}"},
        ),
        await client.post("/v1/users/password-reset/confirm", json={"code": "x", "new_password": common}),
    ]

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "password_too_common"), answer.text
        assert common not in answer.text


@pytest.mark.integration
async def test_without_a_code_nothing_is_hashed(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/v1/users", json={"email": "ada@example.com", "password": "correct horse battery"})
    async with app.state.database.transaction() as session:
        await session.execute(text("UPDATE mailed_codes SET digest = sha256('verifies')"))
    passwords: Passwords = app.state.passwords
    monkeypatch.setattr(passwords._hasher, "hash", lambda _: pytest.fail("it was hashed"))

    for code in ("guessed", "verifies"):
        body = {"code": code, "new_password": "a brand new password"}
        answer = await client.post("/v1/users/password-reset/confirm", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "code_invalid")


@pytest.mark.integration
async def test_breached_password_is_refused_at_registration(settings: UsersSettings) -> None:
    async with serving(_breach_list(FastAPI())) as breaches:
        asking = create_app(settings.model_copy(update={"breach_range_url": HttpUrl(f"{breaches}/range")}))
        async with serving(asking) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            answer = await client.post("/v1/users", json={"email": "a@example.com", "password": BREACHED})
    assert (answer.status_code, answer.json()["code"]) == (422, "password_breached")


@pytest.mark.integration
async def test_common_password_of_the_first_admin_is_a_sentence(settings: UsersSettings) -> None:
    admin = {"admin_email": "root@example.com", "admin_password": SecretStr("password1234")}
    app = create_app(settings.model_copy(update=admin))

    with pytest.raises(StartupRefused, match="USERS_ADMIN_PASSWORD cannot be used"):
        async with app.router.lifespan_context(app):
            pass
