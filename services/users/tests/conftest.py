"""The users service, running on a real database and a real NATS server."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI
from pydantic import SecretStr

from shared.testing import serving
from users.app import create_app
from users.settings import UsersSettings

ENCRYPTION_KEY = base64.b64encode(bytes(32)).decode()


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """Spare the tests the pictures that structlog draws of tracebacks by default: each takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, renderer]
    )


@pytest.fixture
def settings(make_database: Callable[..., str], nats_server: Any) -> UsersSettings:
    return UsersSettings(
        database_url=SecretStr(make_database(UsersSettings)),
        key_encryption_key=SecretStr(ENCRYPTION_KEY),
        argon2_memory_kib=64,
        argon2_iterations=1,
        **nats_server.settings("users"),
    )


@pytest.fixture
def app(settings: UsersSettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        yield client
