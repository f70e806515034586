"""What registration accepts and refuses, and what nobody gets to see."""

import json
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from shared.outbox import OutboxRow
from users.models import User

pytestmark = pytest.mark.integration

ADA = {"email": "ada@example.com", "password": "correct horse battery", "full_name": "Ada Lovelace"}

ACCOUNT_EVENTS = select(OutboxRow).where(OutboxRow.subject.like("events.users.user.%"))

BAD_FIELDS: dict[str, dict[str, Any]] = {
    "email missing": {"email": ...},
    "email null": {"email": None},
    "email empty": {"email": ""},
    "email a number": {"email": 5},
    "email a list": {"email": ["ada@example.com"]},
    "email without @": {"email": "ada.example.com"},
    "email without a domain": {"email": "ada@"},
    "email with two @": {"email": "ada@b@example.com"},
    "email with a line break": {"email": "ada@example.com\nBcc: eve@example.com"},
    "email with NUL": {"email": "a\0da@example.com"},
    "email with a lone surrogate": {"email": "a\ud800@example.com"},
    "email with a dot at its end": {"email": "ada@example.com."},
    "email with an invisible character": {"email": "ada\u200b@example.com"},
    "email that reads backwards": {"email": "\u202eada@example.com"},
    "email with a quoted name": {"email": '"a b"@example.com'},
    "email at an address": {"email": "ada@[127.0.0.1]"},
    "email with a name": {"email": "Ada <ada@example.com>"},
    "email too long": {"email": "a" * 250 + "@example.com"},
    "email huge": {"email": "a" * 100_000 + "@example.com"},
    "password missing": {"password": ...},
    "password null": {"password": None},
    "password empty": {"password": ""},
    "password too short": {"password": "x" * 11},
    "password too long": {"password": "x" * 129},
    "password huge": {"password": "x" * 500_000},
    "password a number": {"password": 123456789012},
    "password with a lone surrogate": {"password": "correct horse \ud800"},
    "full_name too long": {"full_name": "x" * 201},
    "full_name with NUL": {"full_name": "A\0da"},
    "full_name with a lone surrogate": {"full_name": "\udc00"},
    "full_name a number": {"full_name": 1},
    "unknown field": {"nickname": "ada"},
    "scopes": {"scopes": ["users:admin"]},
    "id": {"id": 1},
    "is_active": {"is_active": True},
}


async def test_bad_field_is_refused_and_never_repeated(client: httpx.AsyncClient, app: FastAPI) -> None:
    for name, change in BAD_FIELDS.items():
        body = {key: value for key, value in {**ADA, **change}.items() if value is not ...}
        response = await client.post(
            "/v1/users", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        assert (response.status_code, response.json().get("code")) == (422, "validation_failed"), name
        assert response.json()["errors"], name
        if isinstance(password := body.get("password"), str) and password:
            assert password not in response.text, name

    async with app.state.database.reading() as session:
        assert (await session.scalars(select(User))).all() == []
        assert (await session.scalars(ACCOUNT_EVENTS)).all() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"password": "vex dog 7umb"},
        {"password": "x" * 128},
        {"password": "пароль из двенадцати 🔑"},
        {"password": "with a \0 in it, why not"},
        {"full_name": None},
        {"full_name": ""},
        {"full_name": "名" * 200},
        {"email": "ada+tollhouse@example.com"},
        {"email": "ada@münchen.example.com"},
    ],
    ids=str,
)
async def test_unusual_but_good_values_are_accepted(
    client: httpx.AsyncClient, changes: dict[str, Any]
) -> None:
    body = {**ADA, **changes}

    registered = await client.post("/v1/users", json=body)
    assert registered.status_code == 201, registered.text
    token = await client.post(
        "/v1/users/token", data={"username": body["email"], "password": body["password"]}
    )
    assert token.status_code == 200, token.text


@pytest.mark.parametrize(
    ("registered", "the_same"),
    [
        ("Ada@Example.com", ["ada@example.com", " ada@EXAMPLE.com "]),
        ("jose\u0301@example.com", ["jos\u00e9@example.com", "JOSE\u0301@example.com"]),
        ("ada@m\u00fcnchen.example.com", ["ada@xn--mnchen-3ya.example.com", "ada@M\u00dcNCHEN.example.com"]),
        ("ada@\uff45xample.com", ["ada@example.com", "ada@example\u3002com"]),
        ("\u212aing@example.com", ["king@example.com", "KING@example.com"]),
    ],
    ids=["case", "composition", "encoding", "width", "compatibility"],
)
async def test_one_address_is_one_account_however_it_is_written(
    client: httpx.AsyncClient, registered: str, the_same: list[str]
) -> None:
    assert (await client.post("/v1/users", json={**ADA, "email": registered})).status_code == 201

    for email in (registered, *the_same):
        again = await client.post("/v1/users", json={**ADA, "email": email})
        token = await client.post("/v1/users/token", data={"username": email, "password": ADA["password"]})
        assert (again.status_code, token.status_code) == (409, 200), email


@pytest.mark.parametrize(
    "other",
    ["ad\u0430@example.com", "ada+x@example.com", "a.da@example.com", "ada@example.org"],
    ids=["homograph", "plus", "dot", "domain"],
)
async def test_addresses_that_only_look_alike_are_accounts_of_their_own(
    client: httpx.AsyncClient, other: str
) -> None:
    await client.post("/v1/users", json=ADA)

    form = {"username": other, "password": ADA["password"]}
    assert (await client.post("/v1/users/token", data=form)).status_code == 401
    assert (await client.post("/v1/users", json={**ADA, "email": other})).status_code == 201


async def test_each_account_leaves_one_event_without_anything_private(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    user = (await client.post("/v1/users", json=ADA)).json()
    assert (await client.post("/v1/users", json=ADA)).status_code == 409

    async with app.state.database.reading() as session:
        rows = (await session.scalars(ACCOUNT_EVENTS)).all()
    (row,) = rows
    event = orjson.loads(row.payload)
    assert event["type"] == "users.user.registered.v1"
    assert (event["subject"], event["sequence"]) == (str(user["id"]), 1)
    assert event["data"] == {"id": user["id"], "version": 1}
    for private in (b"ada", b"example.com", b"battery", b"Lovelace", b"argon2"):
        assert private not in row.payload


async def test_password_is_stored_as_argon2id_only(client: httpx.AsyncClient, app: FastAPI) -> None:
    await client.post("/v1/users", json=ADA)

    async with app.state.database.reading() as session:
        user = (await session.scalars(select(User))).one()
    assert user.password_hash.startswith("$argon2id$")
    assert "battery" not in user.password_hash


async def test_logs_hold_neither_address_nor_password(
    client: httpx.AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    await client.post("/v1/users", json=ADA)
    await client.post("/v1/users", json={**ADA, "password": "short"})
    await client.post("/v1/users/token", data={"username": ADA["email"], "password": ADA["password"]})
    await client.post("/v1/users/token", data={"username": ADA["email"], "password": "wrong but long enough"})

    captured = capfd.readouterr()
    for private in ("ada@", "example.com", "battery", "wrong but", "Lovelace"):
        assert private not in captured.out + captured.err
