"""That the measured process is the whole product: what it must refuse or rewrite, asked by exact bytes (requirements G1-G5, T1-T4)."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench import standin
from bench.model import BenchError
from bench.probe import Answer, exchange, get
from bench.standin import StandIn
from bench.system import Server, System
from shared.testing import TokenIssuer

_PATH = standin.SMALL.encode()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Bytes that must be refused."""

    rule: str
    request: bytes
    status: int
    closes: bool = False


def gateway_is_strict(gateway: Server, system: System, upstream: StandIn) -> None:
    """Ask the gateway that has just been measured.

    Raises:
        BenchError: which rule it broke.
    """
    checked = 0
    for refusal in (*wire_refusals(system.issuer.token()), *token_refusals(system.issuer)):
        answer = _ask(gateway, refusal.request)
        if answer.status != refusal.status or (refusal.closes and not answer.closed):
            raise BenchError(f"{refusal.rule}: {refusal.request[:200]!r} was answered\n{answer.head}")
        checked += 1
    _drops_fields(gateway, system)
    _fetches_keys_rarely(gateway, system, upstream)
    print(f"\nThe gateway that was measured kept G1-G5 and T1-T4 ({checked + 2} checks).", flush=True)


def same_answer(server: Server, path: str, token: str, body: bytes) -> None:
    """Ask once before measuring.

    Raises:
        BenchError: the answer is not what the service says.
    """
    answer = get(server.url + path, token)
    if answer.status != 200 or answer.body != body:
        raise BenchError(f"{server.name} answered {path} by {answer.head}{answer.body[:200]!r}")


def wire_refusals(token: str) -> Iterator[Refusal]:
    """Requests against G1, G2, G3 and G5; those with a body come from somebody who may send it."""
    authorization = b"Authorization: Bearer %b\r\n" % token.encode()
    post = b"POST /v1/items HTTP/1.1\r\nHost: a\r\n" + authorization
    for fields in (
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"Content-Length: 3, 3\r\n\r\nabc",
        b"X: a\r\n b\r\n\r\n",
        b"X: a\n\r\n\r\n",
        b"X: a\x01b\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ):
        yield Refusal("G1", post + fields, 400, closes=True)
    yield Refusal(
        "G1",
        b"POST /v1/items HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        closes=True,
    )
    for hosts in (b"", b"Host: a\r\nHost: a\r\n", b"Host: a b\r\n"):
        yield Refusal("G2", b"GET %b HTTP/1.1\r\n%b\r\n" % (_PATH, hosts), 400)
    for path in (
        b"/v1/items/../users",
        b"/v1/items/%2e%2e",
        b"/v1/items/a%2fb",
        b"/v1/items/a%5cb",
        b"/v1//items",
    ):
        yield Refusal("G3", b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path, 400)
    for path in (b"/v1/items/%00", b"/v1/items/\xc3\xa9"):
        yield Refusal("G3", b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path, 400)
    yield Refusal("G5", post + b"Content-Length: 1048577\r\n\r\n", 413)
    yield Refusal("G5", post + b"Transfer-Encoding: chunked\r\n\r\n100001\r\n" + bytes(2**20 + 1), 413)
    yield Refusal("G5", b"GET %b HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (_PATH, b"x" * 20_000), 431)


def token_refusals(issuer: TokenIssuer) -> Iterator[Refusal]:
    """Tokens against T1, T2 and T3, at a route where a token is optional: a bad one is refused all the same."""
    public = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = issuer.claims()
    header: dict[str, Any] = {"typ": "at+jwt", "kid": issuer.kid}
    good = issuer.token()
    head, payload, signature = good.split(".")
    for algorithm in ("none", "None", "HS256"):
        yield _token("T1", f"{_part({**header, 'alg': algorithm})}.{payload}.")
    signed = f"{_part({**header, 'alg': 'HS256'})}.{payload}"
    mac = jwt.get_algorithm_by_name("HS256").sign(signed.encode(), public)
    yield _token("T1", f"{signed}.{_base64(mac)}")
    yield _token("T2", issuer.token(headers={"typ": "JWT"}))
    for claim in ("iss", "aud", "exp", "iat", "sub", "jti", "sid"):
        without: dict[str, Any] = {claim: None}
        yield _token("T2", issuer.token(**without))
    yield _token("T2", issuer.token(exp=claims["iat"] - 120))
    yield _token("T2", issuer.token(aud="somebody else"))
    yield _token("T2", issuer.token(iss="http://somebody.else"))
    for field in ({"crit": ["x"]}, {"jku": "http://a"}, {"x5u": "http://a"}, {"jwk": issuer.jwk()}):
        yield _token("T3", issuer.token(headers=field))
    yield _token("T3", f"{head}.{payload}")
    yield _token("T3", f"{good}.{signature}")
    yield _token("T3", f"{good}=")
    yield _token("T3", issuer.token(scope="x" * 4096))


def _drops_fields(gateway: Server, system: System) -> None:
    claims = b"X-Forwarded-For: 1.2.3.4\r\nX-User-Id: 1\r\nX-Real-IP: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nTE: trailers\r\n"
    token = system.issuer.token().encode()
    answer = _ask(
        gateway,
        b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: X-Hop\r\nX-Hop: 1\r\n%bAuthorization: Bearer %b\r\n\r\n"
        % (standin.ECHO.encode(), claims, token),
    )
    wanted = dict.fromkeys(standin.SEEN_FIELDS, "") | {"x_forwarded_for": "127.0.0.1"}
    if answer.status != 200 or json.loads(answer.body) != wanted:
        raise BenchError(f"G4: the service saw {answer.body!r}, not {wanted}")


def _fetches_keys_rarely(gateway: Server, system: System, upstream: StandIn) -> None:
    before = upstream.key_fetches
    for number in range(20):
        token = system.issuer.token(headers={"kid": f"unknown-{number}"})
        if (answer := get(gateway.url + standin.SMALL, token)).status != 401:
            raise BenchError(f"T4: a token of an unknown key was answered\n{answer.head}")
    if (fetches := upstream.key_fetches - before) > 1:
        raise BenchError(f"T4: 20 tokens of unknown keys made the gateway fetch the keys {fetches} times")


def _ask(gateway: Server, request: bytes) -> Answer:
    try:
        return exchange(gateway.url, request)
    except (OSError, ValueError) as error:
        raise BenchError(f"{request[:200]!r} was not answered: {error!r}") from None


def _token(rule: str, token: str) -> Refusal:
    return Refusal(
        rule, b"GET %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %b\r\n\r\n" % (_PATH, token.encode()), 401
    )


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
