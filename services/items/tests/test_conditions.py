"""ETags and conditional requests; what version 2 asks for; how version 1 says that it ends."""

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from items.app import create_app
from items.conditions import tags_in
from items.settings import ItemsSettings
from shared.testing import TokenIssuer, serving
from stack.testing import ANY_KEY

from .conftest import Events

pytestmark = pytest.mark.integration

COMPASS = {"name": "Brass compass", "price": 19.99}
COMPASS_V2 = {"name": "Brass compass", "price": "19.99"}
Headers = dict[str, str]


@pytest.fixture
def owner(token_issuer: TokenIssuer) -> Headers:
    return token_issuer.authorization(1, scope="items:write")


@pytest.fixture
async def item(client: httpx.AsyncClient, owner: Headers) -> dict[str, Any]:
    response = await client.post("/v2/items", json=COMPASS_V2, headers=owner)
    assert response.status_code == 201, response.text
    assert response.headers["etag"] == '"1"'
    made: dict[str, Any] = response.json()
    return made


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"


KNOWN = ('"1"', 'W/"1"', "*", '"0", "1"', '"0",W/"1"', ', "x"\t, "1" ,', '"a,b" , "1"')
UNKNOWN = ('"2"', "1", "W/1", '"1', '""', '"2" "1"', 'w/"1"', '*, "1"', ",", "\xff")


async def test_what_the_client_has_is_not_sent_again(client: httpx.AsyncClient, item: dict[str, Any]) -> None:
    for version in ("v1", "v2"):
        path = f"/{version}/items/{item['id']}"
        for value in KNOWN:
            response = await client.get(path, headers={"If-None-Match": value})
            assert (response.status_code, response.content) == (304, b""), value
            assert (response.headers["etag"], response.headers["cache-control"]) == ('"1"', "no-cache")
            assert "content-type" not in response.headers
        for value in UNKNOWN:
            response = await client.get(path, headers={b"If-None-Match": value.encode("latin-1")})
            assert response.status_code == 200, value
            assert (response.headers["etag"], response.headers["cache-control"]) == ('"1"', "no-cache")
    missing = await client.get("/v1/items/999", headers={"If-None-Match": "*"})
    refused(missing, 404, "item_not_found")


async def test_conditions_may_come_in_several_lines(
    client: httpx.AsyncClient, item: dict[str, Any], owner: Headers
) -> None:
    path = f"/v2/items/{item['id']}"
    several = [("If-None-Match", '"7"'), ("If-None-Match", '"1"')]
    assert (await client.get(path, headers=several)).status_code == 304
    several = [("If-Match", '"7"'), ("If-Match", '"1"'), *owner.items()]
    assert (await client.patch(path, json={"price": "2"}, headers=several)).status_code == 200


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_change_is_made_to_the_version_it_was_meant_for(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any], version: str, events: Events
) -> None:
    path = f"/{version}/items/{item['id']}"
    whole = COMPASS if version == "v1" else COMPASS_V2

    for stale in ('"2"', 'W/"1"', '"0", "3"'):
        headers = {**owner, "If-Match": stale}
        for response in (
            await client.put(path, json=whole, headers=headers),
            await client.patch(path, json={"in_stock": False}, headers=headers),
            await client.delete(path, headers=headers),
        ):
            refused(response, 412, "version_conflict")
            assert response.headers["etag"] == '"1"'
    assert len(await events()) == 1

    changed = await client.patch(path, json={"in_stock": False}, headers={**owner, "If-Match": '"9", "1"'})
    assert (changed.status_code, changed.headers["etag"], changed.json()["version"]) == (200, '"2"', 2)
    replaced = await client.put(path, json=whole, headers={**owner, "If-Match": "*"})
    assert (replaced.status_code, replaced.headers["etag"]) == (200, '"3"')
    deleted = await client.delete(path, headers={**owner, "If-Match": '"3"'})
    assert (deleted.status_code, deleted.content) == (204, b"")
    refused(await client.delete(path, headers={**owner, "If-Match": "*"}), 404, "item_not_found")


async def test_version_2_changes_nothing_blindly(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any]
) -> None:
    path = f"/v2/items/{item['id']}"
    for response in (
        await client.put(path, json=COMPASS_V2, headers=owner),
        await client.patch(path, json={"price": "2"}, headers=owner),
        await client.delete(path, headers=owner),
    ):
        refused(response, 428, "if_match_required")
    refused(await client.delete(path), 401, "not_authenticated")


async def test_malformed_if_match_is_refused(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any]
) -> None:
    for value in ("1", '"1', "", ",", "nonsense", '"1" "2"', "*, *"):
        for version in ("v1", "v2"):
            path = f"/{version}/items/{item['id']}"
            response = await client.delete(path, headers={**owner, "If-Match": value})
            refused(response, 422, "validation_failed")
            assert response.json()["errors"][0]["parameter"] == "If-Match"


