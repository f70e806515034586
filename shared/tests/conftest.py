"""What the tests of the mechanisms share: a service without business, on a real database and a real NATS server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson
import pytest
import structlog
from pydantic import Field, SecretStr
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from items.settings import ItemsSettings
from shared import outbox
from shared.broker import Broker
from shared.database import Database
from shared.events import Event
from shared.settings import DatabaseSettings, Port
from shared.testing import serving


class ProbeSettings(DatabaseSettings):
    """Settings of a service that exists for the tests; it borrows the name and the database of items."""

    service: ClassVar[str] = "items"

    port: Port = Field(8002)


class Counted(Event):
    """An event about aggregate `of`; `number` is its version."""

    type: ClassVar[str] = "items.item.counted.v1"

    of: int
    number: int

    def aggregate_id(self) -> int:
        return self.of

    def aggregate_version(self) -> int:
        return self.number


@dataclass
class KeyServer:
    """A JWKS endpoint whose answer a test may change."""

    url: str = ""
    document: bytes = b'{"keys": []}'
    status: int = 200
    fetches: int = field(default=0)

    def publish(self, *keys: dict[str, Any]) -> None:
        """Answer with these keys from now on."""
        self.document = orjson.dumps({"keys": keys})


@pytest.fixture(scope="session", autouse=True)
def _plain_tracebacks() -> None:
    """Spare the tests the pictures that structlog draws of tracebacks by default: each takes seconds."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, renderer]
    )


@pytest.fixture
async def key_server() -> AsyncIterator[KeyServer]:
    """A JWKS endpoint on a real socket."""
    keys = KeyServer()

    async def answer(_request: Request) -> Response:
        keys.fetches += 1
        return Response(keys.document, status_code=keys.status, media_type="application/json")

    async with serving(Starlette(routes=[Route("/jwks.json", answer)])) as url:
        keys.url = f"{url}/jwks.json"
        yield keys


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    """A migrated database of this test's own."""
    return make_database(ItemsSettings)


@pytest.fixture
def probe_settings(database_url: str) -> ProbeSettings:
    """Settings of a service with a database, and no NATS server to be found."""
    return ProbeSettings(database_url=SecretStr(database_url), nats_url="nats://127.0.0.1:1")


@pytest.fixture
async def database(probe_settings: ProbeSettings) -> AsyncIterator[Database]:
    """The connection pool on the test's database, which has a table `effects` for handlers to write to."""
    database = Database(probe_settings)
    async with database.transaction() as session:
        await session.execute(
            text("CREATE TABLE effects (id bigint GENERATED ALWAYS AS IDENTITY, note text)")
        )
    yield database
    await database.close()


@pytest.fixture
def counted() -> type[Counted]:
    """The event class of the tests: `counted(of=7, number=1)`."""
    return Counted


@pytest.fixture
def write(database: Database) -> Callable[..., Awaitable[None]]:
    """Commit one event for each number: `await write(1, 2, 3, of=7)`."""

    async def commit(*numbers: int, of: int = 1) -> None:
        for number in numbers:
            async with database.transaction() as session:
                await outbox.add(session, Counted(of=of, number=number))

    return commit


@pytest.fixture
def connected(nats_server: Any) -> Callable[[str], Any]:
    """Connect to NATS as a user: `async with connected("operator") as broker`."""

    @asynccontextmanager
    async def connect(user: str) -> AsyncIterator[Broker]:
        settings = ProbeSettings(database_url=SecretStr("postgresql://unused"), **nats_server.settings(user))
        async with Broker(settings) as broker:
            await broker.connected.wait()
            yield broker

    return connect
