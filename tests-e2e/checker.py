"""Says whether a system kept its promises under a load that `load.py` wrote down.

What was answered 2xx is compared with the databases, the event stream and what clients saw; the counts are printed:

    python tests-e2e/load.py --seconds 30 ledger.jsonl
    python tests-e2e/checker.py ledger.jsonl

The exit code is 0 if every promise was kept, else 1.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import psycopg
from pydantic import SecretStr

from shared.broker import Broker
from shared.pull import following
from shared.settings import Settings
from shared.streams import EVENTS
from stack import nats, postgres
from stack import settings as ports

SHOWN = 5
"""Examples of each broken promise that are printed."""


class Seen(NamedTuple):
    """An event as a client got it."""

    epoch: str
    position: int
    event_id: str
    item: int
    version: int


@dataclass
class Ledger:
    """What was asked, answered and seen."""

    began: datetime | None = None
    answered: list[tuple[int, int]] = field(default_factory=list)
    """Item and version of every 2xx."""
    unanswered: int = 0
    """Writes that may or may not have happened: no answer, or a 5xx."""
    seen: dict[str, list[Seen]] = field(default_factory=dict)
    """Item events by client, in the order they arrived."""
    gaps: Counter[str] = field(default_factory=Counter)
    reconnects: Counter[str] = field(default_factory=Counter)

    def write(self, path: Path) -> None:
        """Write it down as JSON lines."""
        lines: list[dict[str, Any]] = [
            {"began": self.began.isoformat() if self.began else None, "unanswered": self.unanswered}
        ]
        lines += [{"item": item, "version": version} for item, version in self.answered]
        for client, events in self.seen.items():
            told = {"client": client, "gaps": self.gaps[client], "reconnects": self.reconnects[client]}
            lines.append({**told, "events": [list(event) for event in events]})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """Read what `write` wrote."""
        ledger = cls()
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if "item" in line:
                ledger.answered.append((line["item"], line["version"]))
            elif "client" in line:
                ledger.seen[line["client"]] = [Seen(*event) for event in line["events"]]
                ledger.gaps[line["client"]] = line["gaps"]
                ledger.reconnects[line["client"]] = line["reconnects"]
            else:
                ledger.began = datetime.fromisoformat(line["began"])
                ledger.unanswered = line["unanswered"]
        return ledger


class Event(NamedTuple):
    """An item event as outbox and stream have it."""

    event_id: str
    item: int
    version: int


@dataclass
class Facts:
    """What is in the databases and in the stream."""

    items: dict[int, int]
    """Version by id."""
    outbox: list[Event]
    unpublished: int
    stream: list[Event]
    stream_lost: bool
    """Whether the stream is younger than the load: what it held before cannot be looked for in it."""
    told: Counter[int]
    """Notifications of its creation, by item."""


@dataclass
class Report:
    """The counts, and the promises that were not kept."""

    counts: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def promise(self, promise: str, culprits: Iterable[object]) -> None:
        """Hold a promise that has no culprits."""
        found = list(culprits)
        self.counts[promise] = len(found)
        if found:
            self.broken.append(f"{promise}: {', '.join(map(str, found[:SHOWN]))}")

    def __str__(self) -> str:
        lines = [f"{number:8}  {name}" for name, number in self.counts.items()]
        return "\n".join([*lines, *(f"BROKEN  {line}" for line in self.broken)] or ["nothing to check"])


def check(ledger: Ledger, facts: Facts) -> Report:
    """Compare."""
    report = Report()
    versions: dict[int, set[int]] = {}
    for event in facts.outbox:
        versions.setdefault(event.item, set()).add(event.version)
    report.counts |= {
        "writes answered 2xx": len(ledger.answered),
        "writes without an answer": ledger.unanswered,
        "items in the database": len(facts.items),
        "events in the outbox": len(facts.outbox),
        "events in the stream": len(facts.stream),
        "of those, repeated": len(facts.stream) - len({event.event_id for event in facts.stream}),
        "notifications of creations": facts.told.total(),
    }
    report.promise(
        "answered writes that are not in the database",
        [(item, version) for item, version in ledger.answered if version > facts.items.get(item, 0)],
    )
    report.promise(
        "versions answered twice",
        [write for write, count in Counter(ledger.answered).items() if count > 1],
    )
    report.promise(
        "committed versions without their event",
        [
            (item, version)
            for item, last in facts.items.items()
            for version in range(1, last + 1)
            if version not in versions.get(item, set())
        ],
    )
    report.promise(
        "versions with more than one event",
        [pair for pair, count in Counter((e.item, e.version) for e in facts.outbox).items() if count > 1],
    )
    report.promise(
        "events of what was rolled back",
        [event for event in facts.outbox if event.version > facts.items.get(event.item, 0)],
    )
    report.promise("events left unpublished", range(facts.unpublished))
    if not facts.stream_lost:
        in_stream = {event.event_id for event in facts.stream}
        report.promise(
            "events missing in the stream", [e for e in facts.outbox if e.event_id not in in_stream]
        )
        report.promise("events out of order in the stream", _out_of_order(_first_times(facts.stream)))
    report.promise("items whose owner was not told", [item for item in facts.items if not facts.told[item]])
    report.promise("items whose owner was told twice", [item for item, n in facts.told.items() if n > 1])
    _check_clients(ledger, facts, report)
    return report


def _check_clients(ledger: Ledger, facts: Facts, report: Report) -> None:
    everything = {event.event_id for event in facts.outbox}
    report.counts |= {
        "clients": len(ledger.seen),
        "events seen by clients": sum(map(len, ledger.seen.values())),
        "reconnects": ledger.reconnects.total(),
        "gaps told": ledger.gaps.total(),
    }
    missing: list[tuple[str, str]] = []
    doubled: list[tuple[str, str]] = []
    disordered: list[tuple[str, Seen | Event]] = []
    unheard: list[tuple[str, str]] = []
    for client, events in ledger.seen.items():
        ids = [event.event_id for event in events]
        # A new epoch is a new stream: what a gap tells of may come again when it is refilled.
        told = Counter((event.epoch, event.event_id) for event in events)
        doubled += [(client, event_id) for (_, event_id), count in told.items() if count > 1]
        disordered += [
            (client, after)
            for before, after in pairwise(events)
            if before.epoch == after.epoch and before.position >= after.position
        ]
        unheard += [(client, event_id) for event_id in set(ids) - everything]
        if not ledger.gaps[client]:
            in_order = [Event(event.event_id, event.item, event.version) for event in events]
            disordered += [(client, event) for event in _out_of_order(in_order)]
            missing += [(client, event_id) for event_id in everything - set(ids)]
    report.promise("events that a client missed without being told of a gap", missing)
    report.promise("events that a client got twice", doubled)
    report.promise("events that a client got out of order", disordered)
    report.promise("events that a client got and nobody committed", unheard)


def _first_times(events: Iterable[Event]) -> list[Event]:
    first: dict[str, Event] = {}
    for event in events:
        first.setdefault(event.event_id, event)
    return list(first.values())


def _out_of_order(events: Iterable[Event]) -> list[Event]:
    newest: dict[int, int] = {}
    found = []
    for event in events:
        if event.version <= newest.get(event.item, 0):
            found.append(event)
        newest[event.item] = event.version
    return found


class _OperatorSettings(Settings):
    service: ClassVar[str] = "checker"

    port: int = 1


@asynccontextmanager
async def operator(data_dir: Path, port_offset: int) -> AsyncIterator[Broker]:
    """Connect to the NATS of an embedded stack as the operator."""
    secrets = json.loads((data_dir / "credentials.json").read_text())
    settings = _OperatorSettings(
        nats_url=f"nats://127.0.0.1:{ports.NATS + port_offset}",
        nats_user=nats.OPERATOR,
        nats_password=SecretStr(secrets[f"nats.{nats.OPERATOR}"]),
    )
    async with Broker(settings) as broker:
        async with asyncio.timeout(30):
            await broker.connected.wait()
        yield broker


async def gather(data_dir: Path, port_offset: int, *, since: datetime) -> Facts:
    """Read the databases and the stream of an embedded stack: what concerns item events from `since` on."""
    secrets = json.loads((data_dir / "credentials.json").read_text())

    def connect(service: str) -> psycopg.Connection[Any]:
        password = secrets[f"database.{service}"]
        return psycopg.connect(postgres.dsn(service, password, ports.POSTGRES + port_offset))

    with connect("items") as items:
        rows = items.execute("SELECT id, version FROM items WHERE created_at >= %s", [since]).fetchall()
        versions = dict(rows)
        outbox = [
            _event(bytes(payload))
            for (payload,) in items.execute(
                "SELECT payload FROM outbox WHERE created_at >= %s AND subject LIKE 'events.items.item.%%'"
                " ORDER BY id",
                [since],
            )
        ]
        (unpublished,) = items.execute(
            "SELECT count(*) FROM outbox WHERE published_at IS NULL"
        ).fetchone() or (0,)
    with connect("notifications") as notifications:
        told = Counter(
            item
            for (item,) in notifications.execute(
                "SELECT (data->>'item_id')::bigint FROM notifications"
                " WHERE kind = 'item_created' AND created_at >= %s",
                [since],
            )
        )
    known = {event.event_id for event in outbox}
    stream: list[Event] = []
    async with operator(data_dir, port_offset) as broker:
        info = await broker.js.stream_info(EVENTS)
        async with following(broker, EVENTS, start=1, batch=500) as (messages, pending):
            left = pending
            async for message in messages:
                if (
                    message.subject.startswith("events.items.item.")
                    and (event := _event(message.data)).event_id in known
                ):
                    stream.append(event)
                left = message.metadata.num_pending
                if not left:
                    break
    created = datetime.fromisoformat(str(info.created))
    return Facts(versions, outbox, int(unpublished), stream, created > since, told)


def _event(payload: bytes) -> Event:
    event = json.loads(payload)
    return Event(event["id"], int(event["subject"]), event["sequence"])


def main() -> int:
    """Check a system by a ledger; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("ledger", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path(".data"))
    parser.add_argument("--port-offset", type=int, default=0)
    arguments = parser.parse_args()
    ledger = Ledger.read(arguments.ledger)
    if ledger.began is None:
        parser.error("the ledger does not say when it began")
    facts = asyncio.run(gather(arguments.data_dir, arguments.port_offset, since=ledger.began))
    report = check(ledger, facts)
    print(report)  # noqa: T201
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
