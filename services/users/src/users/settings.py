"""Settings of the users service."""

import hmac
from typing import ClassVar

from pydantic import EmailStr, Field, HttpUrl, SecretStr

from shared.settings import DatabaseSettings, Port, SecretKey, key_bytes

PASSWORD_MIN, PASSWORD_MAX = 12, 128


class UsersSettings(DatabaseSettings):
    """What the users service needs beside the settings every service has."""

    service: ClassVar[str] = "users"

    port: Port = Field(8001, description="Port to listen on.")
    key_encryption_key: SecretKey = Field(
        description="32 bytes in base64 that encrypt the signing keys at rest (AES-256-GCM)."
    )
    access_token_ttl: int = Field(900, ge=5, le=3600, description="Seconds that an access token is valid.")
    key_rotation_interval: int = Field(
        90 * 86_400,
        ge=0,
        description="Seconds after which a new signing key takes over; 0: only when told to.",
    )
    key_publication_lead: int = Field(
        900,
        ge=0,
        description="Seconds that a key is published before it signs: longer than verifiers keep their key sets.",
    )
    code_ttl: int = Field(1800, ge=60, description="Seconds that a mailed code is good for.")
    code_interval: int = Field(
        60, ge=0, description="Least seconds between two mails with a code for the same purpose and address."
    )
    session_ttl: int = Field(
        30 * 86_400, ge=60, description="Seconds after which a session ends however often it is refreshed."
    )
    refresh_grace: float = Field(
        10.0,
        ge=0,
        description="Seconds in which a used refresh token, repeated, gets the same successor again.",
    )
    admin_email: EmailStr | None = Field(None, description="Address of the first admin, made at start.")
    admin_password: SecretStr | None = Field(
        None,
        min_length=PASSWORD_MIN,
        max_length=PASSWORD_MAX,
        description="Password of the first admin, by the rules for every password.",
    )
    hashing_threads: int = Field(2, ge=1, le=64, description="Passwords hashed at the same time.")
    hashing_backlog: int = Field(
        32, ge=0, description="Hashes that may wait for a thread; more are answered 503."
    )
    breach_range_url: HttpUrl | None = Field(
        None,
        description="Where to ask, by the first five digits of its SHA-1, whether a new password was in a breach "
        "(the range protocol of Have I Been Pwned); empty: nowhere.",
    )
    throttle_pair_failures: int = Field(
        10, ge=1, description="Wrong passwords for one account from one address before the next has to wait."
    )
    throttle_account_failures: int = Field(
        50, ge=1, description="Wrong passwords for one account from anywhere before strangers have to wait."
    )
    throttle_address_failures: int = Field(
        100, ge=1, description="Wrong passwords from one address for any account before the next has to wait."
    )
    throttle_max_delay: float = Field(
        300.0,
        ge=1,
        description="Longest wait after a wrong password, in seconds: it starts at one and doubles.",
    )
    throttle_window: int = Field(
        3600, ge=1, description="Seconds without a wrong password after which the count starts anew."
    )
    audit_retention: int = Field(
        365 * 86_400, ge=3600, description="Seconds that the audit trail is kept in the database."
    )
    argon2_memory_kib: int = Field(19_456, ge=8, description="Argon2id memory cost, in KiB.")
    argon2_iterations: int = Field(2, ge=1, description="Argon2id time cost.")

    @property
    def refresh_key(self) -> bytes:
        """The key that refresh tokens are derived with."""
        return hmac.digest(self.encryption_key, b"tollhouse refresh tokens", "sha256")

    @property
    def throttle_key(self) -> bytes:
        """The key that hides which account names were tried: people type passwords there."""
        return hmac.digest(self.encryption_key, b"tollhouse login throttle", "sha256")

    @property
    def encryption_key(self) -> bytes:
        """The key that encrypts signing keys."""
        return key_bytes(self.key_encryption_key)
