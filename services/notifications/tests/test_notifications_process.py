"""The service as a process: a drain that sockets can act upon, and logs that tell nothing of a mail."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import connect

from notifications.settings import NotificationsSettings
from shared.testing import TokenIssuer, eventually, free_port

pytestmark = pytest.mark.integration

Process = asyncio.subprocess.Process


@pytest.fixture
def environment(
    settings: NotificationsSettings, nats_server: Any, token_issuer: TokenIssuer, tmp_path: Path
) -> dict[str, str]:
    return {
        **os.environ,
        **nats_server.environment("notifications"),
        "NOTIFICATIONS_DATABASE_URL": settings.database_url.get_secret_value(),
        "NOTIFICATIONS_PORT": str(free_port()),
        "NOTIFICATIONS_MAIL_DIR": str(tmp_path / "mail"),
        "TOKEN_ISSUER": token_issuer.issuer,
        "JWKS_URL": token_issuer.jwks_url,
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "debug",
    }


@pytest.fixture
async def process(environment: dict[str, str]) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "notifications", "serve",
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, limit=2**22,
    )  # fmt: skip
    yield process
    if process.returncode is None:
        process.kill()
        await process.communicate()


@pytest.fixture
async def client(environment: dict[str, str], process: Process) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{environment['NOTIFICATIONS_PORT']}"

    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await eventually(lambda: _ready(client, process))
        yield client


async def _ready(client: httpx.AsyncClient, process: Process) -> bool:
    if process.returncode is not None:
        pytest.fail("the service ended before it answered")
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def _ended(process: Process) -> str:
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    return output.decode()


async def test_sigterm_closes_sockets_with_1012_and_ends_well(
    process: Process, client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    url = str(client.base_url.copy_with(scheme="ws", path="/v1/ws"))
    async with (
        connect(url, additional_headers=token_issuer.authorization(1), proxy=None) as subscribed,
        connect(url, proxy=None) as unauthenticated,
        connect(url + "/echo", proxy=None) as echo,
    ):
        await subscribed.recv()
        await subscribed.send(json.dumps({"type": "subscribe", "topic": "items"}))
        assert "subscribed" in str(await subscribed.recv())

        process.send_signal(signal.SIGTERM)

        async with asyncio.timeout(15):
            await asyncio.gather(*(socket.wait_closed() for socket in (subscribed, unauthenticated, echo)))
        assert {socket.close_code for socket in (subscribed, unauthenticated, echo)} == {1012}

    output = await _ended(process)
    assert process.returncode == 0, output
    assert "Traceback" not in output


async def test_logs_tell_neither_who_nor_what_nor_tokens(
    process: Process, client: httpx.AsyncClient, environment: dict[str, str], token_issuer: TokenIssuer
) -> None:
    headers = token_issuer.authorization(7, scope="notifications:send")
    mail = {"to": "whoever@example.com", "subject": "a secret subject", "body": "a secret body"}
    answer = await client.post("/v1/notifications/email", json=mail, headers=headers)
    delivered = Path(environment["NOTIFICATIONS_MAIL_DIR"]) / f"{answer.json()['id']}.eml"
    await eventually(delivered.is_file)
    await client.post("/v1/notifications/email", json={**mail, "subject": "secret\n"}, headers=headers)

    process.send_signal(signal.SIGTERM)
    output = await _ended(process)

    assert process.returncode == 0, output
    assert "mail.sent" in {orjson.loads(line)["event"] for line in output.splitlines()}
    for secret in ("whoever", "example.com", "secret", headers["Authorization"].split(".")[-1]):
        assert secret not in output, secret
