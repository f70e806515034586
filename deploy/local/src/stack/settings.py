"""The options of the stack, from the environment and from `.env`; the environment wins.

What is not an option of the stack is handed on to the services, so that `LOG_LEVEL=debug` or `ITEMS_DATABASE_POOL_SIZE=5` work here as
they do in production.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stack.errors import StackError

GATEWAY, USERS, ITEMS, NOTIFICATIONS, METRICS, NATS, POSTGRES = 8000, 8001, 8002, 8003, 8090, 14222, 15432
"""Ports before PORT_OFFSET. All lie below 32768, where outgoing connections take theirs."""

HIGHEST_PORT = 65535


class StackSettings(BaseModel):
    """Each field is an environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    data_dir: Path = Field(
        Path(".data"),
        description="Where all data, passwords and mails of this stack live. One stack at a time uses it.",
    )
    gateway_port: int = Field(
        GATEWAY, ge=1, le=HIGHEST_PORT, description="Port of the gateway, before PORT_OFFSET."
    )
    port_offset: int = Field(0, description="Added to every port, so that two stacks run side by side.")
    gateway_bind_host: str = Field(
        "127.0.0.1", description="Address the gateway listens on; 0.0.0.0 or :: opens it to the network."
    )
    gateway_metrics_port: int = Field(
        METRICS,
        ge=0,
        le=HIGHEST_PORT,
        description="Port of the gateway's GET /metrics on 127.0.0.1, before PORT_OFFSET; 0 for none.",
    )
    workers: int = Field(
        1, ge=1, le=64, description="Processes per service; GATEWAY_WORKERS, ITEMS_WORKERS … for one."
    )
    shutdown_timeout: int = Field(
        20, ge=1, le=600, description="Seconds a service may take to drain when it is stopped."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Least level the services log; PostgreSQL's and NATS's own chatter shows with debug only.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is readable lines on a terminal and JSON lines elsewhere."
    )
    handed_on: Mapping[str, str] = Field({}, exclude=True)
    """The whole environment, .env included, for the services."""

    @model_validator(mode="after")
    def _ports_exist(self) -> Self:
        chosen = {"GATEWAY_METRICS_PORT": self.gateway_metrics_port} if self.gateway_metrics_port else {}
        chosen["GATEWAY_PORT"] = self.gateway_port
        fixed = (
            *(port for base in (USERS, ITEMS, NOTIFICATIONS) for port in (base, metrics_of(base))),
            NATS,
            POSTGRES,
        )
        bases = (*fixed, *chosen.values())
        if not all(1 <= self.port(base) <= HIGHEST_PORT for base in bases):
            raise ValueError("PORT_OFFSET moves a port out of the range 1 to 65535")
        for name, base in chosen.items():
            if bases.count(base) > 1:
                raise ValueError(f"{name} {base} is the port of another part of the system")
        return self

    def port(self, base: int) -> int:
        """The port that `base` becomes in this stack."""
        return base + self.port_offset

    @property
    def gateway_url(self) -> str:
        """Where a client on this machine finds the gateway."""
        host = reachable(self.gateway_bind_host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port(self.gateway_port)}"

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus on this machine finds the gateway's metrics."""
        base = self.gateway_metrics_port
        return f"http://127.0.0.1:{self.port(base)}/metrics" if base else None

    @classmethod
    def load(cls, environment: Mapping[str, str], folder: Path) -> Self:
        """Read the options; a relative DATA_DIR counts from `folder`, where `.env` is looked for too.

        StackError: a sentence for each bad option.
        """
        from_file = {
            name: value for name, value in dotenv_values(folder / ".env").items() if value is not None
        }
        merged = {**from_file, **environment}
        options = {name: merged[name.upper()] for name in cls.model_fields if merged.get(name.upper())}
        try:
            settings = cls.model_validate({**options, "handed_on": merged})
        except ValidationError as failure:
            raise StackError(" ".join(_explain(failure))) from None
        return settings.model_copy(update={"data_dir": (folder / settings.data_dir.expanduser()).resolve()})


def metrics_of(port: int) -> int:
    """The port, before PORT_OFFSET, that a service's metrics are on: 8091 for 8001, and so on."""
    return METRICS + port - GATEWAY


def reachable(bind_host: str) -> str:
    """Where something that listens on `bind_host` is reached from this machine: "any address" is none to call."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind_host, bind_host)  # noqa: S104


def help_text() -> str:
    """Every option with its default and meaning, as `--help` and `.env.example` list them."""
    lines = []
    for name, field in StackSettings.model_fields.items():
        if not field.exclude:
            lines.append(f"  {name.upper()}={field.default}\n      {field.description}")
    return "\n".join(lines)


def _explain(failure: ValidationError) -> list[str]:
    sentences = []
    for item in failure.errors(include_url=False):
        if item["loc"]:
            sentences.append(f"{str(item['loc'][0]).upper()}={item['input']}: {item['msg']}.")
        else:
            sentences.append(f"{item['msg'].removeprefix('Value error, ')}.")
    return sentences
