"""The gateway's settings; what concerns single routes stands in the route table."""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import AnyHttpUrl, Field, IPvAnyNetwork, model_validator

from gateway.routes import DEFAULT_TABLE, RouteTable, load
from shared.settings import Port, Settings


class GatewaySettings(Settings):
    """Settings of the gateway (`GATEWAY_…`)."""

    service: ClassVar[str] = "gateway"

    port: Port = Field(8000, description="Port to listen on.")
    routes: Path = Field(DEFAULT_TABLE, description="The route table (TOML).")
    users_url: AnyHttpUrl | None = Field(None, description="The users service. Default: the route table's.")
    items_url: AnyHttpUrl | None = Field(None, description="The items service. Default: the route table's.")
    notifications_url: AnyHttpUrl | None = Field(
        None, description="The notifications service. Default: the route table's."
    )
    limits: dict[str, dict[str, Any]] = Field(
        {},
        description='Values of the route table\'s limits to replace, as JSON: {"default": {"quota": 4000}}.',
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks of proxies in front whose X-Forwarded-For and -Proto are believed, as a JSON array.",
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="Origins whose pages may call and open WebSockets, as a JSON array. `*` means any."
    )
    cors_credentials: bool = Field(False, description="Whether such pages may send cookies.")
    hsts: bool = Field(False, description="Whether clients reach the gateway by TLS only.")

    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the traces started here that are marked to be recorded; others decide for themselves.",
    )

    @model_validator(mode="after")
    def _no_credentials_for_everybody(self) -> Self:
        if self.cors_credentials and "*" in self.cors_origins:
            raise ValueError("CORS_ORIGINS may not be * together with CORS_CREDENTIALS")
        return self

    @property
    def upstream_urls(self) -> dict[str, str]:
        """URLs that replace those of the route table, by upstream."""
        urls = {"users": self.users_url, "items": self.items_url, "notifications": self.notifications_url}
        return {name: str(url) for name, url in urls.items() if url is not None}

    def route_table(self) -> RouteTable:
        """Read the route table with what these settings replace in it.

        Raises:
            RouteTableError: it cannot be used.
        """
        return load(self.routes, urls=self.upstream_urls, limits=self.limits)
