"""Whatever is sent to the users API, the answer is a 4xx with a code, never a 5xx."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidToken
from shared.tokens import _peek

BODIES: dict[str, dict[str, Any]] = {
    "/v1/users": {"email": "ada@example.com", "password": "correct horse battery", "full_name": "Ada"},
    "/v1/users/verify-email": {"email": "ada@example.com"},
    "/v1/users/verify-email/confirm": {"code": "x"},
    "/v1/users/password-reset": {"email": "ada@example.com"},
    "/v1/users/password-reset/confirm": {"code": "x", "new_password": "correct horse battery"},
}
FORMS: dict[str, dict[str, str]] = {
    "/v1/users/token": {
        "grant_type": "password",
        "username": "ada@example.com",
        "password": "p",
        "scope": "",
    },
    "/v1/users/token/revoke": {"token": "x"},
}
FIELDS = [(path, field) for path, body in BODIES.items() for field in body]
FORM_FIELDS = [(path, field) for path, form in FORMS.items() for field in form]
VALUES: dict[str, Any] = {
    "empty": "",
    "huge": "x" * 500_000,
    "nul": "a\0b@example.com",
    "surrogate": "\ud800@example.com",
    "number": 1,
    "list": [],
    "object": {},
    "boolean": True,
}


def assert_refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"]


@pytest.mark.integration
async def test_every_field_with_every_bad_value_is_refused(client: httpx.AsyncClient) -> None:
    for path, field in FIELDS:
        for name, value in VALUES.items():
            if (field, name) in (("full_name", "empty"), ("password", "nul")):
                continue  # an empty name is a name, and a password may hold any character
            try:
                answer = await client.post(path, json={**BODIES[path], field: value})
            except UnicodeEncodeError:  # httpx will not send a lone surrogate: JSON can spell it
                body = b'{"' + field.encode() + b'": "\\ud800@example.com"}'
                answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert_refused(answer)
        missing = {key: value for key, value in BODIES[path].items() if key != field}
        if field != "full_name":
            assert_refused(await client.post(path, json=missing))


@pytest.mark.integration
async def test_forms_with_bad_values_are_refused(client: httpx.AsyncClient) -> None:
    for path, field in FORM_FIELDS:
        for value in ("x" * 500_000, "a\0b", "\u00e9" * 300):
            answer = await client.post(path, data={**FORMS[path], field: value})
            if answer.status_code != 200:  # any text may be revoked
                assert_refused(answer)


OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/v1/users/me"): {"full_name": "Ada"},
    ("POST", "/v1/users/me/email"): {"email": "king@example.com"},
    ("POST", "/v1/users/me/password"): {"current_password": "x", "new_password": "correct horse battery"},
}


@pytest.mark.integration
async def test_the_own_account_takes_no_bad_values(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json=BODIES["/v1/users"])
    form = {"username": "ada@example.com", "password": "correct horse battery"}
    token = (await client.post("/v1/users/token", data=form)).json()["access_token"]
    client.headers["Authorization"] = f"Bearer {token}"
    bad = [b'"\\ud800"', b'"\xff"', b'"a\\u0000"', b"1", b"[]", b"{}", b"true", b'"' + b"x" * 500_000 + b'"']
    for (method, path), good in OWN.items():
        for field in good:
            for value in bad:
                others = {name: other for name, other in good.items() if name != field}
                body = json.dumps(others).encode()[:-1] + (b", " if others else b"")
                body += json.dumps(field).encode() + b": " + value + b"}"
                answer = await client.request(
                    method, path, content=body, headers={"Content-Type": "application/json"}
                )
                assert_refused(answer)
        for body in (b"", b"[]", b"null", b"\xff", b'{"unknown": 1}'):
            assert_refused(
                await client.request(method, path, content=body, headers={"Content-Type": "application/json"})
            )
    for session_id in ("x", "%00", "%ff", "x" * 5000, "00000000-0000-0000-0000-000000000000"):
        assert_refused(await client.delete(f"/v1/users/me/sessions/{session_id}"))
    assert (await client.get("/v1/users/me")).json()["full_name"] == "Ada"


@pytest.mark.integration
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{" * 100_000, b"NaN"])
async def test_bodies_that_are_no_object_are_refused(client: httpx.AsyncClient, body: bytes) -> None:
    for path in BODIES:
        assert_refused(await client.post(path, content=body, headers={"Content-Type": "application/json"}))


@given(
    st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{1,40}(\.[A-Za-z0-9_-]{0,40}){0,4}", fullmatch=True)
)
def test_any_text_is_a_token_or_an_invalid_one(token: str) -> None:
    try:
        _peek(token)
    except InvalidToken:
        return
    assert token.count(".") == 2
