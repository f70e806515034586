"""Access tokens (RFC 9068), verified alike by the gateway and by every service (SECURITY T1-T5)."""

import asyncio
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from time import time
from typing import Any, Self

import httpx
import jwt
import orjson
from jwt.exceptions import PyJWTError
from jwt.utils import base64url_decode

from shared.errors import InvalidToken, KeysUnavailable
from shared.jwks import FETCH_TIMEOUT, JWKSCache
from shared.settings import Settings
from shared.tasks import end

MAX_TOKEN_BYTES = 4096
LEEWAY = 5
"""Seconds by which clocks may differ."""
MAX_CACHED_TOKENS = 20_000
REFRESH_INTERVAL = 300.0
"""Seconds between two background fetches of the keys."""
FIRST_KEYS_RETRY = 1.0
MAX_ID = 2**63 - 1
DERIVED_IDS = 2**52
"""Least id of an external issuer's user."""

_ALGORITHMS = frozenset({"ES256", "EdDSA", "RS256"})
_FORBIDDEN_HEADERS = frozenset({"crit", "b64", "jku", "jwk", "x5u", "x5c"})
_compact = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a verified access token speaks for."""

    id: int
    scopes: frozenset[str]
    session_id: str
    issuer: str
    expires_at: int
    """Unix time, seconds."""
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are accepted, and where their claims stand."""

    issuer: str
    audience: str
    jwks_url: str
    token_types: frozenset[str] = frozenset({"at+jwt"})
    required: tuple[str, ...] = ("iss", "aud", "exp", "iat", "sub", "jti", "sid")
    user_claim: str = "sub"
    derives_ids: bool = False
    """Whether user ids are computed from issuer and claim, because the claim does not hold ours."""
    scope_claim: str = "scope"
    session_claim: str = "sid"


def issuers(settings: Settings) -> list[Issuer]:
    """Return our own issuer and the external ones of `TRUSTED_ISSUERS`."""
    own = Issuer(settings.token_issuer, settings.token_audience, str(settings.jwks_url))
    external = [
        Issuer(
            issuer=trusted.issuer,
            audience=trusted.audience,
            jwks_url=str(trusted.jwks_url),
            token_types=frozenset(kind.lower() for kind in trusted.token_types),
            required=("iss", "aud", "exp", "iat", "sub"),
            user_claim=trusted.user_claim,
            derives_ids=trusted.user_ids == "derived",
            scope_claim=trusted.scope_claim,
            session_claim=trusted.session_claim,
        )
        for trusted in settings.trusted_issuers
    ]
    return [own, *external]


class TokenVerifier:
    """Verifies access tokens against the keys of their issuers.

    Use as an async context manager: it fetches the keys in the background, at start and then now and again.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        *,
        http: httpx.AsyncClient | None = None,
        revoked: Container[str] = (),
    ) -> None:
        self._revoked = revoked
        """Ids of sessions whose tokens are refused (revocations.py)."""
        self._http = http or httpx.AsyncClient(timeout=FETCH_TIMEOUT, trust_env=False)
        self._issuers = {
            issuer.issuer: (issuer, JWKSCache(issuer.jwks_url, self._http)) for issuer in issuers
        }
        self._keys = tuple(keys for _, keys in self._issuers.values())
        self._own = self._keys[0]
        self._verified: dict[str, Principal] = {}
        self._generation = -1
        self._refreshing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._refreshing = asyncio.create_task(self._keep_fresh(), name="jwks-refresh")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop refreshing and close the HTTP client."""
        if self._refreshing is not None:
            await end(self._refreshing)
        await self._http.aclose()

    @property
    def ready(self) -> bool:
        """Whether our own issuer's keys are known."""
        return self._own.ready

    async def check_ready(self) -> None:
        """Readiness check.

        Raises:
            KeysUnavailable: no keys yet.
        """
        if not self.ready:
            raise KeysUnavailable

    async def refresh(self) -> None:
        """Fetch every issuer's keys now."""
        await asyncio.gather(*(keys.refresh() for _, keys in self._issuers.values()))

    async def _keep_fresh(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_INTERVAL if self.ready else FIRST_KEYS_RETRY)

    def cached(self, token: str) -> Principal | None:
        """Return who `token` speaks for if it was verified before and still holds; never waits."""
        principal = self._verified.get(token)
        if (
            principal is None
            or principal.expires_at <= time()
            or self._keys_changed()
            or principal.session_id in self._revoked
        ):
            return None
        return principal

    def _keys_changed(self) -> bool:
        generation = 0
        for keys in self._keys:
            generation += keys.generation  # they only grow, and so does their sum
        if generation == self._generation:
            return False
        self._generation = generation
        self._verified.clear()
        return True

    async def verify(self, token: str) -> Principal:
        """Return who `token` speaks for.

        Raises:
            InvalidToken: anything is wrong with it.
            KeysUnavailable: its issuer's keys are not known yet.
        """
        header, claims = _peek(token)
        issuer, keys = self._issuers.get(_text(claims.get("iss")), (None, None))
        if issuer is None or keys is None:
            raise InvalidToken("The token's issuer is not trusted here.")
        if _text(header.get("typ")).lower().removeprefix("application/") not in issuer.token_types:
            raise InvalidToken("The token is not an access token.")
        key = await keys.key(_text(header.get("kid")))
        if key is None or key.algorithm != header["alg"]:
            raise InvalidToken("The token is not signed with a known key.")
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=issuer.audience,
                issuer=issuer.issuer,
                leeway=LEEWAY,
                options={"require": list(issuer.required)},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("The token has expired.") from None
        except (PyJWTError, ValueError, TypeError, OverflowError):
            raise InvalidToken("The token is not valid here.") from None
        principal = _principal(issuer, claims, token)
        if principal.session_id in self._revoked:
            raise InvalidToken("The session has ended.")
        self._keep(principal)
        return principal

    def _keep(self, principal: Principal) -> None:
        self._keys_changed()
        if principal.expires_at <= time():
            return
        if principal.token not in self._verified and len(self._verified) >= MAX_CACHED_TOKENS:
            del self._verified[next(iter(self._verified))]
        self._verified[principal.token] = principal


