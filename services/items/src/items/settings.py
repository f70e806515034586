"""Settings of the items service."""

from typing import ClassVar

from pydantic import Field

from shared.settings import DatabaseSettings, Port


class ItemsSettings(DatabaseSettings):
    """What the items service needs beside the settings every service has."""

    service: ClassVar[str] = "items"

    port: Port = Field(8002, description="Port to listen on.")
