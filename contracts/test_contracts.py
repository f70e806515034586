"""Nobody changes a contract by accident, and every consumer can read what its producers publish."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import items.inbound
import notifications.inbound
from contracts.asyncapi import CONSUMED as HANDLED
from contracts.compatibility import broken_events
from contracts.generate import SERVED, SERVICES, examples, generate, main
from shared.events import Envelope, Event
from shared.openapi import operations

CONTRACTS = Path(__file__).parent


def test_the_committed_contracts_are_what_the_services_publish(tmp_path: Path) -> None:
    generate(tmp_path)

    def contents(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.json")
        }

    assert contents(tmp_path) == contents(CONTRACTS), "wanted? then run: make contracts"


def test_the_gateway_serves_the_committed_document() -> None:
    assert SERVED.read_bytes() == (CONTRACTS / "asyncapi.json").read_bytes(), "run: make contracts"


def test_everything_published_is_in_the_document_and_every_reference_leads_somewhere() -> None:
    document = json.loads((CONTRACTS / "asyncapi.json").read_text(encoding="utf-8"))

    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "$ref")
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    for reference in references(document):
        _at(document, reference)
    for path in (*CONTRACTS.glob("events/*.json"), *CONTRACTS.glob("commands/*.json")):
        example = json.loads(path.read_text(encoding="utf-8"))
        message = document["components"]["messages"][path.stem]
        assert message["examples"] == [{"payload": example}]
        data = document["components"]["schemas"][
            message["payload"]["allOf"][1]["properties"]["data"]["$ref"].rpartition("/")[2]
        ]
        assert example["data"].keys() == data["properties"].keys()
        assert example.keys() - document["components"]["schemas"]["CloudEvent"]["properties"].keys() == set()


def _at(document: Any, reference: str) -> Any:
    """Return the part of a document that a `$ref` leads to."""
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


OPENAPI = json.loads((CONTRACTS / "openapi.json").read_text(encoding="utf-8"))
EXAMPLES = {"example", "examples", "enum", "const", "default"}
"""Keys of what shows a value."""


def test_the_openapi_document_leaves_nothing_unexplained() -> None:
    unexplained = [*_unexplained_operations(), *_unexplained_properties()]
    assert not unexplained, "\n".join(unexplained)


def _unexplained_operations() -> Iterator[str]:
    for path, method, operation in operations(OPENAPI):
        for place, part, needed in _parts(operation):
            yield from (f"{method.upper()} {path}: {place}: no {key}" for key in needed if not part.get(key))
            # What may be left out needs none: /docs would fill it in for everybody who tries the operation out.
            optional = "in" in part and not part.get("required")
            if part is not operation and not optional and not _shows_a_value(part):
                yield f"{method.upper()} {path}: {place}: no example"


def _parts(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], tuple[str, ...]]]:
    """Return an operation, its parameters and its contents: where each stands, and what it must say."""
    yield "operation", operation, ("summary", "description", "tags")
    for parameter in map(_target, operation.get("parameters", ())):
        yield f"parameter {parameter['name']}", parameter, ("description",)
    bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
    for name, body in bodies.items():
        for media_type, content in _target(body).get("content", {}).items():
            yield f"{name} {media_type}", content, ()


def _unexplained_properties() -> Iterator[str]:
    for name, schema in OPENAPI["components"]["schemas"].items():
        for key, value in schema.get("properties", {}).items():
            if not (value.get("description") or _target(value).get("description")):
                yield f"{name}.{key}: no description"


def _shows_a_value(node: dict[str, Any]) -> bool:
    """Say whether a parameter, a content or a schema has an example, or is so narrow that it needs none."""
    node = _target(node)
    if EXAMPLES & node.keys() or node.get("type") == "boolean":
        return True
    if "anyOf" in node:
        return any(map(_shows_a_value, node["anyOf"]))
    if inner := node.get("schema") or node.get("items"):
        return _shows_a_value(inner)
    properties = node.get("properties", {}).values()
    return bool(properties) and all(map(_shows_a_value, properties))


def _target(node: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref`."""
    while "$ref" in node:
        node = _at(OPENAPI, node["$ref"])
    return node


DOCUMENT = json.loads((CONTRACTS / "asyncapi.json").read_text(encoding="utf-8"))
CREATED = "items.item.created.v1"


def _changed(change: Callable[[dict[str, Any]], object]) -> list[str]:
    """Change the schema of an event's data; return what that breaks."""
    new = deepcopy(DOCUMENT)
    change(new["components"]["schemas"]["ItemCreated"])
    return broken_events(DOCUMENT, new)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data["properties"].pop("price"), "data.price is gone"),
        (
            lambda data: data["properties"].update(cost=data["properties"].pop("price")),
            "data.price is gone",
        ),
        (lambda data: data["properties"]["price"].update(type="number"), "data.price may now be number"),
        (lambda data: data["required"].remove("price"), "data.price may now be absent"),
        (
            lambda data: data["properties"]["name"].update(anyOf=[{"type": "string"}, {"type": "null"}]),
            "data.name may now be null",
        ),
        (lambda data: data["properties"]["created_at"].pop("format"), "data.created_at may now be string"),
    ],
    ids=["removed", "renamed", "retyped", "optional", "widened", "without its format"],
)
def test_change_that_breaks_readers_is_refused(
    change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    assert _changed(change) == [f"{CREATED}: {sentence}"]


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda data: data["properties"].update(colour={"type": "string"}),
        lambda data: data["properties"]["description"].update(anyOf=[{"type": "string"}]),
        lambda data: data["properties"]["price"].update(description="Told better."),
    ],
    ids=["none", "a new field", "narrowed", "described"],
)
def test_change_that_breaks_nobody_is_not(change: Callable[[dict[str, Any]], object]) -> None:
    assert _changed(change) == []


def test_type_that_is_published_no_more_is_refused() -> None:
    new = deepcopy(DOCUMENT)
    del new["components"]["messages"][CREATED]
    assert broken_events(DOCUMENT, new) == [f"{CREATED} is published no more"]


def test_make_contracts_writes_no_breaking_change(tmp_path: Path) -> None:
    committed = deepcopy(DOCUMENT)
    committed["components"]["schemas"]["ItemCreated"]["properties"]["colour"] = {"type": "string"}
    (tmp_path / "asyncapi.json").write_text(json.dumps(committed), encoding="utf-8")

    with pytest.raises(SystemExit, match=r"data\.colour is gone\nReaders would break"):
        main(tmp_path)

    assert json.loads((tmp_path / "asyncapi.json").read_text(encoding="utf-8")) == committed


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
