"""Settings of the items service."""

import hmac
from typing import ClassVar

from pydantic import AwareDatetime, Field, ValidationInfo, field_validator

from shared.settings import DatabaseSettings, Port, SecretKey, key_bytes


class ItemsSettings(DatabaseSettings):
    """What the items service needs beside the settings every service has."""

    service: ClassVar[str] = "items"

    port: Port = Field(8002, description="Port to listen on.")
    cursor_key: SecretKey = Field(
        description="32 bytes in base64 that sign the cursors of lists; the same for every replica."
    )
    v1_deprecated_at: AwareDatetime | None = Field(
        None, description="When version 1 of the API is, or was, deprecated (RFC 9745)."
    )
    v1_sunset_at: AwareDatetime | None = Field(
        None, description="When version 1 of the API will be switched off (RFC 8594)."
    )

    @field_validator("v1_sunset_at")
    @classmethod
    def _deprecated_before(cls, value: AwareDatetime | None, info: ValidationInfo) -> AwareDatetime | None:
        deprecated_at = info.data.get("v1_deprecated_at")
        if value is not None and (deprecated_at is None or value < deprecated_at):
            raise ValueError("must not be earlier than V1_DEPRECATED_AT (RFC 9745 section 4)")
        return value

    @property
    def cursor_signing_key(self) -> bytes:
        """The key that cursors are signed with."""
        return hmac.digest(key_bytes(self.cursor_key), b"tollhouse items cursors", "sha256")
