"""Nobody changes a contract by accident, and every consumer can read what its producers publish."""

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

import items.handlers
import items.inbound
import notifications.handlers
import notifications.inbound
from contracts.generate import SERVICES, examples, generate
from shared.events import Envelope, Event

CONTRACTS = Path(__file__).parent


def test_the_committed_contracts_are_what_the_services_publish(tmp_path: Path) -> None:
    generate(tmp_path)

    def contents(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.json")
        }

    assert contents(tmp_path) == contents(CONTRACTS), "wanted? then run: make contracts"


@pytest.mark.parametrize("service", SERVICES)
def test_every_event_type_has_an_example(service: str) -> None:
    exemplified = {event.type for event in examples(service)}
    module = f"{service}.events"
    published = {
        kind.type for kind in _all_events(Event) if kind.__module__ == module and "type" in kind.__dict__
    }
    assert published == exemplified


def _all_events(base: type[Event]) -> list[type[Event]]:
    return [kind for child in base.__subclasses__() for kind in (child, *_all_events(child))]


CONSUMED: list[tuple[str, str, type[BaseModel]]] = [
    ("notifications", "events/users.user.registered.v1", notifications.inbound.UserRegistered),
    ("notifications", "events/items.item.created.v1", notifications.inbound.ItemChanged),
    ("notifications", "events/items.item.updated.v1", notifications.inbound.ItemChanged),
    ("notifications", "events/items.item.deleted.v1", notifications.inbound.ItemChanged),
    ("notifications", "events/users.user.deleted.v1", notifications.inbound.UserDeleted),
    ("notifications", "commands/notifications.mail.send.v1", notifications.inbound.SendMail),
    (
        "notifications",
        "commands/notifications.address.verified.v1",
        notifications.inbound.AddressVerified,
    ),
    ("items", "events/users.user.deleted.v1", items.inbound.UserDeleted),
]
HANDLED = {
    "items": items.handlers.HANDLERS,
    "notifications": {**notifications.handlers.HANDLERS, **notifications.handlers.COMMAND_HANDLERS},
}


@pytest.mark.parametrize(("consumer", "name", "model"), CONSUMED, ids=str)
def test_consumers_can_read_what_producers_publish(consumer: str, name: str, model: type[BaseModel]) -> None:
    example = json.loads((CONTRACTS / f"{name}.json").read_text(encoding="utf-8"))
    envelope = Envelope.model_validate(example)

    assert envelope.type in HANDLED[consumer]
    assert model.model_validate(envelope.data)
    assert model.model_validate({**envelope.data, "a_new_field": 1}), "an added field breaks nobody"


@pytest.mark.parametrize("consumer", HANDLED)
def test_every_handled_type_is_checked_here(consumer: str) -> None:
    checked = {Path(name).name for service, name, _ in CONSUMED if service == consumer}
    assert set(HANDLED[consumer]) == checked


@pytest.mark.parametrize("path", sorted(CONTRACTS.glob("events/*.json")), ids=lambda path: path.stem)
def test_events_are_cloudevents_without_secrets(path: Path) -> None:
    event = json.loads(path.read_text(encoding="utf-8"))

    assert event["specversion"] == "1.0"
    assert event["type"] == path.stem
    assert event["source"] == f"/tollhouse/{path.stem.partition('.')[0]}"
    assert isinstance(event["subject"], str)
    assert event["dataschema"].endswith(path.stem)
    assert not {"email", "password", "token", "recipient", "body"} & event["data"].keys()
