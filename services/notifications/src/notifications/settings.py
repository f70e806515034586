"""Settings of the notifications service."""

from email.policy import SMTP
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, IPvAnyNetwork, SecretStr

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
    mail_retention_days: float = Field(
        30, ge=1, description="Days that a mail is kept once it is sent or given up."
    )
    notification_retention_days: float = Field(90, ge=1, description="Days that a notification is kept.")

    replay_memory: int = Field(
        10_000, ge=1, description="Events kept in memory for clients that reconnect with a cursor."
    )
    socket_backlog: int = Field(
        1024 * 1024, ge=1, description="Bytes that may wait for a client; more end its connection with 1013."
    )
    max_connections: int = Field(20_000, ge=1, description="Clients of the live stream, per process.")
    max_connections_per_user: int = Field(50, ge=1, description="Those of one user.")
    max_connections_per_address: int = Field(500, ge=1, description="Those from one address.")
    max_unauthenticated_per_address: int = Field(
        20, ge=1, description="Sockets from one address that have yet to send their auth frame."
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        tuple(
            map(
                ip_network,
                ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
            )
        ),
        description="Networks that the gateway is in: its X-Forwarded-For is believed, as a JSON array.",
    )
    auth_timeout: float = Field(
        5.0, gt=0, description="Seconds that a socket without a token has to send its auth frame."
    )
