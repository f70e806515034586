"""Verification of access tokens against keys on a real socket (SECURITY T1-T5)."""

import base64
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from shared import jwks, tokens
from shared.errors import InvalidToken, KeysUnavailable
from shared.jwks import FETCH_INTERVAL, FIRST_FETCH_INTERVAL
from shared.settings import Settings
from shared.testing import TokenIssuer, eventually
from shared.tokens import DERIVED_IDS, Issuer, TokenVerifier, derived_id, issuers

MAX_ID = 2**63 - 1

Forgery = Callable[[TokenIssuer], str]


@pytest.fixture
def token_issuer() -> TokenIssuer:
    """An issuer; where a test is about fetching its keys, `key_server` has them on a real socket."""
    return TokenIssuer()


@pytest.fixture
async def verifier(token_issuer: TokenIssuer) -> AsyncIterator[TokenVerifier]:
    """A verifier that knows the issuer's keys."""
    keys = httpx.MockTransport(lambda _: httpx.Response(200, json={"keys": [token_issuer.jwk()]}))
    issuer = Issuer(token_issuer.issuer, token_issuer.audience, "http://issuer.test/jwks.json")
    verifier = TokenVerifier([issuer], http=httpx.AsyncClient(transport=keys))
    await verifier.refresh()
    yield verifier
    await verifier.aclose()


def _verifier_of(issuer: TokenIssuer, *, jwks_url: str) -> TokenVerifier:
    return TokenVerifier([Issuer(issuer.issuer, issuer.audience, jwks_url)])


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def _sign(issuer: TokenIssuer, head: bytes | dict[str, Any], claims: bytes | dict[str, Any]) -> str:
    """Sign any header and claims with the issuer's own key, however wrong they are."""
    parts = (part if isinstance(part, bytes) else orjson.dumps(part) for part in (head, claims))
    signed = ".".join(map(_base64url, parts))
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(signed.encode(), issuer.key)
    return f"{signed}.{_base64url(signature)}"


def _head(issuer: TokenIssuer, **more: Any) -> dict[str, Any]:
    head = {"alg": "ES256", "typ": "at+jwt", "kid": issuer.kid, **more}
    return {name: value for name, value in head.items() if value is not ...}


def _with_head(**more: Any) -> Forgery:
    return lambda issuer: _sign(issuer, _head(issuer, **more), issuer.claims())


def _with_claims(**claims: Any) -> Forgery:
    return lambda issuer: _sign(issuer, _head(issuer), issuer.claims(**claims))


def _unsigned(alg: str, signature: bytes) -> Forgery:
    def forge(issuer: TokenIssuer) -> str:
        signed = [orjson.dumps(_head(issuer, alg=alg)), orjson.dumps(issuer.claims())]
        return ".".join([*map(_base64url, signed), _base64url(signature)])

    return forge


def _hmac_with(public_key: Callable[[TokenIssuer], bytes]) -> Forgery:
    def forge(issuer: TokenIssuer) -> str:
        parts = [orjson.dumps(_head(issuer, alg="HS256")), orjson.dumps(issuer.claims())]
        signed = ".".join(map(_base64url, parts))
        signature = HMACAlgorithm(HMACAlgorithm.SHA256).sign(signed.encode(), public_key(issuer))
        return f"{signed}.{_base64url(signature)}"

    return forge


def _pem(issuer: TokenIssuer) -> bytes:
    return issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signed_by_another_key(issuer: TokenIssuer) -> str:
    stranger = TokenIssuer(issuer.issuer, issuer.audience)
    stranger.kid = issuer.kid
    return stranger.token()


def _tampered(issuer: TokenIssuer) -> str:
    head, _, signature = issuer.token().split(".")
    return ".".join([head, _base64url(orjson.dumps(issuer.claims(scope="items:admin"))), signature])


def _parts(change: Callable[[list[str]], list[str]]) -> Forgery:
    return lambda issuer: ".".join(change(issuer.token().split(".")))


