"""Keys rotate while people log in and use the system: no false 401 anywhere, and what is retired is refused everywhere."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from time import time
from typing import Any

import httpx
import jwt
import pytest
from pydantic import AnyHttpUrl, SecretStr

import gateway.app
import items.app
import users.app
from gateway.edge import GatewayProtocol
from gateway.settings import GatewaySettings
from items.settings import ItemsSettings
from shared import tokens
from shared.ids import new_id
from shared.testing import eventually, serving
from stack.testing import NATSServer
from users import key_ring
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

ADMIN = {"username": "root@example.com", "password": "the admin's password"}
TTL = 5
"""Seconds that access tokens live: soon nobody needs the old key any more."""


class System:
    """A gateway before two replicas of users and one of items."""

    def __init__(self, url: str, replica: str, items_url: str, users_app: Any) -> None:
        self.gateway = httpx.AsyncClient(base_url=url, trust_env=False, timeout=20)
        self.replica = httpx.AsyncClient(base_url=replica, trust_env=False, timeout=20)
        self.items = httpx.AsyncClient(base_url=items_url, trust_env=False, timeout=20)
        self.users_app = users_app

    async def log_in(self, at: httpx.AsyncClient) -> str:
        answer = await at.post("/v1/users/token", data=ADMIN)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def use(self, token: str) -> list[int]:
        """Return what the gateway, users behind it and items behind it and alone say to a token."""
        headers = {"Authorization": f"Bearer {token}"}
        item = {"name": "Compass", "price": 1}
        return [
            (await self.gateway.get("/v1/users/me", headers=headers)).status_code,
            (await self.gateway.post("/v1/items", json=item, headers=headers)).status_code,
            (await self.items.post("/v1/items", json=item, headers=headers)).status_code,
        ]


@pytest.fixture
async def system(
    make_database: Callable[..., str], nats_server: NATSServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[System]:
    # Everybody looks for keys more often, so that one rotation takes seconds instead of an hour.
    monkeypatch.setattr(key_ring, "FOLLOW_INTERVAL", 0.1)
    monkeypatch.setattr(tokens, "REFRESH_INTERVAL", 0.2)
    monkeypatch.setattr(key_ring, "LEEWAY", 0)
    secret = SecretStr(base64.b64encode(bytes(32)).decode())
    of_users = UsersSettings(
        database_url=SecretStr(make_database(UsersSettings)),
        key_encryption_key=secret,
        argon2_memory_kib=64,
        argon2_iterations=1,
        access_token_ttl=TTL,
        key_publication_lead=2,
        admin_email=ADMIN["username"],
        admin_password=SecretStr(ADMIN["password"]),
        **nats_server.settings("users"),
    )
    async with AsyncExitStack() as stack:
        first = users.app.create_app(of_users)
        urls = [
            await stack.enter_async_context(serving(app)) for app in (first, users.app.create_app(of_users))
        ]
        jwks_url = AnyHttpUrl(f"{urls[0]}/.well-known/jwks.json")
        of_items = ItemsSettings(
            database_url=SecretStr(make_database(ItemsSettings)),
            cursor_key=secret,
            jwks_url=jwks_url,
            **nats_server.settings("items"),
        )
        items_url = await stack.enter_async_context(serving(items.app.create_app(of_items)))
        of_gateway = GatewaySettings(
            users_url=AnyHttpUrl(urls[0]),
            items_url=AnyHttpUrl(items_url),
            jwks_url=jwks_url,
            limits={"default": {"quota": 100_000}},
            **nats_server.settings("gateway"),
        )
        url = await stack.enter_async_context(
            serving(gateway.app.create_app(of_gateway), http=GatewayProtocol, ws="none")
        )
        system = System(url, urls[1], items_url, first)
        for client in (system.gateway, system.replica, system.items):
            stack.push_async_callback(client.aclose)

        async def accepted() -> bool:
            return set(await system.use(await system.log_in(system.gateway))) == {200, 201}

        await eventually(accepted)
        yield system


async def test_rotation_under_load_refuses_nobody_and_then_what_is_retired(system: System) -> None:
    kid, key = system.users_app.state.keys.signing_key()
    claims = {
        "iss": "http://127.0.0.1:8000",
        "aud": "tollhouse",
        "sub": "1",
        "iat": int(time()),
        "exp": int(time()) + 600,
        "jti": new_id(),
        "sid": new_id(),
        "scope": "items:write",
    }
    # Whoever had stolen the old key could make tokens that outlive it.
    stolen = jwt.encode(claims, key, algorithm="ES256", headers={"typ": "at+jwt", "kid": kid})
    assert await system.use(stolen) == [200, 201, 201]
    seen: set[str] = set()
    answers: list[int] = []
    over = asyncio.Event()

    async def live(at: httpx.AsyncClient) -> None:
        while not over.is_set():
            token = await system.log_in(at)
            seen.add(str(jwt.get_unverified_header(token)["kid"]))
            answers.extend(await system.use(token))

    load = [asyncio.create_task(live(at)) for at in (system.gateway, system.replica, system.gateway)]
    token = await system.log_in(system.gateway)
    rotated = await system.gateway.post("/v1/users/keys/rotate", headers={"Authorization": f"Bearer {token}"})
    assert rotated.status_code == 202, rotated.text
    new = rotated.json()["kid"]

    async def retired() -> bool:
        return await system.use(stolen) == [401, 401, 401]

    await eventually(retired, within=60)
    over.set()
    await asyncio.gather(*load)

    assert seen == {kid, new}
    assert set(answers) == {200, 201}
