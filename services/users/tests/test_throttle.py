"""Wrong passwords make the next try wait; the owner gets in all the same."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from shared.testing import serving
from users import housekeeping, throttle
from users.app import create_app
from users.clients import Client
from users.models import LoginFailures, LoginSession
from users.passwords import Passwords
from users.settings import UsersSettings

EMAIL = "ada@example.com"
PASSWORD = "correct horse battery"
WRONG = "wrong but long enough"
HOME, CAFE = "192.0.2.1", "198.51.100.7"

integration = pytest.mark.integration


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(
        update={"throttle_pair_failures": 2, "throttle_account_failures": 4, "throttle_address_failures": 6}
    )


async def log_in(
    client: httpx.AsyncClient, password: str = PASSWORD, *, email: str = EMAIL, address: str = HOME
) -> httpx.Response:
    return await client.post(
        "/v1/users/token",
        data={"username": email, "password": password},
        headers={"X-Forwarded-For": address},
    )


async def register(client: httpx.AsyncClient, email: str = EMAIL) -> None:
    answer = await client.post("/v1/users", json={"email": email, "password": PASSWORD})
    assert answer.status_code == 201


async def age(app: FastAPI, seconds: int) -> None:
    """Make all failures older, instead of waiting."""
    async with app.state.database.transaction() as session:
        await session.execute(
            update(LoginFailures).values(last_at=LoginFailures.last_at - timedelta(seconds=seconds))
        )


@given(failures=st.integers(0, 10**9), free=st.integers(1, 1000), limit=st.floats(1, 86_400, allow_nan=False))
def test_waits_grow_and_stay_below_the_limit(failures: int, free: int, limit: float) -> None:
    wait = throttle.delay(failures, free=free, limit=limit)
    assert 0 <= wait <= limit
    assert wait <= throttle.delay(failures + 1, free=free, limit=limit)
    assert (wait == 0) is (failures < free)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("nonsense", "unknown"),
        (None, "unknown"),
    ],
)
def test_ipv6_lines_are_counted_whole(address: str | None, network: str) -> None:
    assert Client(address=address).network == network


@integration
async def test_wrong_passwords_make_the_next_try_wait_longer_and_longer(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await register(client)
    for _ in range(2):
        assert (await log_in(client, WRONG)).status_code == 401

    refused = await log_in(client)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_attempts")
    assert refused.json()["error"] == "temporarily_unavailable"
    assert int(refused.headers["retry-after"]) == 1

    await age(app, 2)
    assert (await log_in(client, WRONG)).status_code == 401
    assert int((await log_in(client, WRONG)).headers["retry-after"]) == 2


@integration
async def test_the_owner_gets_in_after_the_wait_and_starts_anew(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await register(client)
    for _ in range(2):
        await log_in(client, WRONG)
    await age(app, 2)

    assert (await log_in(client)).status_code == 200
    assert (await log_in(client, WRONG)).status_code == 401
    assert (await log_in(client)).status_code == 200


@integration
async def test_tries_that_wait_cost_no_hash_and_count_for_nothing(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(client)
    for _ in range(2):
        await log_in(client, WRONG)
    passwords: Passwords = app.state.passwords
    monkeypatch.setattr(passwords._hasher, "verify_and_update", lambda *_: pytest.fail("it was hashed"))

    for _ in range(3):
        assert (await log_in(client, WRONG)).headers["retry-after"] == "1"


@integration
async def test_of_many_who_come_when_a_wait_is_over_one_gets_a_try(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await register(client)
    for _ in range(2):
        await log_in(client, WRONG)
    await age(app, 2)

    answers = await asyncio.gather(*(log_in(client, WRONG) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [401] + [429] * 7
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)


@integration
async def test_an_owner_whose_line_has_many_addresses_is_familiar(client: httpx.AsyncClient) -> None:
    await register(client)
    assert (await log_in(client, address="2001:db8::1")).status_code == 200
    for number in range(4):
        await log_in(client, WRONG, address=f"203.0.113.{number}")

    assert (await log_in(client, address="2001:db8:0:1::1")).status_code == 429
    assert (await log_in(client, address="2001:db8::2")).status_code == 200


@integration
async def test_what_is_no_address_is_not_counted_as_one(client: httpx.AsyncClient, app: FastAPI) -> None:
    await register(client)
    for forged in ("nonsense", "x" * 5000, "192.0.2.1, nonsense", ""):
        assert (await log_in(client, WRONG, address=forged)).status_code in (401, 429)
    assert (await log_in(client, address=f"{HOME}, {CAFE}")).status_code == 200

    async with app.state.database.reading() as session:
        counted = set(await session.scalars(select(LoginFailures.address)))
        (login,) = (await session.scalars(select(LoginSession))).all()
    assert counted <= {"", "127.0.0.1"}
    assert login.address == CAFE, "the last one, which the gateway wrote"


@integration
async def test_unknown_accounts_wait_like_known_ones(client: httpx.AsyncClient) -> None:
    await register(client)

    async def answers(email: str, address: str) -> list[tuple[int, Any, Any]]:
        found = [await log_in(client, WRONG, email=email, address=address) for _ in range(4)]
        return [(a.status_code, {**a.json(), "request_id": ""}, a.headers.get("retry-after")) for a in found]

    assert await answers(EMAIL, HOME) == await answers("nobody@example.com", CAFE)


@integration
async def test_guesses_from_elsewhere_never_lock_the_owner_out(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await register(client)
    assert (await log_in(client, address=HOME)).status_code == 200
    for number in range(4):
        await log_in(client, WRONG, address=f"203.0.113.{number}")

    assert (await log_in(client, address=CAFE)).status_code == 429, "a stranger waits, even with the password"
    assert (await log_in(client, address=HOME)).status_code == 200, "where the owner was before, nobody waits"
    await age(app, 301)
    assert (await log_in(client, address=CAFE)).status_code == 200


@integration
async def test_one_password_tried_on_many_accounts_makes_the_address_wait(client: httpx.AsyncClient) -> None:
    await register(client)
    await register(client, "eve@example.com")
    for number in range(6):
        assert (await log_in(client, WRONG, email=f"user{number}@example.com")).status_code == 401

    assert (await log_in(client, email="eve@example.com")).status_code == 429
    assert (await log_in(client, email="eve@example.com", address=CAFE)).status_code == 200
    assert (await log_in(client, WRONG)).status_code == 429, "the own login of an attacker forgives nothing"


@integration
async def test_parallel_failures_are_all_counted_and_replicas_agree(
    client: httpx.AsyncClient, app: FastAPI, settings: UsersSettings
) -> None:
    await register(client)
    other = create_app(settings)
    async with serving(other) as url, httpx.AsyncClient(base_url=url, trust_env=False) as replica:
        answers = await asyncio.gather(
            *(log_in(one, WRONG) for one in (client, replica) for _ in range(4)), return_exceptions=False
        )
        failed = [answer.status_code for answer in answers].count(401)
        async with app.state.database.reading() as session:
            counted = await session.scalar(select(func.max(LoginFailures.failures)))
        assert counted == failed >= 2
        assert (await log_in(replica)).status_code == (await log_in(client)).status_code == 429


@integration
async def test_a_stolen_token_is_no_way_to_guess_the_password(client: httpx.AsyncClient) -> None:
    await register(client)
    token = (await log_in(client)).json()["access_token"]

    async def change(current: str) -> httpx.Response:
        return await client.post(
            "/v1/users/me/password",
            json={"current_password": current, "new_password": "a brand new password"},
            headers={"Authorization": f"Bearer {token}", "X-Forwarded-For": HOME},
        )

    assert [(await change(WRONG)).status_code for _ in range(3)] == [401, 401, 429]
    assert (await change(PASSWORD)).status_code == 429


@integration
async def test_names_that_were_tried_are_not_readable_and_old_counts_go(
    client: httpx.AsyncClient, app: FastAPI, settings: UsersSettings
) -> None:
    await log_in(client, WRONG, email="my password by mistake")
    async with app.state.database.reading() as session:
        rows = (await session.scalars(select(LoginFailures))).all()
    assert len(rows) == 3
    assert all(b"password" not in row.account for row in rows)

    await age(app, settings.throttle_window + 1)
    await housekeeping.make_round(app.state.database, settings)
    async with app.state.database.reading() as session:
        assert (await session.scalars(select(LoginFailures))).all() == []


@integration
async def test_a_reset_forgives_all_of_the_account(
    client: httpx.AsyncClient, app: FastAPI, settings: UsersSettings
) -> None:
    await register(client)
    for number in range(4):
        await log_in(client, WRONG, address=f"203.0.113.{number}")
    async with app.state.database.transaction() as session:
        await throttle.forgive(session, settings, EMAIL.upper())
    assert (await log_in(client, address=CAFE)).status_code == 200