T1_ALGORITHMS: dict[str, Forgery] = {
    "alg none without a signature": _unsigned("none", b""),
    "alg none with a signature": _unsigned("none", b"signature"),
    "alg None": _unsigned("None", b"signature"),
    "alg NONE": _unsigned("NONE", b"signature"),
    "alg nOnE": _unsigned("nOnE", b"signature"),
    "HS256 keyed with the public key in PEM": _hmac_with(_pem),
    "HS256 keyed with the public key as JWK": _hmac_with(lambda issuer: orjson.dumps(issuer.jwk())),
    "RS256 declared for an EC key": _with_head(alg="RS256"),
    "EdDSA declared for an EC key": _with_head(alg="EdDSA"),
    "ES384": _with_head(alg="ES384"),
    "ES256K": _with_head(alg="ES256K"),
    "no alg": _with_head(alg=...),
    "alg null": _with_head(alg=None),
    "alg is a list": _with_head(alg=["ES256"]),
    "alg is an object": _with_head(alg={"ES256": 1}),
    "signed by another key": _signed_by_another_key,
    "claims changed after signing": _tampered,
}

T2_CLAIMS: dict[str, Forgery] = {
    "typ JWT": _with_head(typ="JWT"),
    "no typ": _with_head(typ=...),
    "typ is a list": _with_head(typ=["at+jwt"]),
    "an ID token": _with_head(typ="id+jwt"),
    **{
        f"no {claim}": _with_claims(**{claim: None})
        for claim in ("iss", "aud", "exp", "iat", "sub", "jti", "sid")
    },
    "foreign iss": _with_claims(iss="http://elsewhere.test"),
    "iss is a list": _with_claims(iss=["http://issuer.test"]),
    "iss is an object": _with_claims(iss={"http://issuer.test": 1}),
    "foreign aud": _with_claims(aud="elsewhere"),
    "aud is an object": _with_claims(aud={"tollhouse": 1}),
    "aud is an empty list": _with_claims(aud=[]),
    "exp beyond the leeway": _with_claims(expires_in=-61),
    "exp is text": _with_claims(exp="soon"),
    "exp is digits in a string": _with_claims(exp="99999999999"),
    "exp is true": _with_claims(exp=True),
    "exp is infinite": lambda issuer: _sign(
        issuer, _head(issuer), orjson.dumps(issuer.claims(exp=1)).replace(b'"exp":1', b'"exp":1e999')
    ),
    "exp is NaN": lambda issuer: _sign(
        issuer, _head(issuer), orjson.dumps(issuer.claims(exp=1)).replace(b'"exp":1', b'"exp":NaN')
    ),
    "iat in the future": _with_claims(iat=2**40),
    "iat is text": _with_claims(iat="yesterday"),
    "nbf in the future": _with_claims(nbf=2**40),
    "sub is empty": _with_claims(sub=""),
    "sub is a name": _with_claims(sub="ada"),
    "sub is a number": _with_claims(sub=1),
    "sub is zero": _with_claims(sub="0"),
    "sub is negative": _with_claims(sub="-1"),
    "sub is 2^63": _with_claims(sub=str(2**63)),
    "sub is padded": _with_claims(sub=" 1"),
    "sub is in Arabic digits": _with_claims(sub="١"),
    "sub has 5000 digits": _with_claims(sub="1" * 2000),
    "sid is a number": _with_claims(sid=1),
    "sid is empty": _with_claims(sid=""),
    "sid is an object": _with_claims(sid={"a": 1}),
}

T3_FORM: dict[str, Forgery] = {
    "crit": _with_head(crit=["exp"]),
    "crit, empty": _with_head(crit=[]),
    "b64": _with_head(b64=False),
    "jku": _with_head(jku="http://127.0.0.1/jwks.json"),
    "x5u": _with_head(x5u="http://127.0.0.1/cert.pem"),
    "x5c": _with_head(x5c=["MII"]),
    "jwk": lambda issuer: _sign(issuer, _head(issuer, jwk=issuer.jwk()), issuer.claims()),
    "padded base64": _parts(lambda parts: [parts[0] + "==", *parts[1:]]),
    "base64 of the other alphabet": _parts(lambda parts: [parts[0], parts[1], "+/" + parts[2][2:]]),
    "no signature": _parts(lambda parts: parts[:2]),
    "four parts": _parts(lambda parts: [*parts, "aaaa"]),
    "five parts, an encrypted token": _parts(lambda parts: [*parts, "aaaa", "aaaa"]),
    "an empty part": _parts(lambda parts: [parts[0], "", parts[2]]),
    "nothing": lambda _: "",
    "dots only": lambda _: "..",
    "white space around it": lambda issuer: f" {issuer.token()}",
    "a line break behind it": lambda issuer: f"{issuer.token()}\n",
    "not ASCII": lambda issuer: f"ä{issuer.token()}",
    "more than 4 KiB": _with_claims(note="x" * 4096),
    "header is no JSON": lambda issuer: _sign(issuer, b"{", issuer.claims()),
    "header is an array": lambda issuer: _sign(issuer, b"[]", issuer.claims()),
    "header is not UTF-8": lambda issuer: _sign(issuer, b'{"alg": "\xff"}', issuer.claims()),
    "header is nested without end": lambda issuer: _sign(issuer, b"[" * 2000, issuer.claims()),
    "claims are an array": lambda issuer: _sign(issuer, _head(issuer), b"[]"),
    "claims are no JSON": lambda issuer: _sign(issuer, _head(issuer), b"{"),
    "a length that base64 cannot have": _parts(lambda parts: ["a", *parts[1:]]),
}

