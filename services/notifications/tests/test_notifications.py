"""Events become stored notifications, which their receiver alone may list and read."""

from typing import Any

import httpx
import pytest

from shared.ids import new_id
from shared.testing import TokenIssuer, eventually

from .conftest import ItemCreated, ItemDeleted, ItemUpdated, Publisher, UserRegistered

pytestmark = pytest.mark.integration

READ = "notifications:read"


async def listed(
    client: httpx.AsyncClient, issuer: TokenIssuer, user_id: int, **query: str | int
) -> list[dict[str, Any]]:
    response = await client.get(
        "/v1/notifications", params=query, headers=issuer.authorization(user_id, scope=READ)
    )
    assert response.status_code == 200, response.text
    return list(response.json())


async def test_a_new_user_is_welcomed_once_however_often_the_event_comes(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    event_id = new_id()
    for _ in range(3):
        await publisher.publish(UserRegistered(id=7), event_id=event_id)
    await publisher.publish(ItemCreated(id=1, owner_id=7, actor_id=7))

    found = await eventually(lambda: _at_least(2, client, token_issuer, 7))

    assert [notification["kind"] for notification in found] == ["item_created", "welcome"]


async def _at_least(
    count: int, client: httpx.AsyncClient, issuer: TokenIssuer, user_id: int
) -> list[dict[str, Any]] | None:
    found = await listed(client, issuer, user_id)
    return found if len(found) >= count else None


async def test_only_changes_by_somebody_else_are_reported_to_the_owner(
    client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    await publisher.publish(ItemUpdated(id=1, version=2, owner_id=7, actor_id=7))
    await publisher.publish(ItemDeleted(id=1, version=3, owner_id=7, actor_id=7))
    await publisher.publish(ItemUpdated(id=2, version=2, owner_id=7, actor_id=99))
    await publisher.publish(ItemDeleted(id=2, version=3, owner_id=7, actor_id=99))

    found = await eventually(lambda: _at_least(2, client, token_issuer, 7))

    assert [notification["kind"] for notification in found] == [
        "item_removed_by_admin",
        "item_changed_by_admin",
    ]
    assert found[0]["data"] == {"item_id": 2, "name": "Brass compass"}
    assert await listed(client, token_issuer, 99) == []
