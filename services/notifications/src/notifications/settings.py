"""Settings of the notifications service."""

from email.policy import SMTP
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, SecretStr

from shared.settings import DatabaseSettings, Port


def _sender(value: str) -> str:
    parsed = SMTP.header_factory("From", value)
    if len(parsed.addresses) != 1 or parsed.defects:
        raise ValueError("must be one address, such as Tollhouse <no-reply@example.com>")
    return value


class NotificationsSettings(DatabaseSettings):
    """What the notifications service needs beside the settings every service has."""

    service: ClassVar[str] = "notifications"

    port: Port = Field(8003, description="Port to listen on.")

    mail_dir: Path = Field(
        Path("mail"), description="Folder that mails land in as .eml files while no SMTP server is set."
    )
    smtp_url: SecretStr | None = Field(
        None, description="SMTP server: smtp://user:password@host:587 (STARTTLS if offered) or smtps://…:465."
    )
    mail_from: Annotated[str, AfterValidator(_sender)] = Field(
        "Tollhouse <no-reply@localhost>", description="Sender of every mail."
    )
    mail_allowed_domains: tuple[str, ...] = Field(
        (), description="Domains anyone may send to once an SMTP server is set, as a JSON array."
    )
    mails_per_hour: int = Field(20, ge=1, description="Mails a user may send in an hour.")

    socket_backlog: int = Field(
        1000, ge=1, description="Frames that may wait for a socket; one more closes it with 1013."
    )
    replay_memory: int = Field(
        10_000, ge=1, description="Events kept in memory for clients that reconnect with a cursor."
    )
    auth_timeout: float = Field(
        5.0, gt=0, description="Seconds that a socket without a token has to send its auth frame."
    )