T4_KEY_IDS: dict[str, Forgery] = {
    "unknown kid": _with_head(kid="unknown"),
    "no kid": _with_head(kid=...),
    "kid is empty": _with_head(kid=""),
    "kid is a list": _with_head(kid=["a"]),
    "kid is a path": _with_head(kid="../../dev/null"),
}

FORGERIES = [
    pytest.param(forge, id=f"{rule}: {name}")
    for rule, table in (("T1", T1_ALGORITHMS), ("T2", T2_CLAIMS), ("T3", T3_FORM), ("T4", T4_KEY_IDS))
    for name, forge in table.items()
]


@pytest.mark.parametrize("forge", FORGERIES)
async def test_bad_token_is_refused(
    verifier: TokenVerifier, token_issuer: TokenIssuer, forge: Forgery
) -> None:
    token = forge(token_issuer)

    with pytest.raises(InvalidToken) as refusal:
        await verifier.verify(token)

    assert refusal.value.status == 401
    assert refusal.value.headers["WWW-Authenticate"].startswith("Bearer")
    assert verifier.cached(token) is None


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(_with_head(typ="AT+JWT"), id="typ in capitals"),
        pytest.param(_with_head(typ="application/at+jwt"), id="typ as a full media type"),
        pytest.param(_with_claims(aud=["other", "tollhouse"]), id="aud is a list with ours"),
        pytest.param(_with_claims(expires_in=-2), id="exp within the leeway"),
        pytest.param(_with_claims(unknown={"nested": [1]}), id="unknown claims"),
        pytest.param(_with_claims(sub=str(MAX_ID)), id="the largest id"),
    ],
)
async def test_good_token_is_accepted(
    verifier: TokenVerifier, token_issuer: TokenIssuer, forge: Forgery
) -> None:
    assert (await verifier.verify(forge(token_issuer))).id in (1, MAX_ID)


async def test_principal_is_what_the_token_says(verifier: TokenVerifier, token_issuer: TokenIssuer) -> None:
    token = token_issuer.token(42, scope="items:write  items:admin", sid="session", exp=4_000_000_000)

    principal = await verifier.verify(token)

    assert principal.id == 42
    assert principal.scopes == {"items:write", "items:admin"}
    assert principal.session_id == "session"
    assert principal.issuer == token_issuer.issuer
    assert principal.expires_at == 4_000_000_000
    assert token not in repr(principal)


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
async def test_each_accepted_algorithm_verifies(key_server: Any, algorithm: str) -> None:
    key: Any
    key, public = {
        "ES256": lambda: _pair(ECAlgorithm, generate_private_key(SECP256R1())),
        "EdDSA": lambda: _pair(OKPAlgorithm, Ed25519PrivateKey.generate()),
        "RS256": lambda: _pair(RSAAlgorithm, generate_rsa_key(65537, 2048)),
    }[algorithm]()
    key_server.publish({**public, "kid": "k"})
    issuer = TokenIssuer()
    verifier = _verifier_of(issuer, jwks_url=key_server.url)

    token = jwt.encode(issuer.claims(5), key, algorithm=algorithm, headers={"typ": "at+jwt", "kid": "k"})
    principal = await verifier.verify(token)

    assert principal.id == 5
    await verifier.aclose()


