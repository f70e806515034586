"""The services of the system. To add one, add it here and to nats.GRANTS."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack import credentials, nats, postgres
from stack import settings as ports
from stack.command import Command
from stack.settings import StackSettings

GATEWAY = "gateway"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service: its module is run as `python -m <name> serve`, and `python -m <name> migrate` before it if it has a database."""

    name: str
    port: int
    """Before PORT_OFFSET."""
    after: tuple[str, ...] = ()
    """Services that are ready before this one starts, and stop after it."""
    database: bool = True
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Settings of its own (without the service's prefix), unless the environment has them. Names in braces: see `environment`."""
    sources: tuple[str, ...] = ()
    """Folders, from the repository's root, whose changes restart it under `make dev`."""
    program: tuple[str, ...] = ()
    """Instead of `python -m <name>`."""

    def argv(self, verb: str) -> tuple[str, ...]:
        """The command line for `serve` or `migrate`."""
        return (*self.program_argv, verb)

    @property
    def program_argv(self) -> tuple[str, ...]:
        """The command line without the verb."""
        return self.program or (sys.executable, "-m", self.name)


@dataclass(frozen=True, slots=True)
class System:
    """What the supervisor runs between the servers and the user."""

    services: tuple[ServiceSpec, ...]
    declare_streams: tuple[str, ...]
    """The program that creates the JetStream streams; it may be repeated."""
    shared_sources: tuple[str, ...] = ()
    """Folders whose changes restart every service under `make dev`."""


TOLLHOUSE = System(
    services=(
        ServiceSpec(
            "users",
            ports.USERS,
            defaults={"KEY_ENCRYPTION_KEY": "{key_encryption_key}"},
            sources=("services/users/src", "services/users/migrations"),
        ),
        ServiceSpec(
            "items",
            ports.ITEMS,
            after=("users",),
            defaults={"CURSOR_KEY": "{items_cursor_key}"},
            sources=("services/items/src", "services/items/migrations"),
        ),
        ServiceSpec(
            "notifications",
            ports.NOTIFICATIONS,
            after=("users",),
            defaults={"MAIL_DIR": "{data_dir}/mail"},
            sources=("services/notifications/src", "services/notifications/migrations"),
        ),
        ServiceSpec(
            GATEWAY,
            ports.GATEWAY,
            after=("users", "items", "notifications"),
            database=False,
            defaults={
                "USERS_URL": "{users_url}",
                "ITEMS_URL": "{items_url}",
                "NOTIFICATIONS_URL": "{notifications_url}",
            },
            sources=("gateway/src",),
        ),
    ),
    declare_streams=(sys.executable, "-m", "shared.streams"),
    shared_sources=("shared/src",),
)


def port_of(spec: ServiceSpec, settings: StackSettings) -> int:
    """The port `spec` listens on in this stack."""
    return settings.port(settings.gateway_port if spec.name == GATEWAY else spec.port)


def metrics_port_of(spec: ServiceSpec, settings: StackSettings) -> int | None:
    """The port that answers `GET /metrics` for `spec` in this stack."""
    base = settings.gateway_metrics_port if spec.name == GATEWAY else ports.metrics_of(spec.port)
    return settings.port(base) if base else None


def wanted_credentials(system: System) -> dict[str, credentials.Maker]:
    """What this stack has passwords and keys for, and how each is made."""
    return {
        "postgres": credentials.password,
        "key_encryption_key": credentials.encryption_key,
        "items_cursor_key": credentials.encryption_key,
        **{f"database.{spec.name}": credentials.password for spec in system.services if spec.database},
        **{f"nats.{user}": credentials.password for user in nats.GRANTS},
    }


def database_url_of(spec: ServiceSpec, settings: StackSettings, secrets: Mapping[str, str]) -> str | None:
    """Where the service's database is, if it has one."""
    if not spec.database:
        return None
    return postgres.dsn(spec.name, secrets[f"database.{spec.name}"], settings.port(ports.POSTGRES), spec.name)


def environment(
    spec: ServiceSpec,
    system: System,
    settings: StackSettings,
    secrets: Mapping[str, str],
    database_url: str | None,
) -> dict[str, str]:
    """The environment of a service: the caller's without the other services' own variables, and what this stack assigns.

    Assigned values carry the service's prefix, so that a plain `DATABASE_URL` or `PORT` in the caller's shell cannot win over them.
    """
    others = tuple(f"{other.name.upper()}_" for other in system.services if other is not spec)
    inherited = {name: value for name, value in settings.handed_on.items() if not name.startswith(others)}
    prefix = f"{spec.name.upper()}_"
    host = settings.gateway_bind_host if spec.name == GATEWAY else "127.0.0.1"
    urls = {f"{one.name}_url": f"http://127.0.0.1:{port_of(one, settings)}" for one in system.services}
    assigned = {
        "BIND_HOST": host,
        "PORT": str(port_of(spec, settings)),
        "METRICS_PORT": str(metrics_port_of(spec, settings) or ""),
        "LOG_FORMAT": "json",
        "NATS_URL": f"nats://127.0.0.1:{settings.port(ports.NATS)}",
        "NATS_USER": spec.name,
        "NATS_PASSWORD": secrets[f"nats.{spec.name}"],
        "JWKS_URL": f"http://127.0.0.1:{settings.port(ports.USERS)}/.well-known/jwks.json",
    }
    if database_url is not None:
        assigned["DATABASE_URL"] = database_url
    values = {**urls, **secrets, "data_dir": str(settings.data_dir)}
    defaults = {prefix + name: text.format_map(values) for name, text in spec.defaults.items()}
    return {
        "TOKEN_ISSUER": settings.gateway_url,
        "WORKERS": str(settings.workers),
        "SHUTDOWN_TIMEOUT": str(settings.shutdown_timeout),
        **defaults,
        **inherited,
        **{prefix + name: value for name, value in assigned.items()},
        "PYTHONUNBUFFERED": "1",
    }


def as_operator(spec: ServiceSpec, secrets: Mapping[str, str]) -> dict[str, str]:
    """What replaces the service's own NATS user by the operator in its environment."""
    prefix = f"{spec.name.upper()}_NATS_"
    return {f"{prefix}USER": nats.OPERATOR, f"{prefix}PASSWORD": secrets[f"nats.{nats.OPERATOR}"]}


def command(spec: ServiceSpec, verb: str, env: Mapping[str, str], folder: Path) -> Command:
    """The service's process for `serve` or `migrate`."""
    return Command(argv=spec.argv(verb), env=env, cwd=folder)