async def test_of_fifty_changes_to_one_version_one_is_made(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any], events: Events
) -> None:
    path = f"/v2/items/{item['id']}"
    headers = {**owner, "If-Match": '"1"'}

    answers = await asyncio.gather(
        *(client.patch(path, json={"price": f"{price}.00"}, headers=headers) for price in range(1, 51))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 49
    (made,) = (answer.json() for answer in answers if answer.status_code == 200)
    assert (await client.get(path)).json() == made
    assert [event["sequence"] for event in await events()] == [1, 2]


async def test_fifty_conditional_updates_at_once_lose_none(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any], events: Events
) -> None:
    """Five people read, add a cent to what was read, and try again where somebody was faster; each ten times."""
    path = f"/v2/items/{item['id']}"

    async def add_cents() -> int:
        made = conflicts = 0
        while made < 10:
            read = await client.get(path)
            price = f"{(round(float(read.json()['price']) * 100) + 1) / 100:.2f}"
            headers = {**owner, "If-Match": read.headers["etag"]}
            response = await client.patch(path, json={"price": price}, headers=headers)
            if response.status_code == 200:
                made += 1
            else:
                refused(response, 412, "version_conflict")
                conflicts += 1
        return conflicts

    conflicts = await asyncio.gather(*(add_cents() for _ in range(5)))

    last = (await client.get(path)).json()
    assert (last["price"], last["version"]) == ("20.49", 51)
    assert sum(conflicts) > 0, "they did not run at once"
    assert [event["sequence"] for event in await events()] == list(range(1, 52))


async def test_both_versions_show_the_same_item(client: httpx.AsyncClient, owner: Headers) -> None:
    for price, text in ((250, "250.00"), (0.1, "0.10"), (1_000_000, "1000000.00"), (19.99, "19.99")):
        made = await client.post("/v1/items", json={**COMPASS, "price": price}, headers=owner)
        one = made.json()
        two = (await client.get(f"/v2/items/{one['id']}")).json()
        assert two == {**one, "price": text}
        assert two in (await client.get("/v2/items?limit=200")).json()["items"]
        again = await client.post("/v2/items", json={**COMPASS, "price": text}, headers=owner)
        assert again.headers["location"] == f"/v2/items/{again.json()['id']}"
        assert (await client.get(f"/v1/items/{again.json()['id']}")).json()["price"] == price


async def test_version_2_shows_a_price_in_one_way(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any]
) -> None:
    path = f"/v2/items/{item['id']}"
    headers = {**owner, "If-Match": "*"}
    for price, shown in (("250", "250.00"), ("17.5", "17.50"), ("0.01", "0.01")):
        for method, body in (("PATCH", {"price": price}), ("PUT", {**COMPASS_V2, "price": price})):
            changed = await client.request(method, path, json=body, headers=headers)
            assert changed.json()["price"] == shown
            read = await client.get(path)
            assert (read.headers["etag"], read.content) == (changed.headers["etag"], changed.content)


BAD_PRICES = (
    19.99, "0", "0.00", "-1", "1.", ".5", "1.005", "01", "1e3", " 1", "1000000.01", "NaN", "١", "", None, True, "1_0",
)  # fmt: skip


async def test_version_2_takes_prices_as_exact_text(
    client: httpx.AsyncClient, owner: Headers, item: dict[str, Any]
) -> None:
    for price in BAD_PRICES:
        response = await client.post("/v2/items", json={**COMPASS, "price": price}, headers=owner)
        refused(response, 422, "validation_failed")
        headers = {**owner, "If-Match": "*"}
        response = await client.patch(f"/v2/items/{item['id']}", json={"price": price}, headers=headers)
        refused(response, 422, "validation_failed")


DEPRECATED = {"v1_deprecated_at": "2026-01-01T00:00:00Z", "v1_sunset_at": "2027-01-01T01:00:00+01:00"}


async def test_version_1_says_when_it_ends(settings: ItemsSettings) -> None:
    ending = ItemsSettings.model_validate({**settings.model_dump(exclude_unset=True), **DEPRECATED})
    app = create_app(ending)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for path in ("/v1/items", "/v1/items/1", "/v1/items/x"):
            headers = (await client.get(path)).headers
            assert headers["deprecation"] == "@1767225600"
            assert headers["sunset"] == "Fri, 01 Jan 2027 00:00:00 GMT"
            assert '</v2/items>; rel="successor-version"' in headers["link"]
        assert "deprecation" not in (await client.get("/v2/items")).headers
    paths = app.openapi()["paths"]
    assert paths["/v1/items"]["get"]["deprecated"] is True
    assert "deprecated" not in paths["/v2/items"]["get"]


async def test_by_default_it_does_not(client: httpx.AsyncClient, app: Any) -> None:
    assert not {"deprecation", "sunset", "link"} & (await client.get("/v1/items")).headers.keys()
    assert "deprecated" not in app.openapi()["paths"]["/v1/items"]["get"]


@pytest.mark.parametrize("deprecated_at", [None, "2027-01-02T00:00:00Z"])
def test_version_1_is_not_switched_off_before_it_is_deprecated(deprecated_at: str | None) -> None:
    values = {"database_url": "x", "cursor_key": ANY_KEY, **DEPRECATED, "v1_deprecated_at": deprecated_at}
    with pytest.raises(ValidationError, match="must not be earlier"):
        ItemsSettings.model_validate(values)


@given(st.text(alphabet='W/"*, \tax', max_size=30))
def test_any_condition_is_tags_or_malformed(value: str) -> None:
    tags = tags_in(value)
    if tags is not None:
        assert all(tag == "*" or tag.endswith('"') for tag in tags)
        assert tags_in(", ".join(tags)) == tags
