"""Signing keys rotate under load without one false 401; a retired key is refused."""

import asyncio
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jwt
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from shared import tokens
from shared.database import Database
from shared.errors import InvalidToken
from shared.testing import eventually, serving
from shared.tokens import Issuer, TokenVerifier
from users import key_ring
from users.app import create_app
from users.key_ring import life
from users.models import SigningKey
from users.settings import UsersSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ADMIN = {"username": "root@example.com", "password": "the admin's password"}


@pytest.mark.parametrize(
    ("signs_from", "states"),
    [
        ([0], ["signing"]),
        ([-100, 10], ["signing", "published"]),
        ([-100, -10], ["verifying", "signing"]),
        ([-3000, -1000, -10], ["retired", "verifying", "signing"]),
        ([-3000, -1000], ["retired", "signing"]),
    ],
)
def test_the_life_of_keys(signs_from: list[int], states: list[str]) -> None:
    keys = [SigningKey(kid=str(n), signs_from=NOW + timedelta(seconds=n)) for n in signs_from]

    assert [state for _, state in life(keys, now=NOW, token_ttl=900)] == states


@pytest.fixture
def settings(settings: UsersSettings, monkeypatch: pytest.MonkeyPatch) -> UsersSettings:
    monkeypatch.setattr(key_ring, "FOLLOW_INTERVAL", 0.1)
    monkeypatch.setattr(tokens, "REFRESH_INTERVAL", 0.1)
    return settings.model_copy(
        update={
            "admin_email": ADMIN["username"],
            "admin_password": SecretStr(ADMIN["password"]),
            "key_publication_lead": 2,
            "access_token_ttl": 900,
        }
    )


@pytest.fixture
async def admin(client: httpx.AsyncClient) -> httpx.AsyncClient:
    client.headers["Authorization"] = f"Bearer {await log_in(client)}"
    return client


async def log_in(client: httpx.AsyncClient) -> str:
    response = await client.post("/v1/users/token", data=ADMIN)
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def published(client: httpx.AsyncClient) -> set[str]:
    keys = (await client.get("/.well-known/jwks.json")).json()["keys"]
    return {key["kid"] for key in keys}


@pytest.mark.integration
async def test_rotation_under_load_causes_no_false_401(
    admin: httpx.AsyncClient, settings: UsersSettings
) -> None:
    verifier = TokenVerifier(
        [Issuer(settings.token_issuer, settings.token_audience, f"{admin.base_url}/.well-known/jwks.json")]
    )
    first = kid_of(await log_in(admin))
    seen: list[str] = []

    async def load() -> None:
        while first in seen[-1:] or not seen:
            token = await log_in(admin)
            await verifier.verify(token)  # raises on a false 401
            seen.append(kid_of(token))

    async with verifier:
        await eventually(lambda: verifier.ready)
        answer = await admin.post("/v1/users/keys/rotate")
        new = answer.json()
        assert (answer.status_code, new["state"]) == (202, "published")
        await asyncio.gather(*(load() for _ in range(4)))

    assert set(seen) == {first, new["kid"]}
    assert await published(admin) == {first, new["kid"]}
    states = {key["kid"]: key["state"] for key in (await admin.get("/v1/users/keys")).json()}
    assert states == {first: "verifying", new["kid"]: "signing"}


@pytest.mark.integration
async def test_rotating_twice_at_once_makes_one_key(admin: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(admin.post("/v1/users/keys/rotate") for _ in range(5)))

    assert len({answer.json()["kid"] for answer in answers}) == 1
    assert len((await admin.get("/v1/users/keys")).json()) == 2


@pytest.mark.integration
async def test_a_retired_key_leaves_the_jwks_and_its_tokens_are_refused(settings: UsersSettings) -> None:
    quick = settings.model_copy(
        update={"access_token_ttl": -5, "key_publication_lead": 0}
    )  # expired when signed
    async with serving(create_app(quick)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        old = await log_in(client)
        database = Database(quick)
        async with database.transaction() as session:
            await key_ring.rotate(session, quick)
        await database.close()

        async def retired() -> bool:
            return kid_of(old) not in await published(client)

        await eventually(retired)
        issuer = Issuer(quick.token_issuer, quick.token_audience, f"{url}/.well-known/jwks.json")
        async with TokenVerifier([issuer]) as verifier:
            await eventually(lambda: verifier.ready)
            with pytest.raises(InvalidToken, match="known key"):
                await verifier.verify(old)


@pytest.mark.integration
async def test_keys_rotate_by_schedule_and_replicas_agree(settings: UsersSettings) -> None:
    scheduled = settings.model_copy(update={"key_rotation_interval": 1, "key_publication_lead": 0})
    async with (
        serving(create_app(scheduled)) as one,
        serving(create_app(scheduled)) as two,
        httpx.AsyncClient(base_url=one, trust_env=False) as first,
        httpx.AsyncClient(base_url=two, trust_env=False) as second,
    ):
        before = await published(first)

        async def rotated() -> Any:
            return before < await published(first)

        await eventually(rotated)

        async def agree() -> bool:
            return kid_of(await log_in(first)) == kid_of(await log_in(second))

        await eventually(agree)


@pytest.mark.integration
async def test_only_admins_see_and_rotate_keys(client: httpx.AsyncClient) -> None:
    person = {"email": "ada@example.com", "password": "correct horse battery"}
    await client.post("/v1/users", json=person)
    token = (
        await client.post(
            "/v1/users/token", data={"username": person["email"], "password": person["password"]}
        )
    ).json()["access_token"]

    for method, path in (("GET", "/v1/users/keys"), ("POST", "/v1/users/keys/rotate")):
        answer = await client.request(method, path, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


@pytest.mark.integration
async def test_the_command_publishes_a_key(settings: UsersSettings, app: FastAPI) -> None:
    async with serving(app):
        command = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "users",
            "rotate-key",
            env={
                **os.environ,
                "USERS_DATABASE_URL": settings.database_url.get_secret_value(),
                "USERS_KEY_ENCRYPTION_KEY": settings.key_encryption_key.get_secret_value(),
            },
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await command.communicate()

        assert command.returncode == 0
        assert re.fullmatch(
            r"Key [\w-]{43} signs from \S+\.\n", output.decode().splitlines(keepends=True)[-1]
        )
