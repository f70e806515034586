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


_FULL_NAME = Field(description="What the person wants to be called; null if not told.")

FullName = Annotated[Annotated[Text, StringConstraints(max_length=200)] | None, _FULL_NAME]
Password = Annotated[
    SecretStr,
    Field(
        min_length=PASSWORD_MIN,
        max_length=PASSWORD_MAX,
        description="Any characters; one that is guessed first or known from a breach is refused.",
    ),
    AfterValidator(_encodable),
]
Code = Annotated[
    Text,
    StringConstraints(min_length=1, max_length=64),
    Field(description="From the mail; good for one use, until it expires or a newer one is mailed."),
]
IsActive = Annotated[
    bool, Field(strict=True, description="False ends the person's sessions, and nobody can log in.")
]
Scopes = Annotated[
    list[Scope],
    Field(
        max_length=50,
        description="All that the account is to have; taking one away ends the person's sessions.",
    ),
    AfterValidator(_each_once),
]


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

    email: Email = Field(
        description="To log in with, whatever its case; a code that verifies it is mailed there."
    )
    password: Password
    full_name: FullName = None


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

    id: int = Field(description="Never changes; items have it as `owner_id`.")
    email: str = Field(
        description="As the person wrote it; a new one counts once a code mailed to it comes back."
    )
    full_name: Annotated[str | None, _FULL_NAME]
    is_active: bool = Field(description="Administrators change it; while it is false, nobody can log in.")
    email_verified: bool = Field(description="Whether a code that was mailed to the address has come back.")
    scopes: list[str] = Field(description="What its tokens may carry; administrators change it.")
    created_at: datetime = Field(description="When the account was registered.")


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

    grant_type: Annotated[
        str, Field(description="`password` to log in, `refresh_token` to go on without logging in again.")
    ] = "password"
    username: Annotated[
        Text, Field(max_length=254, description="The account's e-mail address; for grant `password`.")
    ] = ""
    password: Annotated[
        SecretStr, Field(max_length=PASSWORD_MAX, description="The account's; for grant `password`.")
    ] = SecretStr("")
    refresh_token: Annotated[
        SecretStr,
        Field(max_length=MAX_TOKEN, description="From the last answer; for grant `refresh_token`."),
    ] = SecretStr("")
    scope: Annotated[
        str,
        Field(
            max_length=1000,
            description="Scopes separated by spaces; empty: all that the account, or the session, has.",
        ),
    ] = ""


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

    access_token: str = Field(description="A signed JWT (RFC 9068), to be sent as `Authorization: Bearer …`.")
    token_type: Literal["bearer"] = Field("bearer", description="Always `bearer` (RFC 6750).")
    expires_in: int = Field(description="Seconds that the access token is valid.")
    refresh_token: str = Field(description="Good for one use; the answer brings its successor.")
    scope: str = Field(description="What the access token allows: scopes separated by spaces.")


class RevocationForm(BaseModel):
    """RFC 7009 section 2.1."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"token": "8ZhuyrmyP7dm5vMsxtxNRQ"}]}
    )

    token: Annotated[
        SecretStr,
        Field(
            min_length=1,
            max_length=MAX_TOKEN,
            description="A refresh token or an access token; the session that it belongs to ends.",
        ),
    ]


class PasswordChange(BaseModel):
    """A new password, and the current one as proof."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"current_password": "correct horse battery", "new_password": "staple of the horse"}]
        },
    )

    current_password: Annotated[
        SecretStr,
        Field(max_length=PASSWORD_MAX, description="As proof; wrong ones count like those at login."),
        AfterValidator(_encodable),
    ]
    new_password: Password


class UserPatch(BaseModel):
    """Changes to the own account as a JSON merge patch (RFC 7396): null clears, what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"full_name": "Ada King"}]})

    full_name: FullName | MISSING = MISSING


class UserAdminPatch(BaseModel):
    """Changes to somebody's account as a JSON merge patch (RFC 7396): what is missing stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"is_active": False}]})

    is_active: IsActive | MISSING = MISSING
    scopes: Scopes | MISSING = MISSING


class AddressRequest(BaseModel):
    """An e-mail address."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"email": "ada@example.com"}]})

    email: Email = Field(
        description="Where to mail the code; the answer never says whether an account has it."
    )


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

    id: str = Field(description="What to end it by; its access tokens have it as `sid`.")
    label: str | None = Field(description="What the client called itself (User-Agent).")
    address: str | None = Field(description="IP address of the login; null if it is not known.")
    created_at: datetime = Field(description="When the person logged in.")
    last_used_at: datetime = Field(
        description="When its refresh token was last exchanged; until then, `created_at`."
    )
    current: bool = Field(False, description="Whether this request's access token belongs to it.")


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

    issuer: str = Field(description="Exact value of the access tokens' `iss` claim.")
    token_endpoint: str = Field(description="Where to log in, and to exchange refresh tokens.")
    revocation_endpoint: str = Field(description="Where to end the session of a token (RFC 7009).")
    jwks_uri: str = Field(description="Where the keys are that verify access tokens (RFC 7517).")
    scopes_supported: list[str] = Field(description="Every scope that an account can have.")
    response_types_supported: list[str] = Field([], description="Empty: there is no authorization endpoint.")
    grant_types_supported: list[str] = Field(
        ["password", "refresh_token"], description="What `grant_type` may be at the token endpoint."
    )
    token_endpoint_auth_methods_supported: list[str] = Field(
        ["none"], description="Only `none`: clients have no secret of their own."
    )
    revocation_endpoint_auth_methods_supported: list[str] = Field(
        ["none"], description="Only `none`: whoever has a token may revoke it."
    )


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

    kid: str = Field(description="What tokens and `jwks.json` call it: its thumbprint (RFC 7638).")
    algorithm: str = Field(description="What it signs by, as RFC 7518 names it.")
    state: Literal["published", "signing", "verifying", "retired"] = Field(
        description="`published`: signs from `signs_from` on; `verifying`: signs no more, but its tokens may be "
        "valid; `retired`: in `jwks.json` no more."
    )
    signs_from: datetime = Field(description="When it takes over from the key before it.")
    created_at: datetime = Field(description="When it was made: before it signs, unless it was the only key.")


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
