"""The notifications service, running on a real database and a real NATS server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from notifications.app import create_app
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared.broker import Broker
from shared.events import Event
from shared.settings import Settings
from shared.testing import TokenIssuer, serving


@pytest.fixture
def settings(
    make_database: Callable[..., str], nats_server: Any, token_issuer: TokenIssuer, tmp_path: Path
) -> NotificationsSettings:
    return NotificationsSettings(
        database_url=SecretStr(make_database(NotificationsSettings)),
        token_issuer=token_issuer.issuer,
        jwks_url=token_issuer.jwks_url,
        mail_dir=tmp_path / "mail",
        **nats_server.settings("notifications"),
    )


@pytest.fixture
def app(settings: NotificationsSettings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
async def url(app: FastAPI) -> AsyncIterator[str]:
    async with serving(app, ws=SocketProtocol) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield client


class Fact(Event):
    """An event of another service, as its contract example has it."""

    type: ClassVar[str] = ""

    id: int
    version: int = 1

    def aggregate_id(self) -> int:
        return self.id

    def aggregate_version(self) -> int:
        return self.version


class UserRegistered(Fact):
    type: ClassVar[str] = "users.user.registered.v1"


class UserDeleted(Fact):
    type: ClassVar[str] = "users.user.deleted.v1"


class ItemCreated(Fact):
    type: ClassVar[str] = "items.item.created.v1"

    name: str = "Brass compass"
    owner_id: int | None = None  # else the service would add a notification to the stream
    actor_id: int = 1


class ItemUpdated(ItemCreated):
    type: ClassVar[str] = "items.item.updated.v1"


class ItemDeleted(ItemCreated):
    type: ClassVar[str] = "items.item.deleted.v1"


class _AnySettings(Settings):
    service: ClassVar[str] = "publisher"


@asynccontextmanager
async def operator(nats_server: Any) -> AsyncIterator[Broker]:
    """Connect as who runs the system, who may do to the streams what no service may."""
    async with Broker(_AnySettings(port=1, **nats_server.settings("operator"))) as broker:
        await broker.connected.wait()
        yield broker
