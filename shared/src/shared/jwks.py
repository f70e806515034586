"""JSON Web Key Sets: judged strictly, fetched rarely, kept when a fetch fails."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import httpx
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from shared.errors import KeysUnavailable
from shared.logs import get_logger

log = get_logger(__name__)

MIN_RSA_BITS = 2048
MAX_KEYS = 32
MAX_JWKS_BYTES = 256 * 1024
FETCH_TIMEOUT = 5.0
"""Seconds that a fetch may take from beginning to end."""
FETCH_INTERVAL = 30.0
"""Least seconds between two fetches that unknown key ids cause (SECURITY T4)."""
FIRST_FETCH_INTERVAL = 1.0
"""Least seconds between two fetches while there are no keys at all."""

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class JWKSRefused(ValueError):
    """A key set that must not be used; the message says why."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key and the one algorithm it may verify."""

    kid: str
    algorithm: str
    key: EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey


def parse_jwks(document: bytes) -> dict[str, VerifyKey]:
    """Return the signature keys by `kid`. One bad key condemns the whole set (SECURITY T5).

    Keys declared for encryption only (`use: enc`) are left out.

    Raises:
        JWKSRefused: private, weak, unknown, mixed-use or duplicate keys, or no key set at all.
    """
    if len(document) > MAX_JWKS_BYTES:
        raise JWKSRefused(f"larger than {MAX_JWKS_BYTES} bytes")
    try:
        entries = orjson.loads(document)["keys"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise JWKSRefused("not a JSON Web Key Set") from None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise JWKSRefused(f"keys must be an array of at most {MAX_KEYS}")
    keys: dict[str, VerifyKey] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            raise JWKSRefused("a key is not an object")
        if entry.get("use") == "enc" and "key_ops" not in entry and not _PRIVATE_MEMBERS & entry.keys():
            continue
        key = _parse_key(entry)
        if key.kid in keys:
            raise JWKSRefused(f"duplicate kid {key.kid!r}")
        keys[key.kid] = key
    if not keys:
        raise JWKSRefused("no signature keys")
    return keys


def _parse_key(entry: Mapping[str, Any]) -> VerifyKey:
    kid = entry.get("kid")
    if not isinstance(kid, str) or not kid:
        raise JWKSRefused("a key has no kid")
    if _PRIVATE_MEMBERS & entry.keys():
        raise JWKSRefused(f"key {kid!r} has private members")
    if entry.get("use", "sig") != "sig" or entry.get("key_ops", ["verify"]) != ["verify"]:
        raise JWKSRefused(f"key {kid!r} is not for verifying signatures only")
    try:
        key = PyJWK(dict(entry), algorithm=_algorithm(entry)).key
    except (PyJWTError, ValueError, TypeError) as error:
        raise JWKSRefused(f"key {kid!r} cannot be read") from error
    match key:
        case RSAPublicKey() if key.key_size < MIN_RSA_BITS:
            raise JWKSRefused(f"key {kid!r} is weaker than {MIN_RSA_BITS} bits")
        case RSAPublicKey():
            algorithm = "RS256"
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            algorithm = "ES256"
        case Ed25519PublicKey():
            algorithm = "EdDSA"
        case _:
            raise JWKSRefused(f"key {kid!r} is of a type that is not accepted")
    return VerifyKey(kid, algorithm, key)


def _algorithm(entry: Mapping[str, Any]) -> str:
    expected = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}.get(str(entry.get("kty")))
    if expected is None or entry.get("alg", expected) not in (
        expected,
        "Ed25519" if expected == "EdDSA" else expected,
    ):
        raise JWKSRefused(f"key {entry.get('kid')!r} has an algorithm that is not accepted")
    return expected


class JWKSCache:
    """The keys of one issuer. A failed or refused fetch keeps the keys there are (SECURITY T4, T5)."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url = url
        self._http = http
        self._keys: dict[str, VerifyKey] = {}
        self._last_attempt = float("-inf")
        self._fetching = asyncio.Lock()
        self.generation = 0
        """Grows with every change of the keys, so that caches of verified tokens can be emptied."""

    @property
    def ready(self) -> bool:
        """Whether there are any keys."""
        return bool(self._keys)

    async def key(self, kid: str) -> VerifyKey | None:
        """Return the key named `kid`, fetching at most once in FETCH_INTERVAL when it is unknown.

        Raises:
            KeysUnavailable: no keys could be fetched yet.
        """
        if (key := self._keys.get(kid)) is not None:
            return key
        async with self._fetching:
            interval = FETCH_INTERVAL if self._keys else FIRST_FETCH_INTERVAL
            if kid not in self._keys and monotonic() - self._last_attempt >= interval:
                await self._fetch()
        if not self._keys:
            raise KeysUnavailable
        return self._keys.get(kid)

    async def refresh(self) -> bool:
        """Fetch the keys now; say whether that worked."""
        async with self._fetching:
            return await self._fetch()

    async def _fetch(self) -> bool:
        self._last_attempt = monotonic()
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                keys = parse_jwks(await self._download())
        except (httpx.HTTPError, JWKSRefused, TimeoutError) as error:
            log.warning("jwks.fetch_failed", url=self._url, error=str(error) or type(error).__name__)
            return False
        if keys != self._keys:
            self.generation += 1
            log.info("jwks.changed", url=self._url, kids=sorted(keys))
        self._keys = keys
        return True

    async def _download(self) -> bytes:
        """Return the document, reading no further than what parse_jwks would take."""
        document = bytearray()
        async with self._http.stream("GET", self._url) as response:
            response.raise_for_status()
            async for chunk in response.aiter_bytes():
                document += chunk
                if len(document) > MAX_JWKS_BYTES:
                    break
        return bytes(document)