def _pair(kind: Any, key: Any) -> tuple[Any, dict[str, Any]]:
    return key, kind.to_jwk(key.public_key(), as_dict=True)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as cached tokens and key fetches see it."""
    clock = Clock()
    monkeypatch.setattr(tokens, "time", clock)
    monkeypatch.setattr(jwks, "monotonic", clock)
    return clock


async def test_cache_is_exact_about_expiry(
    verifier: TokenVerifier, token_issuer: TokenIssuer, clock: Clock
) -> None:
    token = token_issuer.token(expires_in=600)
    principal = await verifier.verify(token)

    clock.now = principal.expires_at - 0.001
    assert verifier.cached(token) is principal
    clock.now = principal.expires_at
    assert verifier.cached(token) is None


async def test_token_in_its_leeway_is_never_cached(
    verifier: TokenVerifier, token_issuer: TokenIssuer
) -> None:
    token = token_issuer.token(expires_in=-1)

    await verifier.verify(token)

    assert verifier.cached(token) is None


async def test_cache_is_bounded_and_drops_the_oldest(
    verifier: TokenVerifier, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 3)
    issued = [token_issuer.token(user) for user in range(1, 6)]

    for token in issued:
        await verifier.verify(token)

    assert [verifier.cached(token) is not None for token in issued] == [False, False, True, True, True]


async def test_expired_tokens_do_not_push_out_good_ones_that_are_verified_again(
    verifier: TokenVerifier, token_issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MAX_CACHED_TOKENS", 2)
    first, second = token_issuer.token(1), token_issuer.token(2)
    await verifier.verify(first)
    await verifier.verify(second)

    await verifier.verify(second)

    assert verifier.cached(first) is not None


async def test_cache_is_emptied_when_the_keys_change(key_server: Any) -> None:
    issuer, successor = TokenIssuer(), TokenIssuer()
    key_server.publish(issuer.jwk())
    verifier = _verifier_of(issuer, jwks_url=key_server.url)
    token = issuer.token()
    await verifier.verify(token)

    key_server.publish(successor.jwk())
    await verifier.refresh()

    assert verifier.cached(token) is None
    with pytest.raises(InvalidToken):
        await verifier.verify(token)
    await verifier.aclose()


async def test_cache_is_emptied_when_a_key_changes_under_the_same_id(key_server: Any) -> None:
    issuer, successor = TokenIssuer(), TokenIssuer()
    successor.kid = issuer.kid
    key_server.publish(issuer.jwk())
    verifier = _verifier_of(issuer, jwks_url=key_server.url)
    token = issuer.token()
    await verifier.verify(token)

    key_server.publish(successor.jwk())
    await verifier.refresh()

    assert verifier.cached(token) is None
    await verifier.aclose()


async def test_unknown_key_ids_cause_one_fetch_in_thirty_seconds(key_server: Any, clock: Clock) -> None:
    issuer, successor = TokenIssuer(), TokenIssuer()
    key_server.publish(issuer.jwk())
    verifier = _verifier_of(issuer, jwks_url=key_server.url)
    await verifier.refresh()

    key_server.publish(issuer.jwk(), successor.jwk())
    clock.now += FETCH_INTERVAL - 0.1
    for _ in range(5):
        with pytest.raises(InvalidToken):
            await verifier.verify(successor.token())
    assert key_server.fetches == 1

    clock.now += 0.2
    assert (await verifier.verify(successor.token())).id == 1
    for _ in range(5):
        with pytest.raises(InvalidToken):
            await verifier.verify(issuer.token(headers={"kid": "unknown"}))
    assert key_server.fetches == 2
    await verifier.aclose()


@pytest.mark.parametrize("failure", ["status", "garbage", "weak key", "gone"])
async def test_failed_fetch_keeps_the_keys(key_server: Any, clock: Clock, failure: str) -> None:
    issuer = TokenIssuer()
    key_server.publish(issuer.jwk())
    verifier = _verifier_of(issuer, jwks_url=key_server.url)
    await verifier.refresh()

    match failure:
        case "status":
            key_server.status = 500
        case "garbage":
            key_server.document = b"<html>"
        case "weak key":
            key_server.publish(issuer.jwk(), {"kty": "oct", "kid": "hmac", "k": "c2VjcmV0"})
        case "gone":
            key_server.publish()
    clock.now += 3600
    await verifier.refresh()

    assert key_server.fetches == 2
    assert (await verifier.verify(issuer.token())).id == 1
    await verifier.aclose()


async def test_without_keys_tokens_cannot_be_judged(key_server: Any, clock: Clock) -> None:
    issuer = TokenIssuer()
    key_server.status = 503
    verifier = _verifier_of(issuer, jwks_url=key_server.url)

    for _ in range(5):
        with pytest.raises(KeysUnavailable) as refusal:
            await verifier.verify(issuer.token())
    assert refusal.value.status == 503
    assert refusal.value.headers["Retry-After"]
    with pytest.raises(KeysUnavailable):
        await verifier.check_ready()
    assert key_server.fetches == 1

    key_server.status = 200
    key_server.publish(issuer.jwk())
    clock.now += FIRST_FETCH_INTERVAL
    assert (await verifier.verify(issuer.token())).id == 1
    await verifier.check_ready()
    await verifier.aclose()


async def test_keys_are_fetched_in_the_background_until_they_are_there(
    key_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "FIRST_KEYS_RETRY", 0.01)
    issuer = TokenIssuer()
    key_server.status = 503
    async with _verifier_of(issuer, jwks_url=key_server.url) as verifier:
        await eventually(lambda: key_server.fetches > 1)
        assert not verifier.ready

        key_server.status = 200
        key_server.publish(issuer.jwk())
        await eventually(lambda: verifier.ready)


async def test_oversized_key_set_is_not_read_to_its_end(key_server: Any) -> None:
    issuer = TokenIssuer()
    key_server.document = orjson.dumps({"keys": [issuer.jwk()], "padding": "x" * jwks.MAX_JWKS_BYTES})
    verifier = _verifier_of(issuer, jwks_url=key_server.url)

    with pytest.raises(KeysUnavailable):
        await verifier.verify(issuer.token())
    await verifier.aclose()


class _ProbeSettings(Settings):
    service = "probe"
    port: int = 1


async def test_external_issuers_are_accepted_by_their_own_rules(key_server: Any) -> None:
    external = TokenIssuer("https://login.example.com", "api://tollhouse")
    key_server.publish(external.jwk())
    trusted = {
        "issuer": external.issuer,
        "audience": external.audience,
        "jwks_url": key_server.url,
        "token_types": ["JWT"],
        "user_claim": "employee",
        "user_ids": "ours",
        "scope_claim": "roles",
        "session_claim": "session",
    }
    claims: dict[str, Any] = {
        "sub": "an opaque name",
        "jti": None,
        "sid": None,
        "employee": 7,
        "roles": ["items:write", 5],
    }
    async with TokenIssuer().serving() as own:
        settings = _ProbeSettings.model_validate(
            {"token_issuer": own.issuer, "jwks_url": own.jwks_url, "trusted_issuers": [trusted]}
        )
        verifier = TokenVerifier(issuers(settings))

        principal = await verifier.verify(external.token(headers={"typ": "JWT"}, session="s1", **claims))
        assert principal.id == 7
        assert principal.scopes == {"items:write"}
        assert principal.session_id == "s1"

        assert (await verifier.verify(own.token(3))).id == 3
        with pytest.raises(InvalidToken):  # our own issuer's tokens keep our own rules
            await verifier.verify(own.token(3, headers={"typ": "JWT"}))
        with pytest.raises(InvalidToken):  # one issuer's keys do not sign for the other
            await verifier.verify(external.token(iss=own.issuer, aud=own.audience))
        with pytest.raises(InvalidToken):  # the mapped claim must name a user
            await verifier.verify(external.token(headers={"typ": "JWT"}, employee="nobody"))
        await verifier.aclose()


def test_ids_of_external_users_are_stable_exact_in_json_and_never_ours() -> None:
    ids = {
        derived_id(issuer, name)
        for issuer in ("https://a.example", "https://b.example")
        for name in ("x", "y")
    }

    assert derived_id("https://a.example", "x") in ids
    assert len(ids) == 4
    assert all(DERIVED_IDS <= user_id < 2**53 for user_id in ids)
    for nobody in (None, "", 7):
        with pytest.raises(InvalidToken):
            derived_id("https://a.example", nobody)


async def test_key_of_another_curve_is_not_accepted(key_server: Any) -> None:
    issuer = TokenIssuer()
    key = generate_private_key(SECP384R1())
    key_server.publish({**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k"})
    verifier = _verifier_of(issuer, jwks_url=key_server.url)

    with pytest.raises(KeysUnavailable):
        await verifier.verify(issuer.token(headers={"kid": "k"}))
    await verifier.aclose()
