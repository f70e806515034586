"""Delivers stored mails: claimed by a lease, sent by SMTP or written to a folder, tried again when that may help."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import SQLAlchemyError

from notifications.events import MailFailed, MailSent
from notifications.models import MailJob
from notifications.settings import NotificationsSettings
from shared import outbox
from shared.database import Database
from shared.logs import get_logger
from shared.times import utc_now

log = get_logger(__name__)

SWEEP_INTERVAL = 1.0
"""Seconds after which due mails are looked for; also how late a retry may be."""
LEASE = timedelta(seconds=120)
"""How long a claimed mail belongs to its worker: longer than one attempt can take."""
ATTEMPT_TIMEOUT = 60.0
"""Seconds that a mail server has for one mail, from the connection to the last reply."""
QUIT_TIMEOUT = 2.0
"""Seconds that are spent on a polite end; the mail is delivered by then."""
FINISH_TIMEOUT = 5.0
"""Seconds that a mail on its way has when the mailer stops; then it is left to the next, after its lease."""
MAX_REASON = 500
"""Characters of a server's reply that are kept."""
MAX_ATTEMPTS = 8
BACKOFF = (5, 30, 120, 600, 1800, 3600, 7200)
"""Seconds until the next attempt, by number of attempts so far."""


class Rejected(Exception):
    """This mail will never be accepted. The text is shown to its sender."""


class Deferred(Exception):
    """This attempt failed, a later one may not. The text is shown to the mail's sender."""


class Transport(Protocol):
    """A way that mails leave the system."""

    async def send(self, message: EmailMessage, *, job_id: int) -> None:
        """Deliver one mail.

        Raises:
            Rejected: it will never be accepted.
            Deferred: it may be, later.
        """


class Folder:
    """Writes each mail to `<id>.eml`: the default, so that nothing leaves the machine by accident."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def send(self, message: EmailMessage, *, job_id: int) -> None:
        """Write the mail; a second delivery of a job replaces the first."""
        try:
            await asyncio.to_thread(self._write, bytes(message), job_id)
        except OSError as error:
            log.warning("mail.folder_failed", error=str(error))
            raise Deferred("the mail folder cannot be written") from error

    def _write(self, content: bytes, job_id: int) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        draft = self._path / f".{job_id}.eml.part"
        draft.write_bytes(content)
        draft.replace(self._path / f"{job_id}.eml")


class SMTPServer:
    """Hands each mail to an SMTP server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._hostname = parts.hostname or "localhost"
        self._implicit_tls = parts.scheme == "smtps"
        self._port = parts.port or (465 if self._implicit_tls else 25)
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None

    async def send(self, message: EmailMessage, *, job_id: int) -> None:  # noqa: ARG002  # the folder needs it
        """Send one mail over a connection of its own."""
        client = aiosmtplib.SMTP(
            hostname=self._hostname,
            port=self._port,
            username=self._username,
            password=self._password,
            use_tls=self._implicit_tls,
            timeout=ATTEMPT_TIMEOUT,
        )
        try:
            # aiosmtplib limits each command: a server that trickles could outlast the lease.
            async with asyncio.timeout(ATTEMPT_TIMEOUT):
                await _connect(client)
                await _send(client, message)
            # Not `async with client`: the mail is sent, whatever becomes of the farewell.
            with suppress(aiosmtplib.SMTPException, OSError):
                await client.quit(timeout=QUIT_TIMEOUT)
        except TimeoutError as error:
            log.warning("smtp.timeout", timeout_s=ATTEMPT_TIMEOUT)
            raise Deferred("the mail server did not answer in time") from error
        finally:
            client.close()


async def _connect(client: aiosmtplib.SMTP) -> None:
    """Connect and log in. No refusal here speaks of a mail: even a wrong password may be put right."""
    try:
        await client.connect()
    except TimeoutError:
        raise
    except (aiosmtplib.SMTPException, OSError) as error:
        log.warning("smtp.unavailable", error=str(error) or type(error).__name__)
        raise Deferred("the mail server is not available") from error


async def _send(client: aiosmtplib.SMTP, message: EmailMessage) -> None:
    try:
        await client.send_message(message)
    except TimeoutError:
        raise
    except aiosmtplib.SMTPRecipientsRefused as error:
        (refused,) = error.recipients
        raise _refusal(refused.code, refused.message) from error
    except aiosmtplib.SMTPResponseException as error:
        raise _refusal(error.code, error.message) from error
    except aiosmtplib.SMTPNotSupported as error:
        raise Rejected("the mail server does not take addresses like this one") from error
    except (aiosmtplib.SMTPException, OSError) as error:
        raise Deferred("the connection to the mail server broke") from error


