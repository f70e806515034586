"""Single requests with a blocking socket: whether a server is ready, and what it answers to exact bytes."""

import io
import socket
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The first response on a connection, and how it went on."""

    status: int
    head: str
    body: bytes
    closed: bool
    """Whether the server closed the connection after it."""


def status(url: str) -> int | None:
    """The status that `url` answers; None where nobody does."""
    with suppress(OSError, ValueError):
        return get(url).status
    return None


def get(url: str, token: str | None = None) -> Answer:
    """GET, on a connection of its own."""
    parts = urlsplit(url)
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    return exchange(
        url,
        f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n{authorization}Connection: close\r\n\r\n".encode(),
    )


def exchange(url: str, request: bytes) -> Answer:
    """Send exactly these bytes and read one response.

    Raises:
        OSError: nobody is there, or nothing comes within TIMEOUT.
        ValueError: what comes is no response.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None  # noqa: S101
    with socket.create_connection((parts.hostname, parts.port or 80), TIMEOUT) as connection:
        with suppress(ConnectionError):  # an early answer may have closed it
            connection.sendall(request)
        reader = connection.makefile("rb")
        head = b""
        while line := reader.readline(65536):
            head += line
            if line == b"\r\n":
                break
        text = head.decode("latin-1")
        lines = (line.partition(":") for line in text.split("\r\n")[1:] if line)
        fields = {name.lower(): value.strip() for name, _, value in lines}
        body = reader.read(int(fields.get("content-length", "0")))
        closed = fields.get("connection", "").lower() == "close" and _ends(reader)
        return Answer(int(text.split(" ")[1] if text else ""), text, body, closed)


def _ends(reader: io.BufferedReader) -> bool:
    try:
        return reader.read(1) == b""
    except ConnectionError:
        return True
    except OSError:
        return False
