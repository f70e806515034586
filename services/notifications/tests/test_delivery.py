"""Delivery of stored mails: to SMTP servers good and bad, by mailers that share the work, crash or are stopped."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiosmtpd import smtp
from pydantic import SecretStr
from sqlalchemy import func, select, update

from notifications import mailer
from notifications.mailer import Deferred, Mailer, SMTPServer, transport
from notifications.models import MailJob
from notifications.settings import NotificationsSettings
from shared.database import Database
from shared.outbox import OutboxRow
from shared.tasks import running
from shared.testing import eventually, free_port

pytestmark = pytest.mark.integration

SENT = "notifications.email.sent.v1"
FAILED = "notifications.email.failed.v1"


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    return make_database(NotificationsSettings)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(NotificationsSettings(database_url=SecretStr(database_url)))
    yield database
    await database.close()


async def queue(database: Database, count: int = 1, *, recipient: str = "ada@example.com") -> None:
    async with database.transaction() as session:
        session.add_all(
            MailJob(user_id=7, recipient=recipient, subject=f"Nr. {number} ü", body="Hello\n.dot\n")
            for number in range(count)
        )


async def jobs(database: Database) -> list[MailJob]:
    async with database.reading() as session:
        return list(await session.scalars(select(MailJob).order_by(MailJob.id)))


async def the_job(database: Database) -> MailJob:
    (job,) = await jobs(database)
    return job


async def outcomes(database: Database) -> list[str]:
    """Return the types of the events that told of mails."""
    async with database.reading() as session:
        payloads = await session.scalars(select(OutboxRow.payload).order_by(OutboxRow.id))
        return [orjson.loads(payload)["type"] for payload in payloads]


async def make_due(database: Database) -> None:
    """Let the time of the next attempt come."""
    async with database.transaction() as session:
        await session.execute(update(MailJob).values(next_attempt_at=func.now() - timedelta(seconds=1)))


def mailer_of(database: Database, port: int) -> Mailer:
    server = SMTPServer(f"smtp://127.0.0.1:{port}")
    return Mailer(database, server, sender="Tollhouse <no-reply@localhost>")


class Inbox:
    """What an SMTP server has taken; replies other than 250 can be set by command, as many as are listed."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.replies: dict[str, list[str]] = {}

    def _reply(self, command: str) -> str:
        replies = self.replies.get(command)
        return replies.pop(0) if replies else "250 OK"

    async def handle_RCPT(  # noqa: N802  # the name is aiosmtpd's
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        reply = self._reply("RCPT")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  # likewise
        reply = self._reply("DATA")
        if reply.startswith("250"):
            self.mails.append(envelope)
        return reply


@asynccontextmanager
async def listening(factory: Callable[[], asyncio.Protocol], port: int = 0) -> AsyncIterator[int]:
    """Serve a protocol on a real socket; yields the port."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
async def smtp_port(inbox: Inbox) -> AsyncIterator[int]:
    async with listening(partial(smtp.SMTP, inbox, hostname="mx.test", enable_SMTPUTF8=True)) as port:
        yield port


HANG: bytes = b""
"""No reply, ever."""
DROP = None
"""No reply but the end of the connection."""


@asynccontextmanager
async def scripted(replies: Mapping[str, bytes | None]) -> AsyncIterator[tuple[int, Counter[str]]]:
    """An SMTP server that misbehaves as told, by command; `.` is the end of a mail. Yields its port and a count."""
    seen: Counter[str] = Counter()
    usual = {"connect": b"220 mx.test\r\n", "EHLO": b"250 mx.test\r\n", "DATA": b"354 go on\r\n"}

    async def reply(writer: asyncio.StreamWriter, command: str) -> None:
        seen[command] += 1
        answer = replies.get(command, usual.get(command, b"250 OK\r\n"))
        if answer is None:
            raise ConnectionResetError
        writer.write(answer)
        await writer.drain()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        in_mail = False
        with suppress(ConnectionError):
            await reply(writer, "connect")
            while line := (await reader.readline()).strip():
                command = line[:4].decode().upper()
                if in_mail and line != b".":
                    continue
                in_mail = command == "DATA"
                await reply(writer, command)
            while in_mail and (line := await reader.readline()):
                if line.strip() == b".":
                    in_mail = False
                    await reply(writer, ".")
            while line := await reader.readline():
                await reply(writer, line[:4].decode().upper().strip())
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


async def test_server_takes_the_mail(database: Database, inbox: Inbox, smtp_port: int) -> None:
    await queue(database)

    assert await mailer_of(database, smtp_port).deliver_next()

    (mail,) = inbox.mails
    assert mail.mail_from == "no-reply@localhost"
    assert mail.rcpt_tos == ["ada@example.com"]
    assert b"Subject: Nr. 0 =?utf-8?" in mail.content
    assert b"\r\n\r\nHello\r\n.dot\r\n" in mail.content
    job = await the_job(database)
    assert (job.state, job.attempts, job.last_error) == ("sent", 1, None)
    assert job.sent_at is not None
    assert await outcomes(database) == [SENT]
    assert not await mailer_of(database, smtp_port).deliver_next()


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
async def test_refused_mail_has_failed_for_good(
    database: Database, inbox: Inbox, smtp_port: int, command: str
) -> None:
    await queue(database)
    inbox.replies[command] = ["550 5.1.1 no such mailbox"]

    await mailer_of(database, smtp_port).deliver_next()

    job = await the_job(database)
    assert (job.state, job.attempts, job.last_error) == ("failed", 1, "550 5.1.1 no such mailbox")
    assert job.sent_at is None
    assert inbox.mails == []
    assert await outcomes(database) == [FAILED]


@pytest.mark.parametrize("command", ["RCPT", "DATA"])
async def test_greylisted_mail_is_sent_later(
    database: Database, inbox: Inbox, smtp_port: int, command: str
) -> None:
    await queue(database)
    inbox.replies[command] = ["451 4.7.1 come back later"]
    mail = mailer_of(database, smtp_port)

    assert await mail.deliver_next()

    job = await the_job(database)
    assert (job.state, job.last_error) == ("queued", "451 4.7.1 come back later")
    assert not await mail.deliver_next(), "it waits before it tries again"
    assert await outcomes(database) == []

    await make_due(database)
    assert await mail.deliver_next()
    job = await the_job(database)
    assert (job.state, job.attempts, job.last_error) == ("sent", 2, None)
    assert len(inbox.mails) == 1


async def test_attempts_come_to_an_end(database: Database, inbox: Inbox, smtp_port: int) -> None:
    await queue(database)
    inbox.replies["RCPT"] = ["451 later"] * 20
    mail = mailer_of(database, smtp_port)

    attempts = 0
    while await mail.deliver_next():
        attempts += 1
        await make_due(database)

    job = await the_job(database)
    assert attempts == job.attempts == mailer.MAX_ATTEMPTS
    assert (job.state, job.last_error) == ("failed", "given up after 8 attempts: 451 later")
    assert await outcomes(database) == [FAILED]


async def test_waits_between_attempts_grow(database: Database) -> None:
    await queue(database)
    mail = mailer_of(database, free_port())
    waits: list[float] = []
    for _ in range(mailer.MAX_ATTEMPTS - 1):
        await make_due(database)
        await mail.deliver_next()
        async with database.reading() as session:
            left = await session.scalar(select(MailJob.next_attempt_at - func.now()))
        assert left is not None
        waits.append(left.total_seconds())

    assert [round(wait, -1) for wait in waits[2:]] == [120, 600, 1800, 3600, 7200]


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ({"connect": DROP}, "the mail server is not available"),
        ({"connect": b"554 not today\r\n"}, "the mail server is not available"),
        ({"connect": b"421 too busy\r\n"}, "the mail server is not available"),
        ({"EHLO": DROP}, "the mail server is not available"),
        ({"MAIL": DROP}, "the connection to the mail server broke"),
        ({"RCPT": DROP}, "the connection to the mail server broke"),
        ({".": DROP}, "the connection to the mail server broke"),
        ({".": b"421 closing\r\n"}, "421 closing"),
        ({"RCPT": b"450 caf\xe9 \x00\x07\r\n"}, "450 caf"),
        ({"RCPT": b"450 " + b"x" * 400 + b"\r\n"}, "450 " + "x" * 400),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value)[:40],
)
async def test_trouble_with_the_server_is_no_fault_of_the_mail(
    database: Database, replies: dict[str, bytes | None], error: str
) -> None:
    await queue(database)
    async with scripted(replies) as (port, _):
        await mailer_of(database, port).deliver_next()

    job = await the_job(database)
    assert (job.state, job.attempts, job.last_error) == ("queued", 1, error)


@pytest.mark.parametrize("command", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "."])
async def test_server_that_hangs_costs_a_bounded_time(
    database: Database, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(mailer, "ATTEMPT_TIMEOUT", 0.3)
    await queue(database)
    async with scripted({command: HANG}) as (port, _):
        await mailer_of(database, port).deliver_next()

    job = await the_job(database)
    assert (job.state, job.last_error) == ("queued", "the mail server did not answer in time")


@pytest.mark.parametrize("farewell", [HANG, DROP, b"500 what?\r\n", b"nonsense\r\n"])
async def test_mail_is_sent_once_however_the_server_says_goodbye(
    database: Database, monkeypatch: pytest.MonkeyPatch, farewell: bytes | None
) -> None:
    monkeypatch.setattr(mailer, "QUIT_TIMEOUT", 0.1)
    await queue(database)
    async with scripted({"QUIT": farewell}) as (port, seen):
        await mailer_of(database, port).deliver_next()

    assert (await the_job(database)).state == "sent"
    assert seen["."] == 1


async def test_refused_login_may_be_put_right(database: Database, inbox: Inbox, smtp_port: int) -> None:
    """The server offers no login at all: nothing that a mail could be blamed for."""
    await queue(database)
    server = SMTPServer(f"smtp://someone:p%40ss@127.0.0.1:{smtp_port}")
    await Mailer(database, server, sender="no-reply@localhost").deliver_next()

    job = await the_job(database)
    assert (job.state, job.last_error) == ("queued", "the mail server is not available")
    assert inbox.mails == []


async def test_international_address_needs_a_server_that_takes_it(
    database: Database, inbox: Inbox, smtp_port: int
) -> None:
    await queue(database, recipient="jörg@example.com")
    await mailer_of(database, smtp_port).deliver_next()
    assert inbox.mails[0].rcpt_tos == ["jörg@example.com"]

    await queue(database, recipient="jörg@example.com")
    async with listening(partial(smtp.SMTP, inbox, hostname="mx.test")) as port:
        await mailer_of(database, port).deliver_next()

    sent, failed = await jobs(database)
    assert (sent.state, failed.state) == ("sent", "failed")
    assert failed.last_error == "the mail server does not take addresses like this one"


async def test_mail_that_cannot_be_put_together_holds_up_no_other(
    database: Database, smtp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with database.transaction() as session:  # as an earlier release might have stored it
        session.add(MailJob(user_id=7, recipient="ada@example.com", subject="secret\u2028subject", body="x"))
    await queue(database)
    mail = mailer_of(database, smtp_port)

    assert [await mail.deliver_next(), await mail.deliver_next()] == [True, True]

    broken, good = await jobs(database)
    assert (broken.state, broken.last_error) == ("queued", "the mail could not be handed over")
    assert good.state == "sent"
    logged = capsys.readouterr().out
    assert "mail.attempt_failed" in logged
    assert "secret" not in logged
    assert "ada@" not in logged


async def test_server_that_is_away_gets_the_mail_when_it_is_back(database: Database, inbox: Inbox) -> None:
    port = free_port()
    mail = mailer_of(database, port)
    await queue(database)
    async with running(mail.run()):
        await eventually(lambda: _attempted(database))
        async with listening(partial(smtp.SMTP, inbox, hostname="mx.test"), port):
            await make_due(database)
            mail.queued.set()
            await eventually(lambda: inbox.mails)
            await eventually(lambda: _all_in_state(database, "sent"))

    assert len(inbox.mails) == 1


async def _attempted(database: Database) -> bool:
    return (await the_job(database)).last_error is not None


async def _all_in_state(database: Database, state: str) -> bool:
    return {job.state for job in await jobs(database)} == {state}


async def test_mailers_share_the_work_and_send_nothing_twice(
    database: Database, inbox: Inbox, smtp_port: int
) -> None:
    await queue(database, 30)

    async with running(*(mailer_of(database, smtp_port).run() for _ in range(4))):
        await eventually(lambda: _all_in_state(database, "sent"))

    assert len(inbox.mails) == 30
    assert await outcomes(database) == [SENT] * 30
    assert {job.attempts for job in await jobs(database)} == {1}


async def test_mail_of_a_killed_mailer_is_delivered_by_the_next(
    database: Database, database_url: str, inbox: Inbox, smtp_port: int
) -> None:
    await queue(database)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("crashing_mailer.py")),
        env={**os.environ, "NOTIFICATIONS_DATABASE_URL": database_url},
    )
    assert await process.wait() == -signal.SIGKILL
    assert inbox.mails == []

    async with running(mailer_of(database, smtp_port).run()):
        await eventually(lambda: _all_in_state(database, "sent"))

    assert (await the_job(database)).attempts == 2
    assert len(inbox.mails) == 1


async def test_mail_that_kills_its_mailers_is_given_up(
    database: Database, inbox: Inbox, smtp_port: int
) -> None:
    await queue(database)
    async with database.transaction() as session:
        await session.execute(update(MailJob).values(attempts=mailer.MAX_ATTEMPTS))

    await mailer_of(database, smtp_port).deliver_next()

    job = await the_job(database)
    assert (job.state, job.last_error) == ("failed", "given up after 8 attempts")
    assert inbox.mails == []
    assert await outcomes(database) == [FAILED]


class Held:
    """A transport that holds each mail until it is let go, and then does as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sending = asyncio.Event()
        self.let_go = asyncio.Event()
        self._error = error

    async def send(self, message: EmailMessage, *, job_id: int) -> None:  # noqa: ARG002  # a transport's signature
        self.sending.set()
        await self.let_go.wait()
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("error", [None, Deferred("late")])
async def test_mailer_that_lost_its_lease_has_no_say_any_more(
    database: Database, inbox: Inbox, smtp_port: int, error: Exception | None
) -> None:
    await queue(database)
    held = Held(error)
    late = asyncio.create_task(Mailer(database, held, sender="no-reply@localhost").deliver_next())
    await held.sending.wait()
    await make_due(database)
    await mailer_of(database, smtp_port).deliver_next()

    held.let_go.set()
    await late

    job = await the_job(database)
    assert (job.state, job.attempts, job.last_error) == ("sent", 2, None)
    assert await outcomes(database) == [SENT]
    assert len(inbox.mails) == 1


async def test_mail_on_its_way_is_finished_when_the_mailer_stops(database: Database) -> None:
    await queue(database, 2)
    held = Held()
    work = asyncio.create_task(Mailer(database, held, sender="no-reply@localhost").run())
    await held.sending.wait()

    work.cancel()
    held.let_go.set()
    await asyncio.wait({work})

    assert work.cancelled()
    assert [job.state for job in await jobs(database)] == ["sent", "queued"]


async def test_mailer_stops_in_time_though_the_server_hangs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailer, "FINISH_TIMEOUT", 0.05)
    await queue(database)
    held = Held()
    work = asyncio.create_task(Mailer(database, held, sender="no-reply@localhost").run())
    await held.sending.wait()

    work.cancel()
    await asyncio.wait({work}, timeout=5)

    assert work.cancelled()
    job = await the_job(database)
    assert (job.state, job.attempts) == ("queued", 1)


