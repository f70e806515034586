"""Servers for the tests: one PostgreSQL for the whole run, a database and (where asked for) a NATS server per test."""

import base64
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import make_url

from shared.broker import Broker
from shared.events import Command, Event, encode
from shared.ids import new_id
from shared.migrations import upgrade
from shared.settings import DatabaseSettings, Settings
from shared.streams import COMMANDS, EVENTS, ensure
from shared.testing import TokenIssuer, free_port
from stack import command, nats, postgres

ANY_KEY = base64.b64encode(bytes(range(32))).decode()
"""A secret key, for settings that want one."""
_POSTGRES = pytest.StashKey[str]()
_RUNNING = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Start PostgreSQL in the process that steers the run; xdist's workers are told where it is."""
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_POSTGRES] = workerinput["postgres"]
    elif not config.option.collectonly and "not integration" not in config.option.markexpr:
        running = config.stash[_RUNNING] = ExitStack()
        config.stash[_POSTGRES] = running.enter_context(_postgres())


def pytest_configure_node(node: Any) -> None:
    """Hand the address on to an xdist worker."""
    node.workerinput["postgres"] = node.config.stash.get(_POSTGRES, "")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what the run started."""
    if (running := config.stash.get(_RUNNING, None)) is not None:
        running.close()


@contextmanager
def _postgres() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tollhouse-tests-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
        cluster = postgres.prepare(Path(folder), "tests", durable=False)
        port = free_port()
        process = command.spawn(
            postgres.command(cluster, port, {**postgres.VOLATILE, "max_connections": "500"}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            postgres.wait_ready(cluster.dsn(port), alive=lambda: process.poll() is None)
            yield cluster.dsn(port)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()
            postgres.discard(Path(folder))


@pytest.fixture(scope="session")
def postgres_dsn(request: pytest.FixtureRequest) -> str:
    """The superuser's connection URL."""
    return request.config.stash[_POSTGRES]


DatabaseFactory = Callable[[type[DatabaseSettings]], str]


@pytest.fixture(scope="session")
def _templates(postgres_dsn: str, worker_id: str) -> Callable[[type[DatabaseSettings]], str]:
    """Migrate each service's database once in each worker; tests get copies."""
    made: dict[str, str] = {}

    def template(settings: type[DatabaseSettings]) -> str:
        name = f"template_{settings.service}_{worker_id}"
        if name not in made:
            dsn = postgres.create_service_database(postgres_dsn, name, "tests")
            upgrade(settings.model_construct(database_url=SecretStr(dsn), migrations_dir=None))
            made[name] = dsn
        return name

    return template


@pytest.fixture
def make_database(
    postgres_dsn: str, _templates: Callable[[type[DatabaseSettings]], str]
) -> Iterator[DatabaseFactory]:
    """Make a migrated database for one test: `make_database(ItemsSettings)` returns its URL."""
    made: list[str] = []

    def make(settings: type[DatabaseSettings]) -> str:
        role, name = _templates(settings), f"test_{new_id().replace('-', '')}"
        with psycopg.connect(postgres_dsn, autocommit=True) as admin:
            admin.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {} STRATEGY file_copy").format(
                    sql.Identifier(name), sql.Identifier(role), sql.Identifier(role)
                )
            )
        made.append(name)
        return make_url(postgres_dsn).set(username=role, database=name).render_as_string(hide_password=False)

    yield make
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        for name in made:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def refusing_connections(postgres_dsn: str, database_url: str) -> Iterator[None]:
    """End every connection to a database, wait for their end, and refuse new ones for the length of the block."""
    name = make_url(database_url).database or ""
    statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(statement.format(sql.Identifier(name), sql.Literal(False)))
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            admin.execute(statement.format(sql.Identifier(name), sql.Literal(True)))


class NATSServer:
    """A NATS server that a test may stop, kill and start again; its data stays."""

    def __init__(self, folder: Path) -> None:
        self.passwords = nats.passwords_for(nats.GRANTS)
        self._server = nats.write_config(folder, free_port(), self.passwords, durable=False)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address."""
        return f"nats://127.0.0.1:{self._server.port}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        process = self._process = command.spawn(
            nats.command(self._server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        nats.wait_ready(self._server, alive=lambda: process.poll() is None)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, or kill it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def settings(self, user: str) -> dict[str, Any]:
        """What a service's settings need to connect as `user`."""
        return {"nats_url": self.url, "nats_user": user, "nats_password": SecretStr(self.passwords[user])}

    def environment(self, user: str) -> dict[str, str]:
        """The same as environment variables."""
        return {"NATS_URL": self.url, "NATS_USER": user, "NATS_PASSWORD": self.passwords[user]}


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NATSServer]:
    """A NATS server with JetStream, the users and the permissions of the embedded stack."""
    folder = tmp_path / "nats-server"
    folder.mkdir()
    server = NATSServer(folder)
    server.start()
    yield server
    server.stop()


class _AnySettings(Settings):
    service: ClassVar[str] = "publisher"

    port: int = 1


class _SessionRevoked(Event):
    type: ClassVar[str] = "users.session.revoked.v1"

    session_id: str
    tokens_expire_at: int

    def aggregate_id(self) -> str:
        return self.session_id

    def aggregate_version(self) -> int:
        return 1


class Publisher:
    """Publishes events as the services do, each as its own NATS user."""

    def __init__(self, nats_server: NATSServer) -> None:
        self._nats_server = nats_server
        self._brokers: dict[str, Broker] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for broker in self._brokers.values():
            await broker.close()

    async def publish_raw(self, subject: str, payload: bytes) -> int:
        """Publish what may be no event at all, as the service that its subject names."""
        broker = await self._broker(subject.split(".")[1])
        return (await broker.js.publish(subject, payload)).seq

    async def publish(self, event: Event, *, event_id: str | None = None) -> int:
        """Publish an event or a command; returns its sequence in the stream."""
        outgoing = encode(event, event_id=event_id)
        user = event.sender if isinstance(event, Command) else event.type.partition(".")[0]
        broker = await self._broker(user)
        return (await broker.js.publish(outgoing.subject, outgoing.payload)).seq

    async def revoke(self, session_id: str) -> None:
        """Publish, as the users service, that a session has ended."""
        revoked = _SessionRevoked(session_id=session_id, tokens_expire_at=int(time.time()) + 600)
        await self.publish(revoked)

    async def published(self, subject: str) -> int:
        """Return how many events the stream has on a subject."""
        broker = await self._broker("operator")
        info = await broker.js.stream_info(EVENTS, subjects_filter=subject)
        return sum((info.state.subjects or {}).values())

    async def _broker(self, user: str) -> Broker:
        if user not in self._brokers:
            broker = self._brokers[user] = Broker(_AnySettings(**self._nats_server.settings(user)))
            broker.connect()
            await broker.connected.wait()
            for stream in (EVENTS, COMMANDS):
                await ensure(broker.js, stream)
        return self._brokers[user]


@pytest.fixture
async def publisher(nats_server: NATSServer) -> AsyncIterator[Publisher]:
    """Publishes events as other services would."""
    async with Publisher(nats_server) as publisher:
        yield publisher


@pytest.fixture
async def token_issuer() -> AsyncIterator[TokenIssuer]:
    """An issuer whose keys are served on a real socket."""
    async with TokenIssuer().serving() as issuer:
        yield issuer
