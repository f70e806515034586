"""Processes die; what was answered 2xx stays, its events arrive, their effects exist once."""

import asyncio
import signal

import httpx
import pytest
from journey import Person, System

from shared.testing import eventually


@pytest.mark.parametrize("service", ["users", "items", "notifications", "gateway"])
async def test_nothing_is_lost_when_a_service_restarts(embedded: System, ada: Person, service: str) -> None:
    async with ada.watching("items") as stream:
        before = await ada.offer("before")
        assert (await stream.event())["subject"] == str(before["id"])
        cursor = stream.cursor

    pid = embedded.kill(service, signal.SIGTERM)
    during = await eventually(lambda: _offer(ada, "during"), within=60)
    assert during is not None
    await embedded.restarted(service, pid)
    after = await ada.offer("after")

    assert [item["name"] for item in await _items(ada, before, during, after)] == [
        "before",
        "during",
        "after",
    ]
    async with ada.watching("items", cursor) as stream:
        assert [(await stream.event())["subject"] for _ in range(2)] == [str(during["id"]), str(after["id"])]
    for item in (before, during, after):
        assert len(await ada.notified("item_created", item_id=item["id"])) == 1


async def _offer(person: Person, name: str) -> dict[str, object] | None:
    """Create an item; None while the system cannot."""
    try:
        response = await person.http.post("/v1/items", json={"name": name, "price": 1})
    except httpx.TransportError:
        return None
    return dict(response.json()) if response.status_code == 201 else None


async def _items(person: Person, *items: dict[str, object]) -> list[dict[str, object]]:
    return [(await person.http.get(f"/v1/items/{item['id']}")).json() for item in items]


async def test_kill_9_of_items_right_after_a_201(embedded: System, ada: Person) -> None:
    for _ in range(3):
        pid = embedded.pid("items")
        item = await ada.offer()
        embedded.kill("items")

        await embedded.restarted("items", pid)
        assert len(await ada.notified("item_created", item_id=item["id"])) == 1


async def test_kill_9_of_notifications_under_writes(embedded: System, ada: Person) -> None:
    pid = embedded.pid("notifications")
    items = [await ada.offer() for _ in range(5)]
    embedded.kill("notifications")
    items += [await ada.offer() for _ in range(5)]

    await embedded.restarted("notifications", pid)
    for item in items:
        assert len(await ada.notified("item_created", item_id=item["id"])) == 1


async def test_kill_9_of_nats_and_of_postgres_under_writes(embedded: System, ada: Person) -> None:
    created: list[dict[str, object]] = []
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            if (item := await _offer(ada, "under load")) is not None:
                created.append(item)

    writer = asyncio.create_task(write())
    for process in ("nats", "postgres"):
        await _grows(created)
        pid = embedded.kill(process)
        await embedded.restarted(process, pid)
        await eventually(ada.logs_in, within=30)  # users, too, must have found the database again
    await _grows(created)
    stop.set()
    await writer

    # An event that comes after all of them: once it has arrived, so has every other, and none twice.
    marker = await ada.offer("marker")
    await ada.notified("item_created", item_id=marker["id"])
    told = [
        notification["data"]["item_id"]
        for notification in await ada.all_notifications()
        if notification["kind"] == "item_created"
    ]
    assert len(told) == len(set(told)), "told twice"
    assert {item["id"] for item in created} <= set(told), "not told"


async def _grows(created: list[dict[str, object]]) -> None:
    enough = len(created) + 5
    await eventually(lambda: len(created) >= enough, within=60)


async def test_without_nats_items_are_still_written_and_events_follow(embedded: System, ada: Person) -> None:
    async with ada.watching("items") as stream:
        embedded.kill("nats", signal.SIGSTOP)
        try:
            items = [await ada.offer() for _ in range(5)]

            async def noticed() -> bool:
                return bool((await ada.http.get("/health/ready")).json().get("nats") != "up")

            # Long enough for every connection to be given up, not only to be quiet.
            await eventually(noticed, within=60)
            items += [await ada.offer() for _ in range(5)]
        finally:
            embedded.kill("nats", signal.SIGCONT)

        assert [(await stream.event())["subject"] for _ in range(10)] == [str(item["id"]) for item in items]
    for item in items:
        assert len(await ada.notified("item_created", item_id=item["id"])) == 1
