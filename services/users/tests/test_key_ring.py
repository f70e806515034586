"""Signing keys rotate under load without one false 401; a retired key is refused."""

import asyncio
import base64
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
from sqlalchemy import text

from shared import tokens
from shared.database import Database
from shared.errors import InvalidToken
from shared.jwks import parse_jwks
from shared.testing import eventually, free_port, serving
from shared.tokens import Issuer, TokenVerifier
from users import key_ring, sessions
from users.app import create_app
from users.key_ring import MAX_PUBLISHED, life
from users.keys import KeyEncryptionMismatch
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
async def test_no_zeal_makes_more_keys_than_verifiers_take(settings: UsersSettings) -> None:
    at_once = create_app(settings.model_copy(update={"key_publication_lead": 0}))
    async with serving(at_once) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        client.headers["Authorization"] = f"Bearer {await log_in(client)}"
        for _ in range(12):
            assert (await client.post("/v1/users/keys/rotate")).status_code == 202

        async def all_are_published() -> bool:
            document = await client.get("/.well-known/jwks.json")
            return len(parse_jwks(document.content)) >= MAX_PUBLISHED

        await eventually(all_are_published)  # the ring follows the database
        database = Database(settings)
        async with database.reading() as session:
            assert len(await key_ring.all_keys(session)) == MAX_PUBLISHED
        await database.close()


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