def _peek(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read header and claims of an unverified token, refusing every form RFC 8725 warns of."""
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidToken("The token is too long.")
    if not _compact(token):
        raise InvalidToken("The token is malformed.")
    head, payload, _ = token.split(".")
    header, claims = _json_object(head), _json_object(payload)
    if _FORBIDDEN_HEADERS & header.keys():
        raise InvalidToken("The token's header has members that are not accepted.")
    if _text(header.get("alg")) not in _ALGORITHMS:
        raise InvalidToken("The token's algorithm is not accepted.")
    return header, claims


def _json_object(part: str) -> Mapping[str, Any]:
    try:
        value = orjson.loads(base64url_decode(part))
    except ValueError:
        raise InvalidToken("The token is malformed.") from None
    if not isinstance(value, dict):
        raise InvalidToken("The token is malformed.")
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _principal(issuer: Issuer, claims: Mapping[str, Any], token: str) -> Principal:
    name = claims.get(issuer.user_claim)
    user_id = derived_id(issuer.issuer, name) if issuer.derives_ids else _user_id(name)
    session_id = _text(claims.get(issuer.session_claim))
    if not session_id and issuer.session_claim in issuer.required:
        raise InvalidToken("The token does not name a session.")
    if isinstance(claims["exp"], str):  # PyJWT reads digits in a string, RFC 7519 section 2 wants a number
        raise InvalidToken("The token is not valid here.")
    scopes = claims.get(issuer.scope_claim, "")
    names = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else ()
    return Principal(
        id=user_id,
        scopes=frozenset(name for name in names if isinstance(name, str)),
        session_id=session_id,
        issuer=issuer.issuer,
        expires_at=int(claims["exp"]),
        token=token,
    )


def _user_id(value: object) -> int:
    text = str(value) if isinstance(value, (str, int)) else ""
    if text.isascii() and text.isdigit() and len(text) <= 19 and 0 < (user_id := int(text)) <= MAX_ID:
        return user_id
    raise InvalidToken("The token does not name a user.")


def derived_id(issuer: str, name: object) -> int:
    """Return the id of an external issuer's user: always the same, above all of our own, exact in a JSON number.

    52 bits of SHA-256 in 2^52 … 2^53: among a million such users, two share an id with a chance of one in ten thousand.

    Raises:
        InvalidToken: the claim names nobody.
    """
    if not isinstance(name, str) or not name:
        raise InvalidToken("The token does not name a user.")
    digest = sha256(f"{issuer}\n{name}".encode()).digest()
    return DERIVED_IDS + int.from_bytes(digest[:8]) % DERIVED_IDS
