"""The AsyncAPI document, for programs and for people."""

from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.app import create_app
from gateway.settings import GatewaySettings


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway's own routes."""
    transport = httpx.ASGITransport(app=create_app(GatewaySettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


async def test_events_and_frames_are_described_for_programs(http: httpx.AsyncClient) -> None:
    answer = await http.get("/asyncapi.json")

    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["items.item.created"]["address"] == "events.items.item.created.{id}"
    assert {"Subscribe", "Subscribed", "Gap"} <= document["channels"]["live"]["messages"].keys()


async def test_events_and_frames_are_described_for_people_without_a_script(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs/events")).text

    for expected in ("items.item.created.v1", "<code>price</code>", "&quot;Brass compass&quot;", "/v1/ws"):
        assert expected in page
    assert "<script" not in page
    assert "src=" not in page
