"""Every text field of every body, parameter and form, with strings that break software: kept as sent, or refused."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from journey import ADMIN_EMAIL, ADMIN_PASSWORD, Person, System, unique_email
from naughty import NAUGHTY
from schemathesis_hooks import ENDS_THE_SESSION_IN_USE

pytestmark = pytest.mark.timeout(300)

STRINGS = [string for strings in NAUGHTY.values() for string in strings]
STREAMS = ("live_events",)


@pytest.fixture
async def admin(patient_system: System) -> AsyncIterator[Person]:
    async with httpx.AsyncClient(base_url=patient_system.url, trust_env=False, timeout=60) as http:
        person = Person(patient_system, http, email=ADMIN_EMAIL, password=ADMIN_PASSWORD)
        await person.log_in()
        yield person


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation with its path filled in, as far as its parameters have examples."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if operation["operationId"] in (*ENDS_THE_SESSION_IN_USE, *STREAMS):
                continue
            filled = path
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    example = str(parameter["schema"]["examples"][0])
                    filled = filled.replace(f"{{{parameter['name']}}}", example)
            yield method, filled, operation


def _takes_text(schema: dict[str, Any]) -> bool:
    return any(kind.get("type") == "string" for kind in schema.get("anyOf", [schema]))


async def _answers(
    http: httpx.AsyncClient, method: str, path: str, encoding: str, example: dict[str, Any], field: str
) -> list[tuple[str, httpx.Response]]:
    """Send the example of a body with each string in one of its fields, a few at a time."""
    turns = asyncio.Semaphore(4)  # more would meet a busy hashing pool

    async def answer(string: str) -> tuple[str, httpx.Response]:
        body = {**example, field: string}
        if "email" in body and field != "email":
            # An address that is taken would be 409, whatever else was sent.
            body["email"] = unique_email()
        sent: dict[str, Any] = {encoding: body}
        async with turns:
            return string, await http.request(method, path, headers={"If-Match": "*"}, **sent)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(string)) for string in STRINGS]
    return [task.result() for task in tasks]


async def test_text_in_bodies_is_kept_as_sent_or_refused(admin: Person) -> None:
    document = (await admin.http.get("/openapi.json")).json()
    kept = set()
    for method, path, operation in _operations(document):
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            encoding = "data" if "form" in media_type else "json"
            for field in (name for name, kind in schema["properties"].items() if _takes_text(kind)):
                for string, answer in await _answers(
                    admin.http, method, path, encoding, schema["examples"][0], field
                ):
                    what = (operation["operationId"], field, string, answer.status_code, answer.text[:300])
                    assert answer.status_code < 500, what
                    if answer.status_code in (200, 201) and field in (found := answer.json()):
                        assert found[field] == string, what
                        kept.add((operation["operationId"], field))
    assert kept >= {
        ("register_user", "full_name"),
        ("patch_own_account", "full_name"),
        ("create_item", "name"),
        ("create_item_v2", "description"),
    }


async def test_text_in_parameters_is_taken_or_refused(admin: Person) -> None:
    document = (await admin.http.get("/openapi.json")).json()
    tried = set()
    for method, path, operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "query" and _takes_text(parameter["schema"]):
                for string in STRINGS:
                    answer = await admin.http.request(method, path, params={parameter["name"]: string})
                    assert answer.status_code < 500, (operation["operationId"], parameter["name"], string)
                tried.add((operation["operationId"], parameter["name"]))
    assert tried >= {("list_items", "q"), ("list_items_v2", "cursor"), ("list_users", "q")}
