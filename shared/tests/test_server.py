"""Processes: a service as it is started in production, told to stop, crowded out, or asked for help."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import orjson
import pytest

from shared.testing import eventually, free_port
from stack.testing import ANY_KEY

pytestmark = pytest.mark.integration

Environment = dict[str, str]


@pytest.fixture
def environment(database_url: str) -> Environment:
    """What `python -m items serve` needs; NATS is nowhere, which no service minds."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("ITEMS_", "NATS_"))},
        "ITEMS_DATABASE_URL": database_url,
        "ITEMS_CURSOR_KEY": ANY_KEY,
        "ITEMS_PORT": str(free_port()),
        "NATS_URL": "nats://127.0.0.1:1",
        "LOG_FORMAT": "json",
    }


async def _start(*arguments: str, env: Environment) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "items", *arguments,
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, limit=2**22,
    )  # fmt: skip


async def _run(*arguments: str, env: Environment) -> tuple[int | None, str, str]:
    process = await _start(*arguments, env=env)
    async with asyncio.timeout(30):
        output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


@asynccontextmanager
async def _serving(env: Environment) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    process = await _start("serve", env=env)
    reading = asyncio.create_task(process.communicate())
    process.output = reading  # type: ignore[attr-defined]  # what it wrote, once it has ended
    url = f"http://127.0.0.1:{env['ITEMS_PORT']}"
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client:  # noqa: S501
            await eventually(lambda: _answers(client, process))
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await reading


async def _answers(client: httpx.AsyncClient, process: asyncio.subprocess.Process) -> bool:
    if process.returncode is not None:
        pytest.fail("the service ended before it answered")
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_stop_signal_drains_and_ends_well(environment: Environment, number: signal.Signals) -> None:
    async with _serving(environment) as (process, client):
        assert (await client.get("/v1/items")).json() == []
        process.send_signal(number)
        async with asyncio.timeout(15):
            await process.wait()

    output, errors = await process.output  # type: ignore[attr-defined]
    assert process.returncode == 0, (output, errors)
    assert errors == b""
    for line in output.splitlines():
        assert orjson.loads(line)["service"] == "items"


async def test_request_in_flight_is_finished(environment: Environment) -> None:
    async with _serving(environment) as (process, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(environment["ITEMS_PORT"]))
        body = b'{"name": "late", "price": 1}'
        writer.write(
            b"POST /v1/items HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body[:5])
        await writer.drain()
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: _refuses(int(environment["ITEMS_PORT"])))
        writer.write(body[5:])
        answer = await reader.read()
        writer.close()
        async with asyncio.timeout(15):
            await process.wait()

    assert answer.startswith(b"HTTP/1.1 401 ")  # an answer all the same: there was no token
    assert process.returncode == 0


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_workers_share_the_port_and_stop_together(environment: Environment) -> None:
    async with _serving({**environment, "ITEMS_WORKERS": "2"}) as (process, client):
        for _ in range(5):
            assert (await client.get("/v1/items")).status_code == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            await process.wait()

    assert process.returncode == 0
    assert _refuses(int(environment["ITEMS_PORT"]))


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_busy_port_is_said_in_one_sentence(environment: Environment, workers: str) -> None:
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", 0))
        occupant.listen()
        port = occupant.getsockname()[1]
        code, output, errors = await _run(
            "serve", env={**environment, "ITEMS_PORT": str(port), "ITEMS_WORKERS": workers}
        )

    assert code not in (0, None)
    assert errors == f"items: cannot listen on 127.0.0.1 port {port}: Address already in use.\n"
    assert "Traceback" not in output


async def test_missing_setting_is_said_in_one_sentence(environment: Environment) -> None:
    del environment["ITEMS_DATABASE_URL"]

    code, output, errors = await _run("serve", env=environment)

    assert (code, output) == (2, "")
    assert errors == "items: ITEMS_DATABASE_URL is not set (or give a file by ITEMS_DATABASE_URL_FILE).\n"


@pytest.mark.parametrize("arguments", [("--help",), ("serve", "--help"), ("migrate", "--help")])
async def test_help_needs_no_settings(arguments: tuple[str, ...]) -> None:
    code, output, errors = await _run(*arguments, env={"PATH": os.environ["PATH"]})

    assert (code, errors) == (0, "")
    assert "python -m items" in output


@pytest.mark.parametrize("arguments", [(), ("dance",)])
async def test_unknown_command_is_refused(arguments: tuple[str, ...]) -> None:
    code, _, errors = await _run(*arguments, env={"PATH": os.environ["PATH"]})

    assert code == 2
    assert "usage: python -m items" in errors


def _ended_or_listens(process: asyncio.subprocess.Process, port: int) -> bool:
    return process.returncode is not None or not _refuses(port)


async def test_wrong_encryption_key_stops_users_with_a_sentence(
    make_database: Callable[..., str], environment: Environment
) -> None:
    from users.settings import UsersSettings

    env = {
        **environment,
        "USERS_DATABASE_URL": make_database(UsersSettings),
        "USERS_PORT": str(free_port()),
    }
    codes: list[Any] = []
    for key in ("A" * 43 + "=", "B" * 42 + "A="):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "users", "serve", env={**env, "USERS_KEY_ENCRYPTION_KEY": key},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        reading = asyncio.create_task(process.communicate())
        await eventually(partial(_ended_or_listens, process, int(env["USERS_PORT"])))
        if process.returncode is None:
            process.terminate()
        output, errors = await reading
        codes.append((process.returncode, output.decode(), errors.decode()))

    assert codes[0][0] == 0
    code, output_text, error_text = codes[1]
    assert code not in (0, None)
    sentence = "USERS_KEY_ENCRYPTION_KEY is not the one that the stored signing keys were encrypted with."
    assert sentence in output_text
    assert "Traceback" not in error_text + output_text
