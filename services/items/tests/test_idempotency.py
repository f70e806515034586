"""A request with an idempotency key has one effect, however often it is sent and whatever dies meanwhile."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from items.settings import ItemsSettings
from shared import idempotency, outbox
from shared.testing import TokenIssuer, eventually, free_port
from stack.testing import ANY_KEY

from .conftest import Events

pytestmark = pytest.mark.integration

COMPASS = {"name": "Brass compass", "price": 19.99}
Headers = dict[str, str]


@pytest.fixture
def owner(token_issuer: TokenIssuer) -> Headers:
    return token_issuer.authorization(1, scope="items:write")


def keyed(headers: Headers, key: str = "8e03978e") -> Headers:
    return {**headers, "Idempotency-Key": key}


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


async def test_the_first_answer_comes_again(
    client: httpx.AsyncClient, owner: Headers, events: Events, token_issuer: TokenIssuer
) -> None:
    first = await client.post("/v1/items", json=COMPASS, headers=keyed(owner))
    assert "idempotent-replayed" not in first.headers
    reordered = b'{ "price": 19.990,\n"name": "Brass compass"}'
    for again in (
        await client.post("/v1/items", json=COMPASS, headers=keyed(owner)),
        await client.post(
            "/v1/items", content=reordered, headers={**keyed(owner), "Content-Type": "application/json"}
        ),
    ):
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        for name in ("location", "etag", "content-type", "content-length"):
            assert again.headers[name] == first.headers[name]
    # Keys belong to one user and one route.
    somebody = token_issuer.authorization(2, scope="items:write")
    for other in (
        await client.post("/v1/items", json=COMPASS, headers=keyed(somebody)),
        await client.post("/v2/items", json={**COMPASS, "price": "19.99"}, headers=keyed(owner)),
        await client.post("/v1/items", json=COMPASS, headers=keyed(owner, "another")),
        await client.post("/v1/items", json=COMPASS, headers=owner),
    ):
        assert (other.status_code, "idempotent-replayed" in other.headers) == (201, False)
    assert len(await events()) == 5


async def test_a_key_is_good_for_one_payload(
    client: httpx.AsyncClient, owner: Headers, events: Events
) -> None:
    await client.post("/v1/items", json=COMPASS, headers=keyed(owner))

    response = await client.post("/v1/items", json={**COMPASS, "price": 20}, headers=keyed(owner))

    refused(response, 422, "idempotency_key_reused")
    assert len(await events()) == 1


async def test_only_successes_are_kept(
    client: httpx.AsyncClient, owner: Headers, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = keyed(owner)
    refused(await client.post("/v1/items", json={"name": ""}, headers=headers), 422, "validation_failed")
    poor = keyed(token_issuer.authorization(1, scope="items:read"))
    refused(await client.post("/v1/items", json=COMPASS, headers=poor), 403, "insufficient_scope")
    with monkeypatch.context() as patched:
        patched.setattr(outbox, "add", None)  # fails after the item is written
        refused(await client.post("/v1/items", json=COMPASS, headers=headers), 500, "internal_error")
    assert (await client.get("/v1/items")).json() == []

    made = await client.post("/v1/items", json=COMPASS, headers=headers)

    assert (made.status_code, "idempotent-replayed" in made.headers) == (201, False)
    # An answer that was kept is still for those only who may ask for it.
    refused(await client.post("/v1/items", json=COMPASS, headers=poor), 403, "insufficient_scope")


async def test_malformed_key_is_refused(client: httpx.AsyncClient, owner: Headers) -> None:
    as_bytes = [(name.encode(), value.encode()) for name, value in owner.items()]
    for key in (b"", b"a b", b"x" * 256, "é".encode()):
        response = await client.post(
            "/v1/items", json=COMPASS, headers=[*as_bytes, (b"Idempotency-Key", key)]
        )
        refused(response, 422, "validation_failed")
    assert (await client.post("/v1/items", json=COMPASS, headers=keyed(owner, '"k!~"'))).status_code == 201


async def test_of_twins_at_once_one_has_an_effect(
    client: httpx.AsyncClient, owner: Headers, events: Events
) -> None:
    answers = await asyncio.gather(
        *(client.post("/v1/items", json=COMPASS, headers=keyed(owner)) for _ in range(20))
    )

    made = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.content for answer in made}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in made) == 1
    for answer in answers:
        if answer not in made:
            refused(answer, 409, "idempotency_in_progress")
            assert answer.headers["retry-after"] == "1"
    assert len(await events()) == 1


async def test_a_twin_of_a_request_that_still_runs_is_told_so(
    client: httpx.AsyncClient, owner: Headers, events: Events, app: Any
) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(text("LOCK TABLE outbox IN EXCLUSIVE MODE"))
        first = asyncio.create_task(client.post("/v1/items", json=COMPASS, headers=keyed(owner)))

        async def waits() -> bool:
            async with app.state.database.reading() as other:
                waiting = text(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                    " AND wait_event_type = 'Lock' AND query LIKE 'INSERT INTO outbox%'"
                )
                return bool(await other.scalar(waiting))

        await eventually(waits)
        twin = await client.post("/v1/items", json=COMPASS, headers=keyed(owner))
        refused(twin, 409, "idempotency_in_progress")

    assert (await first).status_code == 201
    again = await client.post("/v1/items", json=COMPASS, headers=keyed(owner))
    assert again.headers["idempotent-replayed"] == "true"
    assert len(await events()) == 1


async def test_an_answer_that_was_lost_comes_after_the_crash(
    client: httpx.AsyncClient,
    owner: Headers,
    events: Events,
    settings: ItemsSettings,
    token_issuer: TokenIssuer,
) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "ITEMS_DATABASE_URL": settings.database_url.get_secret_value(),
        "ITEMS_CURSOR_KEY": ANY_KEY,
        "ITEMS_PORT": str(port),
        "NATS_URL": "nats://127.0.0.1:1",
        "TOKEN_ISSUER": token_issuer.issuer,
        "JWKS_URL": token_issuer.jwks_url,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("dying_service.py")), env=environment
    )
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as dying:

        async def is_up() -> bool:
            try:
                return (await dying.get("/health/ready")).status_code == 200
            except httpx.TransportError:
                return False

        await eventually(is_up)
        with pytest.raises(httpx.TransportError):
            await dying.post("/v1/items", json=COMPASS, headers=keyed(owner))
    assert await process.wait() == -signal.SIGKILL

    again = await client.post("/v1/items", json=COMPASS, headers=keyed(owner))

    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    assert (await client.get("/v1/items")).json() == [again.json()]
    assert len(await events()) == 1


async def _age(app: Any, hours: int) -> None:
    async with app.state.database.transaction() as session:
        await session.execute(
            text("UPDATE idempotency_keys SET created_at = created_at - make_interval(hours => :hours)"),
            {"hours": hours},
        )


async def test_a_key_lives_for_a_day(client: httpx.AsyncClient, owner: Headers, app: Any) -> None:
    async def post(price: float) -> httpx.Response:
        return await client.post("/v1/items", json={**COMPASS, "price": price}, headers=keyed(owner))

    await post(1)
    await _age(app, 23)
    assert (await post(1)).headers["idempotent-replayed"] == "true"
    await _age(app, 1)
    assert "idempotent-replayed" not in (await post(2)).headers, "even if it was not deleted yet"
    assert (await post(2)).headers["idempotent-replayed"] == "true"
    refused(await post(1), 422, "idempotency_key_reused")


async def test_keys_that_are_a_day_old_are_deleted(
    client: httpx.AsyncClient, owner: Headers, app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "PRUNE_BATCH", 2)
    for number in range(5):
        await client.post("/v1/items", json=COMPASS, headers=keyed(owner, f"old-{number}"))
    await _age(app, 25)
    await client.post("/v1/items", json=COMPASS, headers=keyed(owner, "new"))
    pruning = asyncio.create_task(idempotency.keep_pruning(app.state.database))

    async def keys() -> list[str]:
        async with app.state.database.reading() as session:
            return list(await session.scalars(text("SELECT key FROM idempotency_keys")))

    async def only_new() -> bool:
        return await keys() == ["new"]

    await eventually(only_new)
    pruning.cancel()