async def command(
    settings: UsersSettings, *arguments: str, encryption_key: str | None = None
) -> tuple[int | None, str, str]:
    """Run `python -m users …`; return its exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "users",
        *arguments,
        env={
            **os.environ,
            "USERS_DATABASE_URL": settings.database_url.get_secret_value(),
            "USERS_KEY_ENCRYPTION_KEY": encryption_key or settings.key_encryption_key.get_secret_value(),
            "USERS_KEY_PUBLICATION_LEAD": str(settings.key_publication_lead),
            "USERS_BIND_HOST": "127.0.0.1",
            "USERS_PORT": str(free_port()),
            "NATS_URL": settings.nats_url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


OTHER_KEY = base64.b64encode(bytes(31) + b"x").decode()


@pytest.mark.integration
async def test_the_command_publishes_a_key(admin: httpx.AsyncClient, settings: UsersSettings) -> None:
    code, output, errors = await command(settings, "rotate-key")

    assert code == 0, errors
    assert re.fullmatch(r"Key [\w-]{43} signs from \S+\.", output.splitlines()[-1])
    assert len((await admin.get("/v1/users/keys")).json()) == 2


@pytest.mark.integration
async def test_endpoint_command_and_replicas_at_once_make_one_key(
    client: httpx.AsyncClient, settings: UsersSettings
) -> None:
    patient = settings.model_copy(update={"key_publication_lead": 60})
    async with serving(create_app(patient)) as first, serving(create_app(patient)) as url:
        admin = httpx.AsyncClient(
            base_url=first, headers={"Authorization": f"Bearer {await log_in(client)}"}, trust_env=False
        )
        replica = httpx.AsyncClient(base_url=url, headers=admin.headers, trust_env=False)
        commanded = asyncio.create_task(command(patient, "rotate-key"))
        answers = await asyncio.gather(
            *(one.post("/v1/users/keys/rotate") for one in (admin, replica) for _ in range(3))
        )
        code, output, _ = await commanded
        assert code == 0
        assert {answer.json()["kid"] for answer in answers} == {output.splitlines()[-1].split()[1]}
        assert len((await admin.get("/v1/users/keys")).json()) == 2
        await replica.aclose()
        await admin.aclose()


@pytest.mark.integration
@pytest.mark.usefixtures("client")
async def test_with_another_encryption_key_nothing_starts_and_nothing_is_spoilt(
    settings: UsersSettings, app: FastAPI
) -> None:
    for name in ("serve", "rotate-key"):
        code, output, errors = await command(settings, name, encryption_key=OTHER_KEY)
        told = output + errors
        assert code not in (0, None), name
        assert "USERS_KEY_ENCRYPTION_KEY is not the one" in told
        assert "Traceback" not in told
        assert OTHER_KEY not in told
    async with app.state.database.reading() as session:
        assert await session.scalar(text("SELECT count(*) FROM signing_keys")) == 1


@pytest.mark.integration
async def test_a_replica_goes_on_when_it_cannot_read_a_new_key(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO signing_keys (kid, algorithm, public_jwk, private_key, signs_from) "
                "VALUES ('foreign', 'ES256', '{}', '123456789012345', now())"
            )
        )
    with pytest.raises(KeyEncryptionMismatch):
        await app.state.keys.load()
    assert await log_in(client)


@pytest.mark.integration
async def test_stolen_keys_are_replaced_and_their_tokens_refused(
    admin: httpx.AsyncClient, settings: UsersSettings
) -> None:
    old = (await admin.post("/v1/users/token", data=ADMIN)).json()

    code, output, errors = await command(settings, "replace-keys")
    assert code == 0, errors
    new = output.splitlines()[-1].split()[1]

    async def replaced() -> bool:
        return await published(admin) == {new}

    await eventually(replaced)

    async def refused() -> bool:
        return (await admin.get("/v1/users/me")).status_code == 401

    await eventually(refused)
    form = {"grant_type": "refresh_token", "refresh_token": old["refresh_token"]}
    token = (await admin.post("/v1/users/token", data=form)).json()["access_token"]
    assert kid_of(token) == new
    headers = {"Authorization": f"Bearer {token}"}

    async def accepted() -> bool:
        return (await admin.get("/v1/users/me", headers=headers)).status_code == 200

    await eventually(accepted)


@pytest.mark.integration
@pytest.mark.usefixtures("client")
async def test_a_new_encryption_key_begins_with_new_keys(settings: UsersSettings) -> None:
    code, _, errors = await command(settings, "replace-keys", encryption_key=OTHER_KEY)
    assert code == 0, errors

    other = create_app(settings.model_copy(update={"key_encryption_key": SecretStr(OTHER_KEY)}))
    async with serving(other) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert await log_in(client)
    old = create_app(settings)
    with pytest.raises(KeyEncryptionMismatch):
        async with old.router.lifespan_context(old):
            pass


@pytest.mark.integration
async def test_everybody_is_logged_out_by_a_command(
    admin: httpx.AsyncClient, settings: UsersSettings, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [(await admin.post("/v1/users/token", data=ADMIN)).json() for _ in range(4)]

    code, output, errors = await command(settings, "end-sessions")

    assert (code, output.splitlines()[-1]) == (0, "5 sessions were ended."), errors

    async def refused() -> bool:
        return (await admin.get("/v1/users/me")).status_code == 401

    await eventually(refused)
    form = {"grant_type": "refresh_token", "refresh_token": tokens[0]["refresh_token"]}
    assert (await admin.post("/v1/users/token", data=form)).json()["code"] == "invalid_grant"
    assert await sessions.end_everybodys(app.state.database, settings) == 0
    monkeypatch.setattr(sessions, "ENDED_AT_ONCE", 2)
    for _ in range(5):
        await log_in(admin)
    assert await sessions.end_everybodys(app.state.database, settings) == 5


@pytest.mark.integration
@pytest.mark.parametrize("name", ["rotate-key", "replace-keys", "end-sessions"])
async def test_a_command_without_a_database_is_one_sentence(settings: UsersSettings, name: str) -> None:
    away = settings.model_copy(update={"database_url": SecretStr("postgresql://x:secret@127.0.0.1:1/x")})

    code, _, errors = await command(away, name)

    assert code == 1
    assert errors.startswith("users: the database could not be worked with: ")
    assert errors.count("\n") == 1
    assert "secret" not in errors
