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

PASSWORD_MIN, PASSWORD_MAX = 12, 128
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

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    full_name: str | None
    is_active: bool
    email_verified: bool
    scopes: list[str]
    created_at: datetime


class TokenForm(BaseModel):
    """RFC 6749 sections 4.3.2 and 6: password and refresh_token grants, first-party clients only."""

    model_config = ConfigDict(extra="ignore")

    grant_type: str = "password"
    username: Annotated[Text, Field(max_length=254)] = ""
    password: Annotated[SecretStr, Field(max_length=PASSWORD_MAX)] = SecretStr("")
    refresh_token: Annotated[SecretStr, Field(max_length=MAX_TOKEN)] = SecretStr("")
    scope: Annotated[str, Field(max_length=1000)] = ""


class TokenRead(BaseModel):
    """RFC 6749 section 5.1."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  # a token type, not a token
    expires_in: int
    refresh_token: str = Field(description="Good for one use; the answer brings its successor.")
    scope: str


class RevocationForm(BaseModel):
    """RFC 7009 section 2.1."""

    model_config = ConfigDict(extra="ignore")

    token: Annotated[SecretStr, Field(min_length=1, max_length=MAX_TOKEN)]


class PasswordChange(BaseModel):
    """A new password, and the current one as proof."""

    model_config = ConfigDict(extra="forbid")

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

    model_config = ConfigDict(extra="forbid")

    code: Code


class PasswordReset(CodeConfirmation):
    """A code from a mail, and the password to set with it."""

    new_password: Password


class SessionRead(BaseModel):
    """A login session."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    label: str | None = Field(description="What the client called itself (User-Agent).")
    address: str | None
    created_at: datetime
    last_used_at: datetime
    current: bool = False


class AuthorizationServer(BaseModel):
    """RFC 8414 metadata."""

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

    kid: str
    algorithm: str
    state: Literal["published", "signing", "verifying", "retired"]
    signs_from: datetime
    created_at: datetime
