"""Settings of a service, read once from the environment into a typed value.

A setting `x` of service `items` is read from `ITEMS_X`. Settings that every service has are also read from plain
`X`, so that one variable can serve a whole deployment. Either may be given as a file (`ITEMS_X_FILE`, `X_FILE`), which
is how secrets arrive in containers.
"""

import base64
import binascii
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

Port = Annotated[int, Field(ge=1, le=65535)]
KEY_BYTES = 32
MAX_OUTBOX_RETENTION_DAYS = 30
"""Every consumer remembers what it received for longer than any outbox could publish it again (upkeep.py)."""


def key_bytes(value: SecretStr) -> bytes:
    """Return the bytes of a secret key.

    Raises:
        ValueError: they are not KEY_BYTES in base64.
    """
    try:
        key = base64.b64decode(value.get_secret_value(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"must be {KEY_BYTES} bytes in base64 (make one with: openssl rand -base64 {KEY_BYTES})"
        )
    return key


def _is_key(value: SecretStr) -> SecretStr:
    key_bytes(value)
    return value


SecretKey = Annotated[SecretStr, AfterValidator(_is_key)]
"""KEY_BYTES of randomness in base64."""


class TrustedIssuer(BaseModel):
    """An external OpenID Connect issuer whose access tokens are accepted beside our own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(description="Exact value of the tokens' `iss` claim.")
    audience: str = Field(description="Value that the tokens' `aud` claim must contain.")
    jwks_url: AnyHttpUrl = Field(description="Where the issuer publishes its keys (RFC 7517).")
    token_types: tuple[str, ...] = Field(("at+jwt",), description="Accepted values of the `typ` header.")
    user_claim: str = Field("sub", description="Claim that names the user.")
    user_ids: Literal["derived", "ours"] = Field(
        "derived",
        description="`derived`: an id is computed from issuer and claim; `ours`: the claim holds ids of our own users.",
    )
    scope_claim: str = Field("scope", description="Claim that holds the scopes (string or array).")
    session_claim: str = Field("sid", description="Claim that names the session.")


class Settings(BaseSettings):
    """What every service has. Subclasses name their service and add their own."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    service: ClassVar[str]

    bind_host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(description="Port to listen on.")
    workers: int = Field(1, ge=1, le=64, description="Processes that share the port.")
    shutdown_timeout: int = Field(20, ge=1, description="Seconds that a drain may take.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto` is `console` on a terminal, else `json`."
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="OTLP/HTTP endpoint for traces. Unset: no telemetry, at no cost."
    )

    metrics_port: Port | None = Field(
        None, description="Port that answers GET /metrics for Prometheus. Unset: none does."
    )
    metrics_bind_host: str = Field(
        "127.0.0.1", description="Address of that port; it should not be open to clients."
    )
    metrics_dir: Path | None = Field(
        None, description="Where the processes count. Set by the main process for its workers."
    )

    nats_url: str = Field("nats://127.0.0.1:14222", description="NATS servers, separated by commas.")
    nats_user: str | None = Field(None, description="NATS user. Default: the service's name.")
    nats_password: SecretStr = Field(SecretStr(""), description="Password of the NATS user.")

    token_issuer: str = Field("http://127.0.0.1:8000", description="`iss` of our own access tokens.")
    token_audience: str = Field("tollhouse", description="`aud` of our own access tokens.")
    jwks_url: AnyHttpUrl = Field(
        AnyHttpUrl("http://127.0.0.1:8001/.well-known/jwks.json"),
        description="Where the users service publishes its keys.",
    )
    trusted_issuers: tuple[TrustedIssuer, ...] = Field(
        (), description="External OpenID Connect issuers, as a JSON array."
    )

    @field_validator("trusted_issuers")
    @classmethod
    def _each_issuer_once(
        cls, value: tuple[TrustedIssuer, ...], info: ValidationInfo
    ) -> tuple[TrustedIssuer, ...]:
        issuers = [info.data.get("token_issuer"), *(trusted.issuer for trusted in value)]
        if len(set(issuers)) < len(issuers):
            raise ValueError("must name each issuer once, and not our own")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment; nothing else is read."""
        return (init_settings, _Environment(settings_cls, env_prefix=f"{cls.service}_"))

    @classmethod
    def load(cls) -> Self:
        """Read the environment, or end the process with one sentence per bad setting (exit code 2)."""
        try:
            return cls()
        except ValidationError as error:
            for line in cls.explain(error):
                print(line, file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None

    @classmethod
    def explain(cls, error: ValidationError) -> list[str]:
        """Say which variables are wrong or missing, never with the value: it may be a secret."""
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            name = f"{cls.service}_{item['loc'][0]}".upper()
            if item["type"] == "missing":
                lines.append(f"{cls.service}: {name} is not set (or give a file by {name}_FILE).")
            else:
                where = ".".join(str(part) for part in item["loc"][1:])
                lines.append(f"{cls.service}: {name}{' ' + where if where else ''}: {item['msg']}.")
        return lines


class DatabaseSettings(Settings):
    """What a service with a database has in addition."""

    database_url: SecretStr = Field(description="PostgreSQL DSN: postgresql://role:password@host:port/name")
    database_pool_size: int = Field(10, ge=1, description="Connections per process.")
    database_pool_timeout: float = Field(
        5.0, gt=0, description="Seconds to wait for a free connection before answering 503."
    )
    outbox_retention_days: float = Field(
        7,
        gt=0,
        le=MAX_OUTBOX_RETENTION_DAYS,
        description="Days that published events stay in the outbox, to refill a lost stream from; at most 30.",
    )
    migrations_dir: Path | None = Field(
        None, description="Directory of the migrations. Default: beside the service's sources."
    )


class _Environment(EnvSettingsSource):
    """The environment as `<SERVICE>_<NAME>`, completed from plain names and from files."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        variables = dict(super()._load_env_vars())
        for field in self.settings_cls.model_fields:
            name = self.env_prefix.lower() + field
            shared_name = field if field in Settings.model_fields else name
            for candidate in (name, f"{name}_file", shared_name, f"{shared_name}_file"):
                value = variables.get(candidate)
                if value is not None:
                    variables[name] = _read_secret(candidate, value) if candidate.endswith("_file") else value
                    break
        return variables

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Leave what is no JSON as it is: validation refuses it like any other bad value."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _read_secret(variable: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        print(f"{variable.upper()} names {path}, which cannot be read: {reason}.", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
