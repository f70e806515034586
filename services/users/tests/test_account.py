"""Profile, verification, change of address, forgotten password and deletion, over HTTP on real servers."""

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from shared.broker import Broker
from shared.streams import COMMANDS, ensure
from shared.testing import eventually, serving
from stack.testing import NATSServer
from users.app import create_app
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

ADA = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(update={"code_interval": 0})


async def log_in(client: httpx.AsyncClient, **form: str) -> httpx.Response:
    response = await client.post(
        "/v1/users/token", data={"username": ADA["email"], "password": ADA["password"], **form}
    )
    if response.status_code == 200:
        client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
    return response


class Mails:
    """The commands that ask notifications to send mails, as they stand in the stream."""

    def __init__(self, nats_server: NATSServer) -> None:
        self._nats_server = nats_server

    async def all(self) -> list[dict[str, Any]]:
        """Return every command so far."""
        async with Broker(_Operator(**self._nats_server.settings("operator"))) as broker:
            await broker.connected.wait()
            info = await ensure(broker.js, COMMANDS)
            messages = [
                await broker.js.get_msg(COMMANDS, sequence) for sequence in range(1, info.state.last_seq + 1)
            ]
        return [json.loads(message.data or b"{}") for message in messages]

    async def code(self, template: str, to: str, *, after: int = 0) -> str:
        """Wait for a mail of a kind to an address; return its code."""

        async def found() -> list[str]:
            return [
                command["data"]["values"]["code"]
                for command in await self.all()
                if (command["data"]["template"], command["data"]["to"]) == (template, to)
            ][after:]

        return (await eventually(found))[-1]


class _Operator(UsersSettings):
    key_encryption_key: Any = None
    database_url: Any = None


@pytest.fixture
def mails(nats_server: NATSServer) -> Mails:
    return Mails(nats_server)


async def me(client: httpx.AsyncClient) -> dict[str, Any]:
    response = await client.get("/v1/users/me")
    assert response.status_code == 200, response.text
    account: dict[str, Any] = response.json()
    return account


async def test_the_name_can_be_changed_and_cleared(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json={**ADA, "full_name": "Ada Lovelace"})
    await log_in(client)

    assert (await client.patch("/v1/users/me", json={})).json()["full_name"] == "Ada Lovelace"
    assert (await client.patch("/v1/users/me", json={"full_name": "Ada King"})).json()[
        "full_name"
    ] == "Ada King"
    assert (await client.patch("/v1/users/me", json={"full_name": None})).json()["full_name"] is None
    assert (await client.patch("/v1/users/me", json={"scopes": ["users:admin"]})).status_code == 422


async def test_registration_mails_a_code_that_verifies_the_address(
    client: httpx.AsyncClient, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)
    code = await mails.code("verify_email", ADA["email"])

    first = await client.post("/v1/users/verify-email/confirm", json={"code": code})
    second = await client.post("/v1/users/verify-email/confirm", json={"code": code})

    assert first.status_code == 204
    assert (await me(client))["email_verified"] is True
    assert (second.status_code, second.json()["code"]) == (400, "code_invalid")


async def test_a_new_address_counts_once_its_code_comes_back(client: httpx.AsyncClient, mails: Mails) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)

    assert (await client.post("/v1/users/me/email", json={"email": "king@example.com"})).status_code == 202
    assert (await me(client))["email"] == ADA["email"]
    code = await mails.code("change_email", "king@example.com")
    assert (await client.post("/v1/users/verify-email/confirm", json={"code": code})).status_code == 204

    account = await me(client)
    assert (account["email"], account["email_verified"]) == ("king@example.com", True)
    assert (await log_in(client)).status_code == 401
    assert (await log_in(client, username="King@example.com")).status_code == 200


async def test_an_address_that_was_taken_meanwhile_is_not_given_twice(
    client: httpx.AsyncClient, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)
    await client.post("/v1/users/me/email", json={"email": "king@example.com"})
    await client.post("/v1/users", json={**ADA, "email": "king@example.com"})

    code = await mails.code("change_email", "king@example.com")
    answer = await client.post("/v1/users/verify-email/confirm", json={"code": code})

    assert (answer.status_code, answer.json()["code"]) == (409, "email_taken")


