"""Mails at another service's command, and what becomes of a deleted account's things."""

import email
import email.policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI
from nats.js.errors import NotFoundError
from pydantic import Field, SecretStr
from sqlalchemy import select, text

from notifications import service
from notifications.models import MailJob, VerifiedAddress
from notifications.settings import NotificationsSettings
from notifications.templates import SUBJECTS, Template, render
from shared.broker import Broker
from shared.events import Command
from shared.ids import new_id
from shared.outbox import OutboxRow
from shared.streams import DEAD, ensure
from shared.testing import TokenIssuer, eventually
from stack.testing import NATSServer, Publisher

from .conftest import UserDeleted, UserRegistered

CODE = "pSqOH3uB1n0zP1Jm8QxR2w"


class SendMail(Command):
    type: ClassVar[str] = "notifications.mail.send.v1"
    sender: ClassVar[str] = "users"

    user_id: int = 7
    to: str = "ada@example.com"
    template: str = "verify_email"
    values: dict[str, str | int] = Field(default={"code": CODE, "minutes": 30})

    def aggregate_id(self) -> str:
        return new_id()


class AddressVerified(Command):
    type: ClassVar[str] = "notifications.address.verified.v1"
    sender: ClassVar[str] = "users"

    user_id: int = 7
    email: str = "ada@bücher.example.com"
    version: int = 2

    def aggregate_id(self) -> int:
        return self.user_id


@pytest.mark.parametrize("template", SUBJECTS)
def test_every_template_has_text_and_html_with_the_code(template: Template) -> None:
    mail = render(template, {"code": "<b>&", "minutes": 30})

    assert "<b>&" in mail.text
    assert "&lt;b&gt;&amp;" in mail.html
    assert "30 minutes" in mail.text
    assert "30 minutes" in mail.html


@pytest.mark.integration
async def test_a_command_becomes_one_mail_with_text_and_html(
    client: httpx.AsyncClient,
    publisher: Publisher,
    settings: NotificationsSettings,
    token_issuer: TokenIssuer,
) -> None:
    command_id = new_id()
    for _ in range(2):
        await publisher.publish(SendMail(), event_id=command_id)

    [path] = await eventually(lambda: list(settings.mail_dir.glob("*.eml")))
    mail = _read(path)

    assert (mail["To"], mail["Subject"]) == ("ada@example.com", "Verify your address")
    for kind in ("plain", "html"):
        part = mail.get_body((kind,))
        assert part is not None
        assert CODE in part.get_content()
    assert len(list(settings.mail_dir.glob("*.eml"))) == 1
    answer = await client.get(
        f"/v1/notifications/email/{path.stem}",
        headers=token_issuer.authorization(7, scope="notifications:send"),
    )
    assert answer.status_code == 404, "a mail that the person did not write"


def _read(path: Path) -> EmailMessage:
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


@pytest.mark.integration
@pytest.mark.parametrize("change", [{"template": "unknown"}, {"to": "nobody"}, {"values": {"minutes": 1}}])
async def test_a_command_that_cannot_be_followed_is_set_aside_without_its_secret(
    client: httpx.AsyncClient,  # noqa: ARG001  # the service runs
    nats_server: NATSServer,
    publisher: Publisher,
    change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.consumer.MAX_DELIVERIES", 2)
    monkeypatch.setattr("shared.consumer.BACKOFF", (0.05,))
    await publisher.publish(SendMail(**change))
    settings = NotificationsSettings.model_construct(
        nats_url=nats_server.url,
        nats_user="operator",
        nats_password=nats_server.settings("operator")["nats_password"],
    )
    async with Broker(settings) as broker:
        await broker.connected.wait()

        async def dead() -> bytes | None:
            await ensure(broker.js, DEAD)
            try:
                message = await broker.js.get_last_msg(DEAD, "dead.notifications.notifications-commands")
            except NotFoundError:
                return None
            return (message.data or b"") + str(message.headers).encode()

        message = await eventually(dead)
        assert message is not None
        assert CODE.encode() not in message


@pytest.mark.integration
async def test_what_is_held_of_a_deleted_account_is_deleted(
    client: httpx.AsyncClient, app: FastAPI, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    await publisher.publish(UserRegistered(id=7))
    await publisher.publish(UserRegistered(id=8))
    await client.post(
        "/v1/notifications/email",
        json={"to": "bob@example.com", "subject": "x", "body": "y"},
        headers=token_issuer.authorization(7, scope="notifications:send"),
    )
    await publisher.publish(UserDeleted(id=7, version=2))

    async def forgotten() -> bool:
        async with app.state.database.reading() as session:
            left = await session.execute(
                text("SELECT user_id FROM notifications UNION ALL SELECT user_id FROM mail_jobs")
            )
            return [row[0] for row in left] == [8]

    await eventually(forgotten)


@pytest.mark.integration
@pytest.mark.usefixtures("client")
async def test_nobody_is_flooded_with_mails_at_a_command(
    app: FastAPI, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAILS_PER_RECIPIENT", 2)
    for to in ("ada@example.com", "Ada@Example.com", "ADA@example.com", "bob@example.com"):
        await publisher.publish(SendMail(to=to))

    async def ended() -> list[tuple[str, str | None]] | None:
        async with app.state.database.reading() as session:
            jobs = (await session.scalars(select(MailJob).order_by(MailJob.id))).all()
        done = [(job.state, job.last_error) for job in jobs if job.state != "queued"]
        return done if len(done) == 4 else None

    assert await eventually(ended) == [
        ("sent", None), ("sent", None), ("failed", "too many mails to this address"), ("sent", None),
    ]  # fmt: skip
    async with app.state.database.reading() as session:
        payloads = b"".join(await session.scalars(select(OutboxRow.payload)))
    assert payloads.count(b'"notifications.email.failed.v1"') == 1


@pytest.mark.integration
async def test_with_a_mail_server_a_person_may_write_to_the_own_verified_address(
    app: FastAPI, client: httpx.AsyncClient, publisher: Publisher, token_issuer: TokenIssuer
) -> None:
    app.state.settings = app.state.settings.model_copy(update={"smtp_url": SecretStr("smtp://127.0.0.1:1")})

    async def status(user: int, to: str) -> int:
        me = token_issuer.authorization(user, scope="notifications:send")
        mail = {"to": to, "subject": "x", "body": "x"}
        return (await client.post("/v1/notifications/email", json=mail, headers=me)).status_code

    async def known(email: str, version: int) -> bool:
        async with app.state.database.reading() as session:
            found = await session.get(VerifiedAddress, 7)
        return found is not None and (found.email, found.version) == (email, version)

    assert await status(7, "ada@bücher.example.com") == 403
    await publisher.publish(AddressVerified())
    await eventually(lambda: known("ada@xn--bcher-kva.example.com", 2))
    assert await status(7, "Ada@bücher.example.com") == 202
    assert await status(7, "bob@bücher.example.com") == 403
    assert await status(8, "ada@bücher.example.com") == 403, "it is another's"

    await publisher.publish(AddressVerified(email="ada@example.org", version=4))
    await publisher.publish(AddressVerified(email="ada@late.example.org", version=3))  # overtaken
    await publisher.publish(AddressVerified(user_id=9))
    await eventually(lambda: known("ada@example.org", 4))
    assert await status(7, "ada@example.org") == 202

    await publisher.publish(UserDeleted(id=7))

    async def forgotten() -> bool:
        async with app.state.database.reading() as session:
            return await session.get(VerifiedAddress, 7) is None

    await eventually(forgotten)
