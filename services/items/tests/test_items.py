"""Items over HTTP: who may do what, what is accepted, and the event that every change leaves."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from items.operations import V1, V2
from items.schemas import ItemWrite, ItemWriteV2
from shared.testing import TokenIssuer

pytestmark = pytest.mark.integration

COMPASS = {"name": "Brass compass", "description": "Points north.", "price": 19.99, "in_stock": True}
OWNER, STRANGER, ADMIN = 1, 2, 3

Events = Callable[[], Awaitable[list[dict[str, Any]]]]
Headers = dict[str, str]


@pytest.fixture
def owner(token_issuer: TokenIssuer) -> Headers:
    return token_issuer.authorization(OWNER, scope="items:write")


@pytest.fixture
def stranger(token_issuer: TokenIssuer) -> Headers:
    return token_issuer.authorization(STRANGER, scope="items:write")


@pytest.fixture
def admin(token_issuer: TokenIssuer) -> Headers:
    return token_issuer.authorization(ADMIN, scope="items:admin")


async def _create(client: httpx.AsyncClient, headers: Headers, **changes: Any) -> dict[str, Any]:
    response = await client.post("/v1/items", json={**COMPASS, **changes}, headers=headers)
    assert response.status_code == 201, response.text
    item: dict[str, Any] = response.json()
    return item


def _refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


async def test_item_lives_from_creation_to_deletion(
    client: httpx.AsyncClient, owner: Headers, events: Events
) -> None:
    created = await client.post("/v1/items", json=COMPASS, headers=owner)
    assert created.status_code == 201
    item = created.json()
    assert created.headers["location"] == f"/v1/items/{item['id']}"
    assert {name: item[name] for name in COMPASS} == COMPASS
    assert (item["owner_id"], item["version"]) == (OWNER, 1)
    assert item["created_at"] == item["updated_at"]
    path = f"/v1/items/{item['id']}"
    assert (await client.get(path)).json() == item
    assert (await client.get("/v1/items")).json() == [item]

    replaced = (await client.put(path, json={"name": "Sextant", "price": 250}, headers=owner)).json()
    assert (replaced["name"], replaced["description"], replaced["price"]) == ("Sextant", None, 250)
    assert (replaced["in_stock"], replaced["version"], replaced["owner_id"]) == (True, 2, OWNER)
    assert replaced["updated_at"] > replaced["created_at"] == item["created_at"]

    patched = (await client.patch(path, json={"in_stock": False}, headers=owner)).json()
    assert patched == {**replaced, "in_stock": False, "version": 3, "updated_at": patched["updated_at"]}

    assert (await client.delete(path, headers=owner)).status_code == 204
    _refused(await client.get(path), 404, "item_not_found")
    for change in (client.patch(path, json={}, headers=owner), client.delete(path, headers=owner)):
        _refused(await change, 404, "item_not_found")

    published = await events()
    assert [(event["type"], event["sequence"]) for event in published] == [
        ("items.item.created.v1", 1),
        ("items.item.updated.v1", 2),
        ("items.item.updated.v1", 3),
        ("items.item.deleted.v1", 4),
    ]
    for event in published:
        assert event["subject"] == str(item["id"])
        assert event["data"]["version"] == event["sequence"]
        assert (event["data"]["owner_id"], event["data"]["actor_id"]) == (OWNER, OWNER)
    assert [event["data"]["price"] for event in published] == ["19.99", "250.00", "250.00", "250.00"]


async def test_only_the_owner_or_an_admin_changes_an_item(
    client: httpx.AsyncClient, owner: Headers, stranger: Headers, admin: Headers, events: Events,
    token_issuer: TokenIssuer,
) -> None:  # fmt: skip
    path = f"/v1/items/{(await _create(client, owner))['id']}"
    without_scope = token_issuer.authorization(OWNER, scope="notifications:read")

    for headers, status, code in (
        ({}, 401, "not_authenticated"),
        (TokenIssuer().authorization(OWNER, scope="items:write"), 401, "invalid_token"),
        (without_scope, 403, "insufficient_scope"),
        (stranger, 403, "not_owner"),
    ):
        _refused(await client.put(path, json=COMPASS, headers=headers), status, code)
        _refused(await client.patch(path, json={"price": 1}, headers=headers), status, code)
        _refused(await client.delete(path, headers=headers), status, code)
    assert len(await events()) == 1

    changed = await client.patch(path, json={"price": 1}, headers=admin)
    assert (changed.status_code, changed.json()["owner_id"]) == (200, OWNER)
    assert (await events())[-1]["data"]["actor_id"] == ADMIN
    assert (await client.delete(path, headers=admin)).status_code == 204


async def test_creation_takes_the_scope(client: httpx.AsyncClient, token_issuer: TokenIssuer) -> None:
    _refused(await client.post("/v1/items", json=COMPASS), 401, "not_authenticated")
    poor = token_issuer.authorization(OWNER, scope="items:read")
    _refused(await client.post("/v1/items", json=COMPASS, headers=poor), 403, "insufficient_scope")


async def test_merge_patch_clears_by_null_and_keeps_what_is_missing(
    client: httpx.AsyncClient, owner: Headers
) -> None:
    item = await _create(client, owner)
    path = f"/v1/items/{item['id']}"

    cleared = (await client.patch(path, json={"description": None}, headers=owner)).json()
    assert (cleared["description"], cleared["name"], cleared["price"]) == (None, item["name"], item["price"])

    for field in ("name", "price", "in_stock"):
        _refused(await client.patch(path, json={field: None}, headers=owner), 422, "validation_failed")
    merge_patch = {**owner, "Content-Type": "application/merge-patch+json"}
    renamed = await client.patch(path, content=b'{"name": "Sextant"}', headers=merge_patch)
    assert renamed.json()["name"] == "Sextant"


BAD_FIELDS: dict[str, Any] = {
    "name missing": {"name": ...},
    "name empty": {"name": ""},
    "name null": {"name": None},
    "name a number": {"name": 5},
    "name too long": {"name": "x" * 121},
    "name with NUL": {"name": "a\0b"},
    "name with a lone surrogate": {"name": "\ud800"},
    "description too long": {"description": "x" * 2001},
    "description with NUL": {"description": "\0"},
    "description with a lone surrogate": {"description": "\udfff"},
    "description a list": {"description": ["a"]},
    "price missing": {"price": ...},
    "price null": {"price": None},
    "price text": {"price": "19.99"},
    "price true": {"price": True},
    "price zero": {"price": 0},
    "price negative": {"price": -1},
    "price below a cent": {"price": 0.001},
    "price with three decimals": {"price": 1.005},
    "price too high": {"price": 1_000_000.01},
    "price NaN": {"price": float("nan")},
    "price infinite": {"price": float("inf")},
    "price beyond floats": {"price": 10**400},
    "in_stock text": {"in_stock": "yes"},
    "in_stock a number": {"in_stock": 1},
    "in_stock null": {"in_stock": None},
    "unknown field": {"colour": "red"},
    "id": {"id": 1},
    "owner_id": {"owner_id": STRANGER},
    "version": {"version": 7},
    "created_at": {"created_at": "2020-01-01T00:00:00Z"},
}


async def test_bad_field_is_refused_and_changes_nothing(
    client: httpx.AsyncClient, owner: Headers, events: Events
) -> None:
    item = await _create(client, owner)
    path = f"/v1/items/{item['id']}"
    headers = {**owner, "Content-Type": "application/json"}
    for name, change in BAD_FIELDS.items():
        whole = {key: value for key, value in {**COMPASS, **change}.items() if value is not ...}
        body = json.dumps(whole)
        for response in (
            await client.post("/v1/items", content=body, headers=headers),
            await client.put(path, content=body, headers=headers),
        ):
            assert (response.status_code, response.json()["code"]) == (422, "validation_failed"), name
            assert response.json()["errors"], name
        if ... not in change.values():
            response = await client.patch(path, content=json.dumps(change), headers=headers)
            assert response.status_code == 422, name

    assert (await client.get("/v1/items")).json() == [item]
    assert len(await events()) == 1


async def test_longest_texts_of_any_script_are_kept(client: httpx.AsyncClient, owner: Headers) -> None:
    item = await _create(client, owner, name="名" * 120, description="🧭" * 2000)

    assert (item["name"], item["description"]) == ("名" * 120, "🧭" * 2000)
    assert (await client.get(f"/v1/items/{item['id']}")).json() == item


async def test_id_that_cannot_be_is_refused(client: httpx.AsyncClient, owner: Headers) -> None:
    for item_id in ("0", "-1", str(2**63), str(10**30), "abc", "1.5", "1e3", "%201x", "true", "NaN"):
        path = f"/v1/items/{item_id}"
        for response in (
            await client.get(path),
            await client.put(path, json=COMPASS, headers=owner),
            await client.patch(path, json={}, headers=owner),
            await client.delete(path, headers=owner),
        ):
            _refused(response, 422, "validation_failed")


async def test_largest_id_is_just_not_there(client: httpx.AsyncClient) -> None:
    _refused(await client.get(f"/v1/items/{2**63 - 1}"), 404, "item_not_found")


async def test_list_is_paged_and_capped(client: httpx.AsyncClient, app: Any) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO items (name, price, in_stock) SELECT 'n' || n, n, true FROM generate_series(1, 210) n"
            )
        )

    async def names(query: str) -> list[str]:
        response = await client.get(f"/v1/items?{query}")
        assert response.status_code == 200
        return [item["name"] for item in response.json()]

    assert len(await names("")) == 50
    assert len(await names("limit=200")) == 200
    assert len(await names("limit=201")) == 200
    assert len(await names(f"limit={2**63 - 1}")) == 200
    assert await names("limit=2&skip=3") == ["n4", "n5"]
    assert await names("skip=209&limit=50") == ["n210"]
    assert await names(f"skip={2**63 - 1}") == []


async def test_bad_paging_is_refused(client: httpx.AsyncClient) -> None:
    for query in ("limit=0", "limit=-1", "limit=x", "limit=", "skip=-1", "skip=1.5", f"skip={2**63}"):
        _refused(await client.get(f"/v1/items?{query}"), 422, "validation_failed")


async def test_fifty_parallel_changes_lose_none(
    client: httpx.AsyncClient, owner: Headers, events: Events
) -> None:
    path = f"/v1/items/{(await _create(client, owner))['id']}"

    answers = await asyncio.gather(
        *(client.patch(path, json={"price": price}, headers=owner) for price in range(1, 51))
    )

    assert sorted(answer.json()["version"] for answer in answers) == list(range(2, 52))
    assert [event["sequence"] for event in await events()] == list(range(1, 52))


async def test_change_that_cannot_be_committed_leaves_no_event(
    client: httpx.AsyncClient, owner: Headers, events: Events, app: Any
) -> None:
    item = await _create(client, owner)
    async with app.state.database.transaction() as session:
        await session.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'secret reason'; END$$;"
            )
        )
        await session.execute(
            text(
                "CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON items DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )

    response = await client.patch(f"/v1/items/{item['id']}", json={"price": 1}, headers=owner)

    _refused(response, 500, "internal_error")  # the commit comes before the answer
    assert "secret" not in response.text
    assert (await client.get(f"/v1/items/{item['id']}")).json() == item
    assert len(await events()) == 1


async def test_service_is_ready_without_nats(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/ready")).json() == {"status": "ready", "checks": {"database": "ok"}}


async def test_prices_are_exact_in_the_database(client: httpx.AsyncClient, owner: Headers, app: Any) -> None:
    prices = [0.01, 0.1, 0.29, 1.15, 19.99, 33.33, 999_999.99, 1_000_000]
    for price in prices:
        assert (await _create(client, owner, price=price))["price"] == price

    async with app.state.database.reading() as session:
        stored = (await session.scalars(text("SELECT price FROM items ORDER BY id"))).all()
    assert stored == [Decimal(str(price)).quantize(Decimal("0.01")) for price in prices]


@given(st.integers(min_value=1, max_value=100_000_000))
def test_every_price_in_cents_survives_the_way_in_and_out(cents: int) -> None:
    written = ItemWrite.model_validate_json(f'{{"name": "a", "price": {cents // 100}.{cents % 100:02}}}')
    assert written.price * 100 == cents

    read = V1.show_price(written.price), V2.show_price(written.price)
    again = ItemWrite.model_validate({"name": "a", "price": read[0]})
    exact = ItemWriteV2.model_validate({"name": "a", "price": read[1]})
    assert again.price == exact.price == written.price


async def test_head_is_get_without_the_body(client: httpx.AsyncClient, owner: Headers) -> None:
    item = await _create(client, owner)
    path = f"/v1/items/{item['id']}"

    head, get = await client.head(path), await client.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    refused = await client.post(path, json={}, headers=owner)
    assert refused.headers.get_list("allow") == ["GET, HEAD, PUT, PATCH, DELETE"]


async def test_what_only_looks_like_an_integer_is_none(client: httpx.AsyncClient) -> None:
    for item_id in ("1.0", "+1", "1_0", "%201", "1e0"):
        _refused(await client.get(f"/v1/items/{item_id}"), 422, "validation_failed")
        _refused(await client.get(f"/v1/items?limit={item_id}"), 422, "validation_failed")
