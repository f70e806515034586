"""Sending mail through the API: what is taken, what is refused, and who may see what became of it."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select, update

from notifications import service
from notifications.models import MailJob
from notifications.settings import NotificationsSettings
from shared.idempotency import KeptAnswer
from shared.outbox import OutboxRow
from shared.testing import TokenIssuer, eventually
from shared.times import utc_now

pytestmark = pytest.mark.integration

SEND = "notifications:send"
MAIL = {"to": "ada@example.com", "subject": "Hello", "body": "The compass arrived."}


@pytest.fixture
def settings(
    make_database: Callable[..., str], token_issuer: TokenIssuer, tmp_path: Path
) -> NotificationsSettings:
    """Settings under which NATS is nowhere: mail is taken and delivered all the same."""
    return NotificationsSettings(
        database_url=SecretStr(make_database(NotificationsSettings)),
        nats_url="nats://127.0.0.1:1",
        token_issuer=token_issuer.issuer,
        jwks_url=token_issuer.jwks_url,
        mail_dir=tmp_path / "mail",
    )


@pytest.fixture
def headers(token_issuer: TokenIssuer) -> dict[str, str]:
    return token_issuer.authorization(7, scope=SEND)


async def send(client: httpx.AsyncClient, headers: dict[str, str], **changes: Any) -> httpx.Response:
    # Encoded here: httpx cannot spell the lone surrogate that JSON can.
    return await client.post(
        "/v1/notifications/email",
        content=json.dumps({**MAIL, **changes}),
        headers={**headers, "Content-Type": "application/json"},
    )


async def delivered(settings: NotificationsSettings, job_id: int) -> EmailMessage:
    path = settings.mail_dir / f"{job_id}.eml"
    await eventually(path.is_file)
    message = message_from_bytes(path.read_bytes(), policy=default)
    assert isinstance(message, EmailMessage)
    assert message.defects == []
    return message


def refuse_deliveries(settings: NotificationsSettings) -> None:
    """Let a file stand where the mail folder should be."""
    settings.mail_dir.touch()


async def test_mail_is_queued_and_lands_on_disk(
    client: httpx.AsyncClient, settings: NotificationsSettings, headers: dict[str, str]
) -> None:
    response = await send(
        client, headers, subject="Grüße, 你好 ✉", body="Zeile eins – ü\n.\n\nFrom here\r\n你好"
    )

    assert response.status_code == 202
    job_id = response.json()["id"]
    assert response.json() == {"queued": True, "id": job_id}
    message = await delivered(settings, job_id)
    assert message["From"] == "Tollhouse <no-reply@localhost>"
    assert message["To"] == "ada@example.com"
    assert message["Subject"] == "Grüße, 你好 ✉"
    assert message["Message-ID"].startswith(f"<mail-{job_id}-")
    assert message["Date"].datetime.tzinfo is not None
    assert message.get_content().splitlines() == ["Zeile eins – ü", ".", "", "From here", "你好"]
    assert [path.name for path in settings.mail_dir.iterdir()] == [f"{job_id}.eml"]


async def test_mail_can_be_followed_by_its_sender_only(
    client: httpx.AsyncClient, headers: dict[str, str], token_issuer: TokenIssuer
) -> None:
    job_id = (await send(client, headers)).json()["id"]

    async def state() -> dict[str, Any] | None:
        found: dict[str, Any] = (
            await client.get(f"/v1/notifications/email/{job_id}", headers=headers)
        ).json()
        return found if found["state"] != "queued" else None

    ended = await eventually(state)
    assert ended["state"] == "sent"
    assert ended["attempts"] == 1
    assert ended["last_error"] is None
    assert ended["created_at"] <= ended["sent_at"]

    stranger = token_issuer.authorization(8, scope=SEND)
    for path, who in ((job_id, stranger), (job_id + 1, headers)):
        answer = await client.get(f"/v1/notifications/email/{path}", headers=who)
        assert (answer.status_code, answer.json()["code"]) == (404, "email_not_found")


async def test_sending_needs_a_token_with_the_scope(
    client: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    unknown = await send(client, {})
    assert (unknown.status_code, unknown.json()["code"]) == (401, "not_authenticated")
    assert unknown.headers["www-authenticate"].startswith("Bearer")

    reader = token_issuer.authorization(7, scope="notifications:read")
    for answer in (
        await send(client, reader),
        await client.get("/v1/notifications/email/1", headers=reader),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


BAD_SUBJECTS = [
    "a\r\nBcc: eve@example.com", "a\nb", "a\rb", "a\0b", "a\x0bb", "a\x0cb", "a\x1cb", "a\x1bb", "a\x7fb",
    "a\x85b", "a\u2028b", "a\u2029b", "\ud800", "", "x" * 201,
]  # fmt: skip


async def test_subject_that_could_end_its_header_is_refused(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    for subject in BAD_SUBJECTS:
        answer = await send(client, headers, subject=subject)

        assert answer.status_code == 422, ascii(subject)
        assert answer.json()["errors"][0]["pointer"] == "#/subject"


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"to": "nobody"}, "#/to"),
    ({"to": "a@example.com, b@example.com"}, "#/to"),
    ({"to": "a@example.com\r\nBcc: b@example.com"}, "#/to"),
    ({"to": f"{'x' * 250}@example.com"}, "#/to"),
    ({"to": ["a@example.com"]}, "#/to"),
    ({"body": ""}, "#/body"),
    ({"body": "x" * 100_001}, "#/body"),
    ({"body": "a\0b"}, "#/body"),
    ({"cc": "eve@example.com"}, "#/cc"),
]


async def test_bad_mail_is_refused_by_field(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    for changes, pointer in BAD_FIELDS:
        answer = await send(client, headers, **changes)

        assert answer.status_code == 422, changes
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_body_beyond_every_limit_is_too_large(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await send(client, headers, body="x" * 2_000_000)).status_code == 413


async def test_international_addresses_are_spelt_as_mail_servers_know_them(
    client: httpx.AsyncClient, settings: NotificationsSettings, headers: dict[str, str]
) -> None:
    domain = (await send(client, headers, to="ada@bücher.example.com")).json()["id"]
    local_part = (await send(client, headers, to="jörg@bücher.example.com")).json()["id"]

    assert (await delivered(settings, domain))["To"] == "ada@xn--bcher-kva.example.com"
    await delivered(settings, local_part)
    raw = (settings.mail_dir / f"{local_part}.eml").read_text(encoding="utf-8")
    assert "To: jörg@xn--bcher-kva.example.com" in raw


async def test_parallel_requests_cannot_pass_the_hourly_limit(
    app: FastAPI, client: httpx.AsyncClient, headers: dict[str, str], token_issuer: TokenIssuer
) -> None:
    app.state.settings = app.state.settings.model_copy(update={"mails_per_hour": 5})

    answers = await asyncio.gather(*(send(client, headers) for _ in range(15)))

    assert Counter(answer.status_code for answer in answers) == {202: 5, 429: 10}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "too_many_emails"
    assert 3590 <= int(refused.headers["retry-after"]) <= 3600
    assert (await send(client, token_issuer.authorization(8, scope=SEND))).status_code == 202

    async with app.state.database.transaction() as session:
        hour_ago = utc_now().replace(year=utc_now().year - 1)
        oldest = select(MailJob.id).where(MailJob.user_id == 7).limit(1).scalar_subquery()
        await session.execute(update(MailJob).where(MailJob.id == oldest).values(created_at=hour_ago))
    assert [(await send(client, headers)).status_code for _ in range(2)] == [202, 429]


async def test_an_address_gets_a_bounded_number_of_mails_whoever_sends_them(
    client: httpx.AsyncClient, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAILS_PER_RECIPIENT", 3)
    people = [token_issuer.authorization(user, scope=SEND) for user in range(1, 9)]

    answers = await asyncio.gather(*(send(client, me, to="Ada@example.com") for me in people))

    assert Counter(answer.status_code for answer in answers) == {202: 3, 429: 5}
    refused = await send(client, people[0], to="ada@EXAMPLE.com")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_emails")
    assert (await send(client, people[0], to="bob@example.com")).status_code == 202


async def test_with_a_mail_server_only_allowed_domains_can_be_written_to(
    app: FastAPI, client: httpx.AsyncClient, headers: dict[str, str], token_issuer: TokenIssuer
) -> None:
    policy = {
        "smtp_url": SecretStr("smtp://127.0.0.1:1"),
        "mail_allowed_domains": ("Example.COM", "xn--bcher-kva.example.com"),
    }
    app.state.settings = app.state.settings.model_copy(update=policy)
    anyone = token_issuer.authorization(7, scope=f"{SEND} notifications:send_any")

    for to, status in (
        ("ada@EXAMPLE.com", 202),
        ("ada@bücher.example.com", 202),
        ("ada@example.org", 403),
        ("ada@sub.example.com", 403),
        ("ada@notexample.com", 403),
        ('"x@example.com"@example.org', 422),
    ):
        assert (await send(client, headers, to=to)).status_code == status, to
    refused = await send(client, headers, to="ada@example.org")
    assert refused.json()["code"] == "recipient_not_allowed"
    assert "example.org" not in refused.text
    assert (await send(client, anyone, to="ada@example.org")).status_code == 202


async def test_folder_that_cannot_be_written_is_tried_again_and_keeps_its_path_to_itself(
    client: httpx.AsyncClient, settings: NotificationsSettings, headers: dict[str, str]
) -> None:
    refuse_deliveries(settings)
    job_id = (await send(client, headers)).json()["id"]

    async def delayed() -> dict[str, Any] | None:
        found: dict[str, Any] = (
            await client.get(f"/v1/notifications/email/{job_id}", headers=headers)
        ).json()
        return found if found["last_error"] else None

    found = await eventually(delayed)

    assert found["state"] == "queued"
    assert found["last_error"] == "the mail folder cannot be written"


async def test_events_say_neither_who_nor_what(
    app: FastAPI, client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    await send(client, headers, subject="a secret subject", body="a secret body")

    async def events() -> list[bytes]:
        async with app.state.database.reading() as session:
            return list(await session.scalars(select(OutboxRow.payload)))

    (payload,) = await eventually(events)

    assert b"notifications.email.sent.v1" in payload
    assert b"secret" not in payload
    assert b"ada@" not in payload


@pytest.mark.parametrize("sender", ["nobody", "a@example.com, b@example.com", "x\nBcc: a@example.com", ""])
def test_sender_that_is_not_one_address_is_no_setting(sender: str) -> None:
    with pytest.raises(ValueError, match="must be one address"):
        NotificationsSettings(database_url=SecretStr("postgresql://x@127.0.0.1/x"), mail_from=sender)


async def test_a_mail_with_an_idempotency_key_is_sent_once(
    client: httpx.AsyncClient, app: FastAPI, settings: NotificationsSettings, headers: dict[str, str]
) -> None:
    keyed = {**headers, "Idempotency-Key": "8e03978e"}
    first = await send(client, keyed)
    again = await send(client, keyed)

    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    reused = await send(client, keyed, subject="Another")
    assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
    await delivered(settings, first.json()["id"])
    async with app.state.database.reading() as session:
        assert len((await session.scalars(select(MailJob.id))).all()) == 1
        assert len((await session.scalars(select(KeptAnswer.key))).all()) == 1
    async with app.state.database.transaction() as session:
        await service.forget(session, user_id=7)
    async with app.state.database.reading() as session:
        assert (await session.scalars(select(KeptAnswer.key))).all() == []
