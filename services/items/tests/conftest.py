"""The items service, running on a real database and with tokens of a real issuer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import orjson
import pytest
import structlog
from fastapi import FastAPI
from pydantic import AnyHttpUrl, SecretStr
from sqlalchemy import select

from items.app import create_app
from items.settings import ItemsSettings
from shared.outbox import OutboxRow
from shared.testing import TokenIssuer, serving
from stack.testing import ANY_KEY

Events = Callable[[], Awaitable[list[dict[str, Any]]]]


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """Spare the tests the pictures that structlog draws of tracebacks by default: each takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, renderer]
    )


@pytest.fixture
def settings(make_database: Callable[..., str], token_issuer: TokenIssuer) -> ItemsSettings:
    """Settings under which NATS is nowhere: items are served all the same."""
    return ItemsSettings(
        database_url=SecretStr(make_database(ItemsSettings)),
        nats_url="nats://127.0.0.1:1",
        token_issuer=token_issuer.issuer,
        jwks_url=AnyHttpUrl(token_issuer.jwks_url),
        cursor_key=SecretStr(ANY_KEY),
    )


@pytest.fixture
def app(settings: ItemsSettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client,  # noqa: S501  # plain HTTP
    ):
        yield client


@pytest.fixture
def events(app: FastAPI) -> Events:
    """Return the events in the outbox, in order."""

    async def read() -> list[dict[str, Any]]:
        async with app.state.database.reading() as session:
            rows = await session.scalars(select(OutboxRow.payload).order_by(OutboxRow.id))
            return [orjson.loads(row) for row in rows]

    return read