def _refusal(code: int, reply: str) -> Rejected | Deferred:
    """Say what the server replied, as text that can be stored: a server may send any bytes."""
    printable = "".join(character if character.isprintable() else " " for character in reply)
    reason = f"{code} {' '.join(printable.split())}"[:MAX_REASON]
    return Rejected(reason) if 500 <= code < 600 else Deferred(reason)


def transport(settings: NotificationsSettings) -> Transport:
    """Return SMTP where a server is set, else the folder."""
    if settings.smtp_url is None:
        return Folder(settings.mail_dir)
    return SMTPServer(settings.smtp_url.get_secret_value())


class Mailer:
    """Delivers due mails one after the other; several replicas share the work."""

    def __init__(self, database: Database, transport: Transport, *, sender: str) -> None:
        self._database = database
        self._transport = transport
        self._sender = sender
        self.queued = asyncio.Event()
        """Set after a commit that stored a mail."""

    async def run(self) -> None:
        """Run until cancelled. A mail on its way is finished first."""
        while True:
            try:
                while await _finished(self.deliver_next()):
                    pass
            except (SQLAlchemyError, OSError) as error:
                log.warning("mail.interrupted", error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_INTERVAL):
                    await self.queued.wait()
            self.queued.clear()

    async def deliver_next(self) -> bool:
        """Try to deliver one due mail; say whether there was one."""
        job = await self._claim()
        if job is None:
            return False
        if (
            job.attempts > MAX_ATTEMPTS
        ):  # no attempt came to an end: perhaps it is this mail that ends mailers
            await self._finish(job, error=f"given up after {MAX_ATTEMPTS} attempts")
            return True
        try:
            await self._transport.send(compose(job, sender=self._sender), job_id=job.id)
        except Rejected as error:
            await self._finish(job, error=str(error))
        except Deferred as error:
            await self._try_again_later(job, error=str(error))
        except Exception as error:  # noqa: BLE001  # one mail must not end the service, nor stand in a log
            log.error("mail.attempt_failed", job=job.id, error=type(error).__name__)  # noqa: TRY400
            await self._try_again_later(job, error="the mail could not be handed over")
        else:
            await self._finish(job)
        return True

    async def _claim(self) -> MailJob | None:
        due = (
            select(MailJob)
            .where(MailJob.state == "queued", MailJob.next_attempt_at <= utc_now())
            .order_by(MailJob.next_attempt_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        async with self._database.transaction() as session:
            job = await session.scalar(due)
            if job is not None:
                job.attempts += 1
                job.next_attempt_at = utc_now() + LEASE
            return job

    async def _finish(self, job: MailJob, *, error: str | None = None) -> None:
        outcome = MailSent if error is None else MailFailed
        async with self._database.transaction() as session:
            ended = await session.scalar(
                update(MailJob)
                .where(*_still_claimed(job))
                .values(
                    state="sent" if error is None else "failed",
                    last_error=error,
                    sent_at=utc_now() if error is None else None,
                )
                .returning(MailJob.id)
            )
            if ended is not None:
                await outbox.add(session, outcome.of(job))
        log.info("mail.sent" if error is None else "mail.failed", job=job.id, attempts=job.attempts)

    async def _try_again_later(self, job: MailJob, *, error: str) -> None:
        if job.attempts >= MAX_ATTEMPTS:
            await self._finish(job, error=f"given up after {job.attempts} attempts: {error}")
            return
        delay = BACKOFF[min(job.attempts, len(BACKOFF)) - 1]
        async with self._database.transaction() as session:
            await session.execute(
                update(MailJob)
                .where(*_still_claimed(job))
                .values(last_error=error, next_attempt_at=utc_now() + timedelta(seconds=delay))
            )
        log.warning("mail.delayed", job=job.id, attempts=job.attempts, retry_in_s=delay)


async def _finished(work: Coroutine[Any, Any, bool]) -> bool:
    """Await work; when cancelled meanwhile, give it some time to end first."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=FINISH_TIMEOUT)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise


def _still_claimed(job: MailJob) -> tuple[ColumnElement[bool], ...]:
    """Nobody else has claimed or ended the job: a worker that lost its lease has no say any more."""
    return (MailJob.id == job.id, MailJob.state == "queued", MailJob.attempts == job.attempts)


def compose(job: MailJob, *, sender: str) -> EmailMessage:
    """Build the mail; its Message-ID is the same in every attempt, so that a receiver can spot a repeat."""
    message = EmailMessage(policy=SMTP if job.recipient.isascii() else SMTPUTF8)
    message["From"] = sender
    message["To"] = job.recipient
    message["Subject"] = job.subject
    message["Date"] = job.created_at
    message["Message-ID"] = f"<mail-{job.id}-{int(job.created_at.timestamp())}@tollhouse>"
    message.set_content(job.body)
    if job.html is not None:
        message.add_alternative(job.html, subtype="html")
    return message
