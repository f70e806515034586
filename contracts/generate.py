"""Writes the contracts: an example of every published event and command, the OpenAPI document of every service, the
one that the gateway makes of them, and the AsyncAPI document.

`make contracts` runs it after a wanted change; a test compares what it writes with what is committed, so that no
contract changes unnoticed.
"""

import importlib
import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import orjson
from pydantic import SecretStr

import gateway.app
from contracts import asyncapi
from contracts.compatibility import broken_events
from gateway.settings import GatewaySettings
from shared.events import Command, Event, encode
from stack.testing import ANY_KEY

SERVED = Path(gateway.app.__file__).with_name("asyncapi.json")
SERVICES = ("items", "notifications", "users")
EVENT_ID = "01942a60-7b85-7000-8000-000000000000"
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def generate(folder: Path) -> None:
    """Write every contract below `folder`."""
    documents: dict[str, dict[str, Any]] = {}
    envelopes: dict[str, dict[str, Any]] = {}
    for service in SERVICES:
        for event in examples(service):
            envelope = envelopes[event.type] = orjson.loads(
                encode(event, event_id=EVENT_ID, time=TIME).payload
            )
            kind = "commands" if isinstance(event, Command) else "events"
            _write(folder / kind / f"{event.type}.json", envelope)
        documents[service] = _openapi(service)
        _write(folder / "openapi" / f"{service}.json", documents[service])
    events = asyncapi.document({service: examples(service) for service in SERVICES}, envelopes)
    _write(folder / "asyncapi.json", events)
    # In the order in which the gateway knows them.
    services = {name: documents[name] for name in GatewaySettings().route_table().upstreams}
    merged = gateway.app.create_app(GatewaySettings()).state.documents.merge(services)
    _write(folder / "openapi.json", merged)


def examples(service: str) -> tuple[Event, ...]:
    """Return the events that a service gives as examples of what it publishes."""
    module = importlib.import_module(f"{service}.events")
    found: tuple[Event, ...] = module.EXAMPLES
    return found


def _openapi(service: str) -> dict[str, Any]:
    app: ModuleType = importlib.import_module(f"{service}.app")
    settings_module: ModuleType = importlib.import_module(f"{service}.settings")
    settings_class = getattr(settings_module, f"{service.capitalize()}Settings")
    settings = settings_class.model_construct(
        **{
            **{name: field.get_default() for name, field in settings_class.model_fields.items()},
            "database_url": SecretStr("postgresql://nobody@127.0.0.1/none"),
            "cursor_key": SecretStr(ANY_KEY),
        }
    )
    document: dict[str, Any] = app.create_app(settings).openapi()
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Write the contracts anew, unless a published event would no longer be what its readers know."""
    with TemporaryDirectory() as draft:
        generate(Path(draft))
        old, new = folder / "asyncapi.json", Path(draft) / "asyncapi.json"
        if old.exists():
            broken = broken_events(json.loads(old.read_text()), json.loads(new.read_text()))
            if broken:
                sys.exit(
                    "\n".join(broken) + "\nReaders would break: publish a new type, .v2, beside the old one."
                )
    generate(folder)
    # The gateway serves it.
    shutil.copyfile(folder / "asyncapi.json", SERVED)


if __name__ == "__main__":
    main(Path(__file__).parent)