async def test_a_forgotten_password_is_reset_once_and_all_sessions_end(
    client: httpx.AsyncClient, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)
    await client.post("/v1/users/password-reset", json={"email": "ADA@example.com"})
    reset = {"code": await mails.code("reset_password", ADA["email"]), "new_password": "a brand new password"}

    assert (await client.post("/v1/users/password-reset/confirm", json=reset)).status_code == 204
    assert (await client.post("/v1/users/password-reset/confirm", json=reset)).status_code == 400

    async def refused() -> bool:
        return (await client.get("/v1/users/me")).status_code == 401

    await eventually(refused)
    assert (await log_in(client)).status_code == 401
    assert (await log_in(client, password="a brand new password")).status_code == 200


async def test_only_the_last_code_is_good(client: httpx.AsyncClient, mails: Mails) -> None:
    await client.post("/v1/users", json=ADA)
    for _ in range(2):
        await client.post("/v1/users/password-reset", json={"email": ADA["email"]})
    last = await mails.code("reset_password", ADA["email"], after=1)
    first = next(
        command["data"]["values"]["code"]
        for command in await mails.all()
        if command["data"]["template"] == "reset_password"
    )

    for code, status in ((first, 400), (last, 204)):
        answer = await client.post(
            "/v1/users/password-reset/confirm", json={"code": code, "new_password": "a brand new password"}
        )
        assert answer.status_code == status


async def test_a_code_is_good_for_its_purpose_only(client: httpx.AsyncClient, mails: Mails) -> None:
    await client.post("/v1/users", json=ADA)
    code = await mails.code("verify_email", ADA["email"])

    answer = await client.post(
        "/v1/users/password-reset/confirm", json={"code": code, "new_password": "a brand new password"}
    )

    assert answer.json()["code"] == "code_invalid"


async def test_a_code_in_the_old_mailbox_is_void_once_the_address_changed(
    client: httpx.AsyncClient, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)
    await client.post("/v1/users/password-reset", json={"email": ADA["email"]})
    reset = await mails.code("reset_password", ADA["email"])
    verify = await mails.code("verify_email", ADA["email"])
    await client.post("/v1/users/me/email", json={"email": "king@example.com"})
    code = await mails.code("change_email", "king@example.com")
    await client.post("/v1/users/verify-email/confirm", json={"code": code})

    answers = [
        await client.post(
            "/v1/users/password-reset/confirm", json={"code": reset, "new_password": "a brand new password"}
        ),
        await client.post("/v1/users/verify-email/confirm", json={"code": verify}),
    ]

    assert [answer.json()["code"] for answer in answers] == ["code_invalid"] * 2
    assert (await log_in(client, username="king@example.com")).status_code == 200


