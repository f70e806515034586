"""Puts a system under load and writes down what it answered and what clients saw, for `checker.py`.

python tests-e2e/load.py --url http://127.0.0.1:8000 --seconds 30 ledger.jsonl
"""

import argparse
import asyncio
import json
import random
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Self

import httpx
from checker import Ledger, Seen
from journey import PASSWORD, Person, System, unique_email
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from shared.testing import eventually
from shared.times import utc_now

CREATES = 0.6
"""Share of the writes that create an item; the others change one."""
CONNECTIONS_AT_ONCE = 50
_CUT = (OSError, TimeoutError, ConnectionClosed, InvalidHandshake, InvalidMessage, EOFError)


class Client:
    """Follows the topic `items` through every cut, with its cursor."""

    def __init__(self, name: str, person: Person, ledger: Ledger) -> None:
        self.name = name
        self.ready = asyncio.Event()
        self._person = person
        self._ledger = ledger
        self._cursor: str | None = None
        ledger.seen[name] = []

    @property
    def seen(self) -> list[Seen]:
        """What has arrived so far."""
        return self._ledger.seen[self.name]

    async def run(self, turns: asyncio.Semaphore) -> None:
        """Follow until cancelled; `turns` bounds how many connect at the same moment."""
        while True:
            with suppress(*_CUT):
                await self._follow(turns)
            self._ledger.reconnects[self.name] += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311

    async def _follow(self, turns: asyncio.Semaphore) -> None:
        async with AsyncExitStack() as stack:
            async with turns:
                socket = await stack.enter_async_context(
                    connect(
                        self._person.system.socket_url,
                        additional_headers={"Authorization": f"Bearer {self._person.token}"},
                        proxy=None,
                        open_timeout=20,
                        ping_interval=None,
                        compression=None,
                    )
                )
                await socket.send(json.dumps({"type": "subscribe", "topic": "items", "cursor": self._cursor}))
            async for text in socket:
                self._take(json.loads(text))

    def _take(self, frame: dict[str, Any]) -> None:
        match frame:
            case {"type": "subscribed", "cursor": str(cursor)}:
                self._cursor = self._cursor or cursor
                self.ready.set()
            case {"type": "gap", "to": str(cursor)}:
                self._ledger.gaps[self.name] += 1
                self._cursor = cursor
            case {
                "type": "event",
                "cursor": str(cursor),
                "event": {"id": str(event_id), "subject": str(item)} as event,
            }:
                self._cursor = cursor
                epoch, _, position = cursor.rpartition(".")
                version = event["sequence"]
                self.seen.append(Seen(epoch, int(position), event_id, int(item), int(version)))
            case {"type": "error"}:
                raise AssertionError(frame)


class Writer:
    """Creates items and changes them, and remembers what was answered."""

    def __init__(self, person: Person, ledger: Ledger, *, pause: float) -> None:
        self._person = person
        self._ledger = ledger
        self._pause = pause
        self._items: list[int] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Write until told to stop."""
        number = 0
        while not stop.is_set():
            number += 1
            if not self._items or random.random() < CREATES:  # noqa: S311
                await self._write("POST", "/v1/items", {"name": f"item {number}", "price": 1})
            else:
                item = random.choice(self._items)  # noqa: S311
                await self._write("PATCH", f"/v1/items/{item}", {"price": number % 1000 + 1})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await stop.wait()

    async def _write(self, method: str, path: str, body: dict[str, object]) -> None:
        try:
            answer = await self._person.http.request(method, path, json=body, timeout=35)
        except httpx.TransportError:
            self._ledger.unanswered += 1
            return
        if answer.is_success:
            item = answer.json()
            self._ledger.answered.append((item["id"], item["version"]))
            if method == "POST":
                self._items.append(item["id"])
        else:
            assert answer.status_code in (429, 500, 502, 503, 504), answer.text
            self._ledger.unanswered += 1


class Load:
    """Writers and clients. `async with Load(system) as load:` begins with every client subscribed."""

    def __init__(
        self, system: System, *, writers: int = 4, clients: int = 5, people: int = 4, pause: float = 0.05
    ) -> None:
        self.ledger = Ledger()
        self.clients: list[Client] = []
        self._system = system
        self._counts = (writers, clients, people)
        self._pause = pause
        self._stop = asyncio.Event()
        self._open = AsyncExitStack()
        self._following: list[asyncio.Task[None]] = []
        self._writing: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        writers, clients, people = self._counts
        self.people = [await self._newcomer() for _ in range(people)]
        turns = asyncio.Semaphore(CONNECTIONS_AT_ONCE)
        for number in range(clients):
            client = Client(f"client-{number}", self.people[number % people], self.ledger)
            self.clients.append(client)
            self._following.append(asyncio.create_task(client.run(turns)))
        for client in self.clients:
            await asyncio.wait_for(client.ready.wait(), 120)
        self.ledger.began = utc_now()
        for number in range(writers):
            writer = Writer(self.people[number % people], self.ledger, pause=self._pause)
            self._writing.append(asyncio.create_task(writer.run(self._stop)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        for task in (*self._writing, *self._following):
            task.cancel()
        await asyncio.gather(*self._writing, *self._following, return_exceptions=True)
        await self._open.aclose()

    async def _newcomer(self) -> Person:
        http = await self._open.enter_async_context(
            httpx.AsyncClient(base_url=self._system.url, trust_env=False, timeout=30)
        )
        person = Person(self._system, http, email=unique_email(), password=PASSWORD)
        await person.register()
        await person.log_in()
        return person

    async def grows(self, by: int) -> None:
        """Wait until so many more writes were answered 2xx."""
        enough = len(self.ledger.answered) + by
        await eventually(lambda: len(self.ledger.answered) >= enough, within=90)

    async def settle(self, within: float = 120) -> None:
        """Stop writing, and wait until every client has seen the last item that was made.

        Raises:
            AssertionError: one has not.
        """
        self._stop.set()
        await asyncio.gather(*self._writing)
        last: list[int] = []

        async def made() -> bool:
            with suppress(httpx.TransportError):
                answer = await self.people[0].http.post("/v1/items", json={"name": "the last", "price": 1})
                if answer.is_success:
                    last.append(answer.json()["id"])
                    self.ledger.answered.append((last[0], 1))
            return bool(last)

        await eventually(made, within=60)

        def behind() -> list[str]:
            return [one.name for one in self.clients if not one.seen or one.seen[-1].item != last[0]]

        await eventually(lambda: not behind() or _not_yet(behind()), within=within)
        for task in self._following:  # an assertion of a client
            if task.done():
                task.result()


def _not_yet(names: list[str]) -> bool:
    raise AssertionError(f"{len(names)} clients wait for the last event: {names[:5]}")


async def _main(arguments: argparse.Namespace) -> None:
    load = Load(System(arguments.url), writers=arguments.writers, clients=arguments.clients)
    async with load:
        await asyncio.sleep(arguments.seconds)
        await load.settle()
    load.ledger.write(arguments.ledger)


def main() -> None:
    """Put a system under load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=5)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
