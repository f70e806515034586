"""Token attacks T1-T5 through the gateway, as a table: what is refused is 401 and the service never hears of it."""

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, RSAAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.testing import Gateway, GatewayFactory
from shared.testing import TokenIssuer, serving
from shared.testing_wire import RawConnection, RawResponse

Forge = Callable[[TokenIssuer], str]


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _forged(alg: Any, sign: Callable[[TokenIssuer, bytes], bytes]) -> Forge:
    def forge(issuer: TokenIssuer) -> str:
        head = {"alg": alg, "typ": "at+jwt", "kid": issuer.kid}
        signed = ".".join(_encoded(orjson.dumps(part)) for part in (head, issuer.claims()))
        return f"{signed}.{_encoded(sign(issuer, signed.encode()))}"

    return forge


def _by_hmac(issuer: TokenIssuer, signed: bytes) -> bytes:
    public = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return HMACAlgorithm(HMACAlgorithm.SHA256).sign(signed, public)


def _by_key(issuer: TokenIssuer, signed: bytes) -> bytes:
    return ECAlgorithm(ECAlgorithm.SHA256).sign(signed, issuer.key)


def _head(**members: Any) -> Forge:
    return lambda issuer: issuer.token(headers=members)


def _claims(**claims: Any) -> Forge:
    return lambda issuer: issuer.token(**claims)


def _parts(change: Callable[[list[str]], list[str]]) -> Forge:
    return lambda issuer: ".".join(change(issuer.token().split(".")))


ATTACKS: dict[str, dict[str, Forge]] = {
    "T1": {
        **{f"alg {alg}, unsigned": _forged(alg, lambda *_: b"") for alg in ("none", "None", "NONE", "nOnE")},
        **{
            f"alg {alg}, signed": _forged(alg, _by_key) for alg in ("none", "nOnE", "RS256", "EdDSA", "ES384")
        },
        "HS256 keyed with the public key": _forged("HS256", _by_hmac),
        "no alg": _forged(None, _by_key),
        "another key": _forged("ES256", lambda _, signed: _by_key(TokenIssuer(), signed)),
    },
    "T2": {
        "typ JWT": _head(typ="JWT"),
        "an ID token": _head(typ="id+jwt"),
        **{
            f"no {claim}": _claims(**{claim: None})
            for claim in ("iss", "aud", "exp", "iat", "sub", "jti", "sid")
        },
        "foreign iss": _claims(iss="http://elsewhere.test"),
        "foreign aud": _claims(aud="elsewhere"),
        "expired beyond the leeway": _claims(expires_in=-61),
        "from the future": _claims(iat=2**40),
    },
    "T3": {
        "crit": _head(crit=["exp"]),
        "b64": _head(b64=False),
        "jku": _head(jku="http://127.0.0.1/jwks.json"),
        "x5u": _head(x5u="http://127.0.0.1/cert.pem"),
        "jwk": lambda issuer: issuer.token(headers={"jwk": issuer.jwk()}),
        "padded": _parts(lambda parts: [parts[0] + "==", *parts[1:]]),
        "two parts": _parts(lambda parts: parts[:2]),
        "four parts": _parts(lambda parts: [*parts, "aaaa"]),
        "five parts": _parts(lambda parts: [*parts, "aaaa", "aaaa"]),
        "an empty part": _parts(lambda parts: [parts[0], "", parts[2]]),
        "more than 4 KiB": _claims(note="x" * 4096),
    },
    "T4": {
        "unknown kid": _head(kid="unknown"),
        "empty kid": _head(kid=""),
        "a path as kid": _head(kid="../../dev/null"),
    },
}


class KeyServer:
    """Publishes whatever key set a test says; None: it is down."""

    def __init__(self) -> None:
        self.document: list[Any] | None = None
        self.fetches = 0

    async def answer(self, _request: Request) -> Response:
        self.fetches += 1
        if self.document is None:
            return Response(status_code=500)
        return Response(orjson.dumps({"keys": self.document}))


@pytest.fixture
async def keys(issuer: TokenIssuer) -> AsyncIterator[KeyServer]:
    """The issuer's key server; begins with the issuer's key."""
    server = KeyServer()
    server.document = [issuer.jwk()]
    async with serving(Starlette(routes=[Route("/jwks.json", server.answer)])) as url:
        issuer.jwks_url = f"{url}/jwks.json"
        yield server


