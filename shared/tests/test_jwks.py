"""Which key sets are used, and which are refused whole (SECURITY T5)."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from shared.jwks import MAX_JWKS_BYTES, MAX_KEYS, JWKSRefused, parse_jwks

Jwk = dict[str, Any]

_EC = generate_private_key(SECP256R1())
_RSA = generate_rsa_key(65537, 2048)
_WEAK_RSA = generate_rsa_key(65537, 1024)  # noqa: S505  # to see it refused
_ED = Ed25519PrivateKey.generate()


def _jwk(kind: Any, key: Any, **members: Any) -> Jwk:
    jwk = {**kind.to_jwk(key, as_dict=True), "kid": "k", **members}
    return {name: value for name, value in jwk.items() if value is not None}


def _ec(**members: Any) -> Jwk:
    return _jwk(ECAlgorithm, _EC.public_key(), **members)


def _set(*keys: Any) -> bytes:
    return orjson.dumps({"keys": keys})


ACCEPTED: dict[str, tuple[Jwk, str]] = {
    "EC P-256": (_ec(), "ES256"),
    "EC P-256, use sig": (_ec(use="sig", alg="ES256", key_ops=["verify"]), "ES256"),
    "RSA 2048": (_jwk(RSAAlgorithm, _RSA.public_key(), key_ops=None), "RS256"),
    "RSA 2048, alg RS256": (_jwk(RSAAlgorithm, _RSA.public_key(), alg="RS256"), "RS256"),
    "Ed25519": (_jwk(OKPAlgorithm, _ED.public_key()), "EdDSA"),
    "Ed25519, alg EdDSA": (_jwk(OKPAlgorithm, _ED.public_key(), alg="EdDSA"), "EdDSA"),
    "Ed25519, alg of RFC 9864": (_jwk(OKPAlgorithm, _ED.public_key(), alg="Ed25519"), "EdDSA"),
    "members nobody knows": (_ec(x5t="abc", note={"a": 1}), "ES256"),
}

REFUSED_KEYS: dict[str, Any] = {
    "private EC key": _jwk(ECAlgorithm, _EC, key_ops=None),
    "private RSA key": _jwk(RSAAlgorithm, _RSA, key_ops=None),
    "private Ed25519 key": _jwk(OKPAlgorithm, _ED),
    "private encryption key": _jwk(ECAlgorithm, _EC, key_ops=None, use="enc"),
    "symmetric key": {"kty": "oct", "kid": "k", "k": "c2VjcmV0"},
    "RSA of 1024 bits": _jwk(RSAAlgorithm, _WEAK_RSA.public_key(), key_ops=None),
    "P-384": _jwk(ECAlgorithm, generate_private_key(SECP384R1()).public_key()),
    "secp256k1": _jwk(ECAlgorithm, generate_private_key(SECP256K1()).public_key()),
    "X25519": {"kty": "OKP", "crv": "X25519", "kid": "k", "x": "A" * 43},
    "no kid": _ec(kid=None),
    "empty kid": _ec(kid=""),
    "kid is a number": _ec(kid=5),
    "use enc with key_ops": _ec(use="enc", key_ops=["verify"]),
    "use is unknown": _ec(use="both"),
    "use is a list": _ec(use=["sig"]),
    "mixed key_ops": _ec(key_ops=["verify", "encrypt"]),
    "key_ops sign": _ec(key_ops=["sign"]),
    "key_ops is text": _ec(key_ops="verify"),
    "alg HS256": _ec(alg="HS256"),
    "alg none": _ec(alg="none"),
    "alg of another type": _ec(alg="RS256"),
    "alg is a list": _ec(alg=["ES256"]),
    "unknown kty": _ec(kty="PQ"),
    "kty is a list": _ec(kty=["EC"]),
    "no kty": _ec(kty=None),
    "not on the curve": _ec(y=_ec()["x"]),
    "a coordinate is a number": _ec(x=5),
    "a coordinate is not base64": _ec(x="%%%"),
    "a coordinate is missing": _ec(x=None),
    "not an object": "key",
    "null": None,
}

REFUSED_SETS: dict[str, bytes] = {
    "no JSON": b"<html>",
    "not UTF-8": b'{"keys": ["\xff"]}',
    "no object": b"[]",
    "null": b"null",
    "no keys": b"{}",
    "keys is an object": b'{"keys": {}}',
    "keys is empty": b'{"keys": []}',
    "encryption keys only": _set(_ec(use="enc")),
    "the same kid twice": _set(_ec(), _ec()),
    "too many keys": _set(*(_ec(kid=str(number)) for number in range(MAX_KEYS + 1))),
    "too long": b" " * MAX_JWKS_BYTES + _set(_ec()),
}


@pytest.mark.parametrize(("jwk", "algorithm"), ACCEPTED.values(), ids=ACCEPTED)
def test_good_key_is_bound_to_its_algorithm(jwk: Jwk, algorithm: str) -> None:
    keys = parse_jwks(_set(jwk))

    assert keys["k"].kid == "k"
    assert keys["k"].algorithm == algorithm


@pytest.mark.parametrize("jwk", REFUSED_KEYS.values(), ids=REFUSED_KEYS)
def test_one_bad_key_condemns_the_set(jwk: Any) -> None:
    with pytest.raises(JWKSRefused):
        parse_jwks(_set(_ec(kid="good"), jwk))


@pytest.mark.parametrize("document", REFUSED_SETS.values(), ids=REFUSED_SETS)
def test_bad_set_is_refused(document: bytes) -> None:
    with pytest.raises(JWKSRefused):
        parse_jwks(document)


def test_encryption_keys_are_left_out() -> None:
    assert set(parse_jwks(_set(_ec(), _ec(kid="other", use="enc")))) == {"k"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_templates = st.sampled_from([_ec, lambda: ACCEPTED["RSA 2048"][0], lambda: ACCEPTED["Ed25519"][0]])


@given(template=_templates, data=st.data())
def test_any_damage_is_refused_or_harmless(template: Callable[[], Jwk], data: st.DataObject) -> None:
    jwk = dict(template())
    member = data.draw(st.sampled_from([*jwk, "use", "alg", "key_ops"]))
    jwk[member] = data.draw(_json)

    try:
        keys = parse_jwks(_set(jwk))
    except JWKSRefused:
        return
    assert all(key.algorithm in {"ES256", "RS256", "EdDSA"} for key in keys.values())
