"""The life of an account, end to end: mailed codes, instant logout, deletion everywhere."""

import email
import email.policy
import re
from email.message import EmailMessage
from pathlib import Path

import httpx
import pytest
from conftest import Newcomer
from journey import PASSWORD, Person, System

from shared.testing import TokenIssuer, eventually
from shared.tokens import DERIVED_IDS


def mailed_code(data_dir: Path, to: str, subject: str) -> str | None:
    """Return the code of a mail on disk."""
    for path in (data_dir / "mail").glob("*.eml"):
        mail = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        if (mail["To"], mail["Subject"]) == (to, subject):
            part = mail.get_body(("plain",))
            assert part is not None
            found = re.search(r"^ {4}(\S+)\s*$", part.get_content(), re.MULTILINE)
            assert found is not None
            return found[1]
    return None


async def code_for(system: System, person: Person, subject: str) -> str:
    """Wait for a person's mail; return its code."""
    data_dir = system.data_dir
    assert data_dir is not None
    code = await eventually(lambda: mailed_code(data_dir, person.email, subject))
    assert code is not None
    return code


async def test_the_mailed_code_verifies_the_address(embedded: System, ada: Person) -> None:
    code = await code_for(embedded, ada, "Verify your address")

    assert (await ada.http.post("/v1/users/verify-email/confirm", json={"code": code})).status_code == 204
    assert (await ada.http.get("/v1/users/me")).json()["email_verified"] is True


async def test_a_forgotten_password_is_reset_by_mail(embedded: System, ada: Person) -> None:
    assert (await ada.http.post("/v1/users/password-reset", json={"email": ada.email})).status_code == 202
    code = await code_for(embedded, ada, "Set a new password")

    answer = await ada.http.post(
        "/v1/users/password-reset/confirm", json={"code": code, "new_password": "an entirely new one"}
    )

    assert answer.status_code == 204
    ada.password = "an entirely new one"
    await ada.log_in()


@pytest.mark.parametrize("path", ["/v1/users/me", "/v1/notifications", "/v1/items"])
async def test_logging_out_is_instant_everywhere(ada: Person, path: str) -> None:
    async def status() -> int:
        if path == "/v1/items":
            return (await ada.http.post(path, json={"name": "x", "price": 1})).status_code
        return (await ada.http.get(path)).status_code

    assert await status() in (200, 201)
    assert (await ada.http.delete("/v1/users/me/sessions")).status_code == 204

    async def refused() -> bool:
        return await status() == 401

    await eventually(refused, within=5)


async def test_a_session_goes_on_by_its_refresh_token(system: System, ada: Person) -> None:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as http:
        form = {"username": ada.email, "password": PASSWORD}
        first = (await http.post("/v1/users/token", data=form)).json()
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        second = (await http.post("/v1/users/token", data=form)).json()
        authorization = {"Authorization": f"Bearer {second['access_token']}"}
        assert (await http.get("/v1/users/me", headers=authorization)).status_code == 200


async def test_deleting_an_account_reaches_every_service(
    ada: Person, bob: Person, newcomer: Newcomer
) -> None:
    item = await ada.offer("left behind")
    await ada.notified("item_created", item_id=item["id"])

    assert (await ada.http.delete("/v1/users/me")).status_code == 204

    async def disowned() -> bool:
        return (await bob.http.get(f"/v1/items/{item['id']}")).json()["owner_id"] is None

    await eventually(disowned)
    again = await newcomer(ada.email)
    assert again.id != ada.id
    assert all(found["kind"] == "welcome" for found in await again.notifications())


async def test_users_of_a_trusted_issuer_use_items_and_the_live_stream(
    embedded: System, external_issuer: TokenIssuer
) -> None:
    token = external_issuer.token(
        sub="4c3f0c3e-6f3b-4a57-9d3f-2f6f6b1f7a11",
        scope="openid items:write notifications:read",
        headers={"typ": "JWT"},
    )
    async with httpx.AsyncClient(base_url=embedded.url, trust_env=False) as http:
        eve = Person(embedded, http, email="", password="")
        eve.token = token
        http.headers["Authorization"] = f"Bearer {token}"

        async with eve.watching("me") as stream:
            item = await eve.offer("From elsewhere")
            event = await stream.event()

    assert item["owner_id"] >= DERIVED_IDS
    assert event["data"]["data"]["item_id"] == item["id"]
