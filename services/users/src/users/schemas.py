"""What the users API takes and gives."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    MISSING,
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
)

from shared.text import Email, Text
from users.service import Scope
from users.settings import PASSWORD_MAX, PASSWORD_MIN

EXAMPLE_SESSION_ID = "01942a60-7b85-7000-8000-000000000000"
MAX_TOKEN = 4096


def _encodable(value: SecretStr) -> SecretStr:
    try:
        value.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return value


def _each_once(scopes: list[Scope]) -> list[Scope]:
    return sorted(set(scopes))


FullName = Annotated[Text, StringConstraints(max_length=200)]
Password = Annotated[
    SecretStr, Field(min_length=PASSWORD_MIN, max_length=PASSWORD_MAX), AfterValidator(_encodable)
]


Code = Annotated[Text, StringConstraints(min_length=1, max_length=64)]


class UserCreate(BaseModel):
    """A new account."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"email": "ada@example.com", "password": "correct horse battery", "full_name": "Ada Lovelace"}
            ]
        },
    )

    email: Email
    password: Password
    full_name: FullName | None = None


class UserRead(BaseModel):
    """An account as its owner sees it."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": 7,
                    "email": "ada@example.com",
                    "full_name": "Ada Lovelace",
                    "is_active": True,
                    "email_verified": True,
                    "scopes": ["items:write", "notifications:read", "notifications:send"],
                    "created_at": "2026-01-02T03:04:05Z",
                }
            ]
        },
    )

    id: int
    email: str
    full_name: str | None
    is_active: bool
    email_verified: bool
    scopes: list[str]
    created_at: datetime


class TokenForm(BaseModel):
    """RFC 6749 sections 4.3.2 and 6: password and refresh_token grants, first-party clients only."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {"username": "ada@example.com", "password": "correct horse battery"},
                {"grant_type": "refresh_token", "refresh_token": "8ZhuyrmyP7dm5vMsxtxNRQ"},
            ]
        },
    )

    grant_type: str = "password"
    username: Annotated[Text, Field(max_length=254)] = ""
    password: Annotated[SecretStr, Field(max_length=PASSWORD_MAX)] = SecretStr("")
    refresh_token: Annotated[SecretStr, Field(max_length=MAX_TOKEN)] = SecretStr("")
    scope: Annotated[str, Field(max_length=1000)] = ""


class TokenRead(BaseModel):
    """RFC 6749 section 5.1."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiJ9…",
                    "token_type": "bearer",
                    "expires_in": 900,
                    "refresh_token": "8ZhuyrmyP7dm5vMsxtxNRQ",
                    "scope": "items:write notifications:read notifications:send",
                }
            ]
        }
    )

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  # a token type, not a token
    expires_in: int
    refresh_token: str = Field(description="Good for one use; the answer brings its successor.")
    scope: str


class RevocationForm(BaseModel):
    """RFC 7009 section 2.1."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"token": "8ZhuyrmyP7dm5vMsxtxNRQ"}]}
    )

    token: Annotated[SecretStr, Field(min_length=1, max_length=MAX_TOKEN)]


class PasswordChange(BaseModel):
    """A new password, and the current one as proof."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"current_password": "correct horse battery", "new_password": "staple of the horse"}]
        },
    )

    current_password: Annotated[SecretStr, Field(max_length=PASSWORD_MAX), AfterValidator(_encodable)]
    new_password: Password


class UserPatch(BaseModel):
    """Changes to the own account as a JSON merge patch (RFC 7396): null clears, what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"full_name": "Ada King"}]})

    full_name: FullName | MISSING | None = MISSING


class UserAdminPatch(BaseModel):
    """Changes to somebody's account as a JSON merge patch (RFC 7396): what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"is_active": False}]})

    is_active: Annotated[bool, Field(strict=True)] | MISSING = MISSING
    scopes: Annotated[list[Scope], Field(max_length=50), AfterValidator(_each_once)] | MISSING = MISSING


class AddressRequest(BaseModel):
    """An e-mail address."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"email": "ada@example.com"}]})

    email: Email


class CodeConfirmation(BaseModel):
    """A code from a mail."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"code": "8ZhuyrmyP7dm5vMsxtxNRQ"}]}
    )

    code: Code


class PasswordReset(CodeConfirmation):
    """A code from a mail, and the password to set with it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"code": "8ZhuyrmyP7dm5vMsxtxNRQ", "new_password": "staple of the horse"}]
        }
    )

    new_password: Password


class SessionRead(BaseModel):
    """A login session."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_SESSION_ID,
                    "label": "Mozilla/5.0 (X11; Linux x86_64)",
                    "address": "192.0.2.7",
                    "created_at": "2026-01-02T03:04:05Z",
                    "last_used_at": "2026-01-02T04:05:06Z",
                    "current": True,
                }
            ]
        },
    )

    id: str
    label: str | None = Field(description="What the client called itself (User-Agent).")
    address: str | None
    created_at: datetime
    last_used_at: datetime
    current: bool = False


class AuthorizationServer(BaseModel):
    """RFC 8414 metadata."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "issuer": "https://api.example.com",
                    "token_endpoint": "https://api.example.com/v1/users/token",
                    "revocation_endpoint": "https://api.example.com/v1/users/token/revoke",
                    "jwks_uri": "https://api.example.com/.well-known/jwks.json",
                    "scopes_supported": ["items:admin", "items:write"],
                    "response_types_supported": [],
                    "grant_types_supported": ["password", "refresh_token"],
                    "token_endpoint_auth_methods_supported": ["none"],
                    "revocation_endpoint_auth_methods_supported": ["none"],
                }
            ]
        }
    )

    issuer: str
    token_endpoint: str
    revocation_endpoint: str
    jwks_uri: str
    scopes_supported: list[str]
    response_types_supported: list[str] = []
    grant_types_supported: list[str] = ["password", "refresh_token"]
    token_endpoint_auth_methods_supported: list[str] = ["none"]
    revocation_endpoint_auth_methods_supported: list[str] = ["none"]


class SigningKeyRead(BaseModel):
    """A signing key and where it stands in its life."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
                    "algorithm": "ES256",
                    "state": "signing",
                    "signs_from": "2026-01-02T03:04:05Z",
                    "created_at": "2026-01-02T03:04:05Z",
                }
            ]
        }
    )

    kid: str
    algorithm: str
    state: Literal["published", "signing", "verifying", "retired"]
    signs_from: datetime
    created_at: datetime


class KeySet(BaseModel):
    """A JSON Web Key Set (RFC 7517)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "keys": [
                        {
                            "kty": "EC",
                            "crv": "P-256",
                            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
                            "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
                            "use": "sig",
                            "alg": "ES256",
                        }
                    ]
                }
            ]
        }
    )

    keys: list[dict[str, str]] = Field(description="Public keys, as RFC 7518 describes them.")
