"""The notifications service, running on a real database and a real NATS server."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from notifications.app import create_app
from notifications.protocol import SocketProtocol
from notifications.settings import NotificationsSettings
from shared.broker import Broker
from shared.events import Event, encode
from shared.settings import Settings
from shared.streams import EVENTS, ensure
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


class Publisher:
    """Publishes events as the other services would."""

    def __init__(self, nats_server: Any) -> None:
        self._nats_server = nats_server
        self._brokers: dict[str, Broker] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for broker in self._brokers.values():
            await broker.close()

    async def _broker(self, user: str) -> Broker:
        if user not in self._brokers:
            broker = self._brokers[user] = Broker(_AnySettings(port=1, **self._nats_server.settings(user)))
            broker.connect()
            await broker.connected.wait()
            await ensure(broker.js, EVENTS)
        return self._brokers[user]

    async def publish_raw(self, subject: str, payload: bytes) -> int:
        """Publish what may be no event at all."""
        broker = await self._broker(subject.split(".")[1])
        return (await broker.js.publish(subject, payload)).seq

    async def publish(self, event: Event, *, event_id: str | None = None) -> int:
        """Publish an event; returns its sequence in the stream."""
        outgoing = encode(event, event_id=event_id)
        broker = await self._broker(event.type.split(".")[0])
        return (await broker.js.publish(outgoing.subject, outgoing.payload)).seq


@asynccontextmanager
async def operator(nats_server: Any) -> AsyncIterator[Broker]:
    """Connect as who runs the system, who may do to the streams what no service may."""
    async with Broker(_AnySettings(port=1, **nats_server.settings("operator"))) as broker:
        await broker.connected.wait()
        yield broker


@pytest.fixture
async def publisher(nats_server: Any) -> AsyncIterator[Publisher]:
    async with Publisher(nats_server) as publisher:
        yield publisher