async def ask(raw: RawConnection, token: str) -> RawResponse:
    await raw.send(f"GET /closed/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return await raw.response()


@pytest.mark.parametrize("rule", ATTACKS)
async def test_t1_t2_t3_t4_forged_tokens_are_401_and_reach_no_service(gateway: Gateway, rule: str) -> None:
    async with gateway.connect() as raw:
        for name, forge in ATTACKS[rule].items():
            token = forge(gateway.issuer)
            for _ in range(2):  # a refused token is not remembered as a good one
                answer = await ask(raw, token)
                assert (answer.status, answer.json()["code"]) == (401, "invalid_token"), name
                assert (answer.field("www-authenticate") or "").startswith("Bearer"), name
        assert gateway.upstream.requests == []
        assert (await ask(raw, gateway.issuer.token())).status == 200


async def test_t1_t2_t3_forged_tokens_open_no_websocket(gateway: Gateway) -> None:
    for attacks in ATTACKS.values():
        for name, forge in attacks.items():
            async with gateway.connect() as raw:
                await raw.send(
                    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
                    b"Authorization: Bearer %b\r\n\r\n" % forge(gateway.issuer).encode()
                )
                assert (await raw.response()).status == 401, name
    assert gateway.upstream.requests == []


async def test_t4_unknown_key_ids_fetch_no_more_than_once(start: GatewayFactory, keys: KeyServer) -> None:
    gateway = await start()
    before = keys.fetches
    async with gateway.connect() as raw:
        for number in range(20):
            token = gateway.issuer.token(headers={"kid": f"unknown-{number}"})
            assert (await ask(raw, token)).status == 401
    assert keys.fetches - before <= 1


async def test_t4_users_that_is_down_breaks_no_valid_token(start: GatewayFactory, keys: KeyServer) -> None:
    gateway = await start()
    keys.document = None
    await gateway.app.state.verifier.refresh()
    async with gateway.connect() as raw:
        assert (await ask(raw, gateway.issuer.token())).status == 200
        assert (await ask(raw, gateway.issuer.token(headers={"kid": "unknown"}))).status == 401


async def test_t4_without_keys_at_start_it_is_503_and_not_401(
    start: GatewayFactory, keys: KeyServer, issuer: TokenIssuer
) -> None:
    keys.document = None
    gateway = await start()
    async with gateway.connect() as raw:
        answer = await ask(raw, issuer.token())
        assert (answer.status, answer.json()["code"]) == (503, "keys_unavailable")
        assert gateway.upstream.requests == []
        keys.document = [issuer.jwk()]
        await gateway.app.state.verifier.refresh()
        assert (await ask(raw, issuer.token())).status == 200


def _private(stranger: TokenIssuer) -> list[Any]:
    return [{**ECAlgorithm.to_jwk(stranger.key, as_dict=True), "kid": "new"}]


def _weak(_: TokenIssuer) -> list[Any]:
    weak = generate_rsa_key(65537, 1024)  # noqa: S505  # to see it refused
    return [{**RSAAlgorithm.to_jwk(weak.public_key(), as_dict=True), "kid": "new"}]


REFUSED_SETS: dict[str, Callable[[TokenIssuer], list[Any]]] = {
    "private": _private,
    "duplicate kid": lambda stranger: [stranger.jwk(), stranger.jwk()],
    "mixed use": lambda stranger: [{**stranger.jwk(), "key_ops": ["verify", "encrypt"]}],
    "weak": _weak,
    "symmetric": lambda _: [{"kty": "oct", "kid": "new", "k": "c2VjcmV0"}],
}


@pytest.mark.parametrize("bad", REFUSED_SETS.values(), ids=REFUSED_SETS)
async def test_t5_bad_key_set_is_refused_whole_and_the_old_one_kept(
    start: GatewayFactory, keys: KeyServer, issuer: TokenIssuer, bad: Callable[[TokenIssuer], list[Any]]
) -> None:
    gateway = await start()
    stranger = TokenIssuer(issuer.issuer, issuer.audience)
    good = TokenIssuer(issuer.issuer, issuer.audience)
    keys.document = [good.jwk(), *bad(stranger)]
    await gateway.app.state.verifier.refresh()
    async with gateway.connect() as raw:
        assert (await ask(raw, issuer.token())).status == 200
        assert (await ask(raw, good.token())).status == 401
        assert (await ask(raw, stranger.token())).status == 401
