"""One signing key: how it is made, named, and kept encrypted (key_ring.py has the life of all of them)."""

import base64
import os
from datetime import datetime

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from shared.errors import StartupRefused
from users.models import SigningKey

_NONCE_BYTES = 12
_COORDINATE_BYTES = 32


class KeyEncryptionMismatch(StartupRefused):
    """The stored signing keys were encrypted with another key than the one in settings."""


def new_signing_key(cipher: AESGCM, *, signs_from: datetime) -> SigningKey:
    """Make an ES256 key pair; its id is the thumbprint of the public half (RFC 7638)."""
    private = generate_private_key(SECP256R1())
    members = _public_members(private.public_key())
    kid = _thumbprint(members)
    nonce = os.urandom(_NONCE_BYTES)
    plain = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey(
        kid=kid,
        algorithm="ES256",
        signs_from=signs_from,
        public_jwk={**members, "kid": kid, "use": "sig", "alg": "ES256"},
        private_key=nonce + cipher.encrypt(nonce, plain, kid.encode()),
    )


def decrypt(cipher: AESGCM, key: SigningKey) -> EllipticCurvePrivateKey:
    """Return the private half.

    Raises:
        KeyEncryptionMismatch: it was encrypted with another key.
    """
    nonce, sealed = key.private_key[:_NONCE_BYTES], key.private_key[_NONCE_BYTES:]
    try:
        plain = cipher.decrypt(nonce, sealed, key.kid.encode())
    except InvalidTag:
        raise KeyEncryptionMismatch(
            "USERS_KEY_ENCRYPTION_KEY is not the one that the stored signing keys were encrypted with."
        ) from None
    private = load_der_private_key(plain, password=None)
    if not isinstance(private, EllipticCurvePrivateKey):
        raise TypeError("a signing key is not an EC key")
    return private


def _public_members(public: EllipticCurvePublicKey) -> dict[str, str]:
    numbers = public.public_numbers()
    return {
        "crv": "P-256",
        "kty": "EC",
        "x": _base64url(numbers.x.to_bytes(_COORDINATE_BYTES, "big")),
        "y": _base64url(numbers.y.to_bytes(_COORDINATE_BYTES, "big")),
    }


def _thumbprint(members: dict[str, str]) -> str:
    digest = Hash(SHA256())
    digest.update(orjson.dumps(members, option=orjson.OPT_SORT_KEYS))
    return _base64url(digest.finalize())


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
