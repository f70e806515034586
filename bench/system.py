"""Our side: the processes that `make run` starts, by the same code, with its defaults; only the rate limits are raised."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import standin
from bench.probe import status
from bench.standin import StandIn
from bench.workbench import ROOT, Process, Workbench
from shared.testing import TokenIssuer, free_offset
from stack import credentials, nats, postgres, services
from stack import settings as ports
from stack.command import Command
from stack.settings import StackSettings

ROUTES = ROOT / "gateway/src/gateway/routes.toml"
USERS = 64
"""How many users share the connections: each verified token must be found among others."""
TOKEN_SECONDS = 6 * 3600
_QUOTA = 1_000_000_000
_SECRET = ("PASSWORD", "KEY", "TOKEN_SECRET", "DATABASE_URL")


@dataclass(frozen=True, slots=True)
class Server:
    """A running HTTP server of either side."""

    name: str
    url: str
    process: Process
    configuration: str


class System:
    """Parts of the system on ports of their own. What it starts ends with the workbench."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench
        offset = free_offset(
            (
                ports.GATEWAY,
                ports.USERS,
                ports.ITEMS,
                ports.NOTIFICATIONS,
                ports.METRICS,
                ports.NATS,
                ports.POSTGRES,
            )
        )
        data = workbench.folder / "data"
        (data / "run").mkdir(parents=True)
        options = {"PORT_OFFSET": str(offset), "DATA_DIR": str(data), "GATEWAY_LIMITS": raised_limits(ROUTES)}
        self.settings = StackSettings.load(options, workbench.folder)
        self.credentials = {
            "key_encryption_key": credentials.encryption_key(),
            "items_cursor_key": credentials.encryption_key(),
            **{f"nats.{user}": credentials.password() for user in nats.GRANTS},
            **{f"database.{spec.name}": credentials.password() for spec in services.TOLLHOUSE.services},
        }
        self.issuer = TokenIssuer(self.settings.gateway_url)

    def tokens(self) -> list[str]:
        """Good tokens of USERS users."""
        return [self.issuer.token(user, expires_in=TOKEN_SECONDS) for user in range(1, USERS + 1)]

    def start_standin(
        self, bases: Sequence[int] = (ports.ITEMS, ports.USERS, ports.NOTIFICATIONS)
    ) -> StandIn:
        """Start nginx on the ports of users, items and notifications, or of some of them."""
        return standin.start(
            self.workbench,
            json.dumps({"keys": [self.issuer.jwk()]}),
            tuple(self.settings.port(base) for base in bases),
        )

    def start_nats(self) -> None:
        """Start NATS and declare its streams."""
        passwords = {user: self.credentials[f"nats.{user}"] for user in nats.GRANTS}
        server = nats.write_config(self.settings.data_dir, self.settings.port(ports.NATS), passwords)
        self.start(nats.command(server), "nats", cores=self.workbench.cores.load, port=server.port)
        operator = {
            "NATS_URL": f"nats://127.0.0.1:{server.port}",
            "NATS_USER": nats.OPERATOR,
            "NATS_PASSWORD": passwords[nats.OPERATOR],
        }
        self.workbench.run(services.TOLLHOUSE.declare_streams, timeout=60, env=operator)

    def start_postgres(self) -> None:
        """Start PostgreSQL as `make run` does, with every service's database, empty."""
        port, data = self.settings.port(ports.POSTGRES), self.settings.data_dir
        data.chmod(0o755)  # PostgreSQL runs as another account when the benchmark runs as root
        self.workbench.afterwards(lambda: postgres.discard(data))
        cluster = postgres.prepare(data, credentials.password())
        self.workbench.start(
            "postgres",
            (command := postgres.command(cluster, port)).argv,
            cores=self.workbench.cores.load,
            ready=lambda: postgres.is_ready(cluster.dsn(port)),
            env=command.env,
            cwd=command.cwd,
            account=command.account,
        )
        for spec in services.TOLLHOUSE.services:
            if spec.database:
                secret = self.credentials[f"database.{spec.name}"]
                postgres.create_service_database(cluster.dsn(port), spec.name, secret)

    def database_url(self, name: str) -> str:
        """Migrate the database of a service and return its URL."""
        spec = next(spec for spec in services.TOLLHOUSE.services if spec.name == name)
        password = self.credentials[f"database.{name}"]
        url = postgres.dsn(name, password, self.settings.port(ports.POSTGRES))
        env = services.environment(spec, services.TOLLHOUSE, self.settings, self.credentials, url)
        migrate = services.command(spec, "migrate", env, ROOT)
        self.workbench.run(migrate.argv, timeout=120, env=migrate.env)
        return url

    def start_service(
        self,
        name: str,
        *,
        cores: frozenset[int] | None = None,
        database_url: str | None = None,
        more: Mapping[str, str] | None = None,
        title: str | None = None,
    ) -> Server:
        """Start a service as the supervisor of `make run` does, and wait until it is ready.

        `more`: settings on top of the defaults. It shares the load's cores unless `cores` says otherwise.
        """
        spec = next(spec for spec in services.TOLLHOUSE.services if spec.name == name)
        env = services.environment(
            spec, services.TOLLHOUSE, self.settings, self.credentials, database_url
        ) | dict(more or {})
        command = services.command(spec, "serve", env, ROOT)
        url = f"http://127.0.0.1:{services.port_of(spec, self.settings)}"
        process = self.start(
            command, title or name, cores=cores or self.workbench.cores.load, url=f"{url}/health/ready"
        )
        return Server(title or name, url, process, describe(command))

    def start_gateway(
        self,
        *,
        cores: frozenset[int] | None = None,
        routes: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Server:
        """Start the gateway on the measured core, with the shipped route table unless `routes` is another."""
        more = {**(more or {}), **({"GATEWAY_ROUTES": str(routes)} if routes else {})}
        server = self.start_service("gateway", cores=cores or self.workbench.cores.subject, more=more)
        if routes is not None:
            return replace(server, configuration=f"{server.configuration}\n\n{difference(ROUTES, routes)}")
        return server

    def routes(self, after: str, line: str) -> Path:
        """The shipped route table with a `line` put below the line `after`."""
        shipped = ROUTES.read_text()
        assert shipped.count(f"{after}\n") == 1  # noqa: S101
        return self.workbench.write("routes.toml", shipped.replace(f"{after}\n", f"{after}\n{line}\n"))

    def start(
        self, command: Command, name: str, *, cores: frozenset[int], port: int | None = None, url: str = ""
    ) -> Process:
        """Start a command of the stack; ready when `port` takes connections, or `url` answers 200."""
        return self.workbench.start(
            name,
            command.argv,
            cores=cores,
            port=port,
            ready=(lambda: status(url) == 200) if url else None,
            env=command.env,
            cwd=command.cwd,
        )


def raised_limits(routes: Path) -> str:
    """GATEWAY_LIMITS that nobody reaches; every request is counted all the same."""
    limits = tomllib.loads(routes.read_text())["limits"]
    return json.dumps({name: {"quota": _QUOTA, "window": 1} for name in limits})


def describe(command: Command) -> str:
    """How a process was started, without its secrets."""
    variables = [
        f"{name}={'(secret)' if any(word in name for word in _SECRET) else value}"
        for name, value in sorted(command.env.items())
    ]
    return "\n".join([*variables, " ".join(command.argv)])


def difference(shipped: Path, used: Path) -> str:
    """What a route table says that the shipped one does not."""
    known = shipped.read_text().splitlines()
    changed = [line for line in used.read_text().splitlines() if line not in known]
    return f"routes.toml as shipped, but for: {'; '.join(changed)}"
