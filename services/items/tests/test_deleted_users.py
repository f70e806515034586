"""Items of a deleted account live on without an owner."""

from collections.abc import Callable
from typing import ClassVar

import httpx
import pytest
from fastapi import FastAPI
from pydantic import AnyHttpUrl, SecretStr
from sqlalchemy import select

from items import service
from items.settings import ItemsSettings
from shared.events import Event
from shared.idempotency import KeptAnswer
from shared.ids import new_id
from shared.testing import TokenIssuer, eventually
from stack.testing import ANY_KEY, NATSServer, Publisher

from .conftest import Events

pytestmark = pytest.mark.integration


class UserDeleted(Event):
    """As users publishes it; contracts/ holds both to the same example."""

    type: ClassVar[str] = "users.user.deleted.v1"

    id: int
    version: int = 2

    def aggregate_id(self) -> int:
        return self.id

    def aggregate_version(self) -> int:
        return self.version


@pytest.fixture
def settings(
    make_database: Callable[..., str], token_issuer: TokenIssuer, nats_server: NATSServer
) -> ItemsSettings:
    return ItemsSettings(
        database_url=SecretStr(make_database(ItemsSettings)),
        token_issuer=token_issuer.issuer,
        jwks_url=AnyHttpUrl(token_issuer.jwks_url),
        cursor_key=SecretStr(ANY_KEY),
        **nats_server.settings("items"),
    )


async def test_items_lose_their_owner_once_and_say_so(
    client: httpx.AsyncClient,
    app: FastAPI,
    token_issuer: TokenIssuer,
    publisher: Publisher,
    events: Events,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "DISOWN_BATCH", 2)
    for number, owner in enumerate((7, 7, 8, 7)):
        headers = {**token_issuer.authorization(owner, scope="items:write"), "Idempotency-Key": str(number)}
        await client.post("/v1/items", json={"name": "compass", "price": 1}, headers=headers)

    event_id = new_id()
    for _ in range(2):
        await publisher.publish(UserDeleted(id=7), event_id=event_id)

    async def disowned() -> bool:
        items = (await client.get("/v1/items")).json()
        return [item["owner_id"] for item in items] == [None, None, 8, None]

    await eventually(disowned)
    versions = [item["version"] for item in (await client.get("/v1/items")).json()]
    assert versions == [2, 2, 1, 2]
    updates = [event for event in await events() if event["type"] == "items.item.updated.v1"]
    assert [event["subject"] for event in updates] == ["1", "2", "4"]
    assert {(event["data"]["owner_id"], event["data"]["actor_id"]) for event in updates} == {(None, 7)}
    async with app.state.database.reading() as session:
        kept = await session.scalars(select(KeptAnswer.user_id))
        assert kept.all() == [8]