async def test_mailer_survives_a_database_that_is_away(
    database: Database, inbox: Inbox, smtp_port: int
) -> None:
    nowhere = Database(NotificationsSettings(database_url=SecretStr("postgresql://x:y@127.0.0.1:1/x")))
    mail = mailer_of(nowhere, smtp_port)
    async with running(mail.run()):
        await eventually(lambda: not mail.queued.is_set())
        mail.queued.set()
        await eventually(lambda: not mail.queued.is_set())  # it came round again
        mail._database = database
        await queue(database)
        await eventually(lambda: inbox.mails)
        await eventually(lambda: _all_in_state(database, "sent"))
    await nowhere.close()


@pytest.mark.parametrize(
    ("url", "port", "implicit_tls"),
    [
        ("smtp://mx.example.com", 25, False),
        ("smtp://mx.example.com:587", 587, False),
        ("smtps://u:p%3A%2F@mx.example.com", 465, True),
    ],
)
def test_smtp_url_says_how_to_connect(url: str, port: int, implicit_tls: bool) -> None:
    settings = NotificationsSettings(
        database_url=SecretStr("postgresql://x@127.0.0.1/x"), smtp_url=SecretStr(url)
    )

    server = transport(settings)

    assert isinstance(server, SMTPServer)
    assert (server._hostname, server._port, server._implicit_tls) == ("mx.example.com", port, implicit_tls)
    assert server._password in {None, "p:/"}
