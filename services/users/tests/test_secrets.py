"""No password, token or code is in any log, trace or event (SECURITY U6): the running process is asked, not the code."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.testing import eventually, free_port, serving
from stack.testing import NATSServer
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

EMAIL, PASSWORD, NEW_PASSWORD, WRONG = (
    "ada.lovelace@example.com",
    "correct horse battery",
    "a brand new password",
    "wrong but long enough",
)


@asynccontextmanager
async def receiver(bodies: list[bytes]) -> AsyncIterator[str]:
    """Take the traces of a process."""

    async def traces(request: Request) -> Response:
        bodies.append(await request.body())
        return Response(b"", media_type="application/x-protobuf")

    async with serving(Starlette(routes=[Route("/v1/traces", traces, methods=["POST"])])) as url:
        yield url


async def live_a_life(client: httpx.AsyncClient) -> list[str]:
    """Do everything that has to do with secrets; return them."""
    await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD})
    await client.post("/v1/users", json={"email": EMAIL, "password": PASSWORD, "unknown": WRONG})
    form = {"username": EMAIL, "password": PASSWORD}
    await client.post("/v1/users/token", data={**form, "password": WRONG})
    tokens: dict[str, Any] = (await client.post("/v1/users/token", data=form)).json()
    refresh = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    refreshed = (await client.post("/v1/users/token", data=refresh)).json()
    await client.post("/v1/users/token", data={**refresh, "refresh_token": "é" * 5000})
    headers = {"Authorization": f"Bearer {refreshed['access_token']}"}
    await client.get("/v1/users/me", headers={"Authorization": f"Bearer {tokens['access_token']}x"})
    await client.post("/v1/users/password-reset", json={"email": EMAIL})
    guess = "a-code-that-was-guessed"
    await client.post("/v1/users/password-reset/confirm", json={"code": guess, "new_password": NEW_PASSWORD})
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    assert (await client.post("/v1/users/me/password", json=change, headers=headers)).status_code == 204
    await client.post("/v1/users/token/revoke", data={"token": refreshed["refresh_token"]})
    found = [pair[name] for pair in (tokens, refreshed) for name in ("access_token", "refresh_token")]
    return [*found, EMAIL, PASSWORD, NEW_PASSWORD, WRONG, guess]


async def test_no_secret_is_in_a_log_a_trace_or_an_event(
    settings: UsersSettings, nats_server: NATSServer
) -> None:
    port, traces = free_port(), list[bytes]()
    async with receiver(traces) as endpoint:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "users",
            "serve",
            env={
                **os.environ,
                **nats_server.environment("users"),
                "USERS_PORT": str(port),
                "USERS_DATABASE_URL": settings.database_url.get_secret_value(),
                "USERS_KEY_ENCRYPTION_KEY": settings.key_encryption_key.get_secret_value(),
                "LOG_LEVEL": "debug",
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        reading = asyncio.create_task(process.stdout.read())
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=20) as client:

            async def is_ready() -> bool:
                assert process.returncode is None, (await reading).decode()
                try:
                    return (await client.get("/health/ready")).status_code == 200
                except httpx.HTTPError:
                    return False

            try:
                await eventually(is_ready, within=60)
                secrets = await live_a_life(client)
            finally:
                process.terminate()
                log = await reading
                await process.wait()
    with psycopg.connect(settings.database_url.get_secret_value()) as database:
        rows = database.execute("SELECT payload FROM outbox WHERE subject LIKE 'events.%'").fetchall()
        trail = database.execute("SELECT coalesce(string_agg(audit::text, ' '), '') FROM audit").fetchall()
    events = b"\n".join(row[0] for row in rows)

    told = {"log": log, "traces": b"".join(traces), "events": events, "audit": str(trail).encode()}
    assert b"/v1/users/token" in told["log"]
    assert b"POST /v1/users/token" in told["traces"]
    assert b"INSERT INTO sessions" in told["traces"]
    assert b"password_changed" in told["events"]
    for secret in secrets:
        for name, text in told.items():
            assert secret.encode() not in text, f"{secret} is in the {name}"