async def test_a_new_password_voids_the_codes_that_would_set_another(
    client: httpx.AsyncClient, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    await log_in(client)
    await client.post("/v1/users/password-reset", json={"email": ADA["email"]})
    code = await mails.code("reset_password", ADA["email"])
    change = {"current_password": ADA["password"], "new_password": "an entirely new one"}
    assert (await client.post("/v1/users/me/password", json=change)).status_code == 204

    answer = await client.post(
        "/v1/users/password-reset/confirm", json={"code": code, "new_password": "a brand new password"}
    )

    assert answer.json()["code"] == "code_invalid"


async def test_an_expired_code_is_refused(settings: UsersSettings, mails: Mails) -> None:
    late = create_app(settings.model_copy(update={"code_ttl": -1}))
    async with serving(late) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.post("/v1/users", json=ADA)
        code = await mails.code("verify_email", ADA["email"])
        answer = await client.post("/v1/users/verify-email/confirm", json={"code": code})
    assert answer.json()["code"] == "code_invalid"


@pytest.mark.parametrize("path", ["/v1/users/verify-email", "/v1/users/password-reset"])
async def test_the_answer_does_not_say_whether_the_address_exists(
    client: httpx.AsyncClient, path: str
) -> None:
    await client.post("/v1/users", json=ADA)

    known = await client.post(path, json={"email": ADA["email"]})
    unknown = await client.post(path, json={"email": "nobody@example.com"})

    assert known.status_code == unknown.status_code == 202
    assert known.content == unknown.content
    assert known.headers.keys() == unknown.headers.keys()


@pytest.mark.parametrize("path", ["/v1/users/verify-email", "/v1/users/password-reset"])
async def test_the_answer_comes_before_anybody_looks_whether_the_address_exists(
    client: httpx.AsyncClient, app: FastAPI, mails: Mails, path: str
) -> None:
    await client.post("/v1/users", json=ADA)
    async with app.state.database.transaction() as session:
        # Whoever would so much as read accounts now has to wait.
        await session.execute(text("LOCK TABLE users, mailed_codes IN ACCESS EXCLUSIVE MODE"))
        known = await client.post(path, json={"email": ADA["email"]})
        unknown = await client.post(path, json={"email": "nobody@example.com"})
    assert (known.status_code, unknown.status_code) == (202, 202)

    async def all_dealt_with() -> bool:
        async with app.state.database.reading() as session:
            return not await session.scalar(text("SELECT count(*) FROM code_requests"))

    await eventually(all_dealt_with)
    template = "reset_password" if "reset" in path else "verify_email"
    await mails.code(template, ADA["email"], after=template == "verify_email")
    assert {command["data"]["to"] for command in await mails.all()} == {ADA["email"]}


async def test_a_request_for_a_code_outlives_the_process_that_took_it(
    settings: UsersSettings, client: httpx.AsyncClient, app: FastAPI, mails: Mails
) -> None:
    await client.post("/v1/users", json=ADA)
    gone = create_app(settings)
    async with app.state.database.transaction() as session:
        request = {"purpose": "reset_password", "email": ADA["email"]}
        await session.execute(
            text("INSERT INTO code_requests (purpose, email) VALUES (:purpose, :email)").bindparams(**request)
        )

    async with serving(gone):
        assert await mails.code("reset_password", ADA["email"])


async def test_one_account_cannot_mail_many_addresses(settings: UsersSettings, mails: Mails) -> None:
    slow = create_app(settings.model_copy(update={"code_interval": 60}))
    async with serving(slow) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.post("/v1/users", json=ADA)
        await log_in(client)
        answers = [
            await client.post("/v1/users/me/email", json={"email": f"friend{number}@example.com"})
            for number in range(3)
        ]
        await mails.code("change_email", "friend0@example.com")
        sent = [command["data"]["to"] for command in await mails.all()]

    assert [answer.status_code for answer in answers] == [202, 429, 429]
    assert answers[1].json()["code"] == "too_many_attempts"
    assert 0 < int(answers[1].headers["retry-after"]) <= 60
    assert sent == [ADA["email"], "friend0@example.com"]


async def test_mails_to_one_address_are_throttled(settings: UsersSettings, mails: Mails) -> None:
    slow = create_app(settings.model_copy(update={"code_interval": 60}))
    async with serving(slow) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.post("/v1/users", json=ADA)
        for _ in range(5):
            assert (
                await client.post("/v1/users/password-reset", json={"email": ADA["email"]})
            ).status_code == 202
        await mails.code("reset_password", ADA["email"])
        templates = [command["data"]["template"] for command in await mails.all()]
    assert sorted(templates) == ["reset_password", "verify_email"]


async def test_a_deleted_account_is_gone_and_everybody_is_told(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    user = (await client.post("/v1/users", json=ADA)).json()
    await log_in(client)

    assert (await client.delete("/v1/users/me")).status_code == 204

    async def refused() -> bool:
        return (await client.get("/v1/users/me")).status_code == 401

    await eventually(refused)
    assert (await log_in(client)).status_code == 401
    async with app.state.database.reading() as session:
        rows = await session.execute(text("SELECT subject FROM outbox ORDER BY id"))
        subjects = [row[0] for row in rows]
    assert f"events.users.user.deleted.{user['id']}" in subjects
    assert (await client.post("/v1/users", json=ADA)).status_code == 201


async def test_no_code_stays_in_the_outbox_or_the_log(
    client: httpx.AsyncClient, app: FastAPI, mails: Mails, capfd: pytest.CaptureFixture[str]
) -> None:
    await client.post("/v1/users", json=ADA)
    code = await mails.code("verify_email", ADA["email"])

    async def forgotten() -> bool:
        async with app.state.database.reading() as session:
            left = await session.scalar(text("SELECT count(*) FROM outbox WHERE subject LIKE 'commands.%'"))
        return bool(left == 0)

    await eventually(forgotten)
    output = capfd.readouterr()
    assert code not in output.out + output.err
