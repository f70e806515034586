"""Rate limits: the decision alone, and what clients see of it."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import limits
from gateway.errors import RateLimited
from gateway.limits import LimitSettings, RateLimit
from gateway.proxies import TrustedProxies, plain_address
from gateway.testing import Gateway, GatewayFactory
from shared.addresses import address_key
from shared.testing import TokenIssuer


def limit(**settings: object) -> RateLimit:
    return RateLimit("test", LimitSettings.model_validate({"quota": 3, "window": 6.0, **settings}))


def allowed(limit: RateLimit, key: str, now: float) -> bool:
    try:
        limit.take(key, now)
    except RateLimited:
        return False
    return True


def test_quota_may_come_at_once_and_comes_back_evenly() -> None:
    one = limit()
    policy = b'ratelimit-policy: "test";q=3;w=6\r\n'
    assert [one.take("a", 100.0) for _ in range(3)] == [
        policy + b'ratelimit: "test";r=2;t=2\r\n',
        policy + b'ratelimit: "test";r=1;t=4\r\n',
        policy + b'ratelimit: "test";r=0;t=6\r\n',
    ]
    with pytest.raises(RateLimited) as caught:
        one.take("a", 100.5)
    assert caught.value.headers == {
        "Retry-After": "2",
        "RateLimit-Policy": '"test";q=3;w=6',
        "RateLimit": '"test";r=0;t=2',
    }
    assert allowed(one, "a", 102.0)
    assert not allowed(one, "a", 102.0)
    assert [allowed(one, "a", 110.0) for _ in range(4)] == [True, True, True, False]


def test_keys_do_not_share() -> None:
    one = limit(quota=1)
    assert allowed(one, "a", 0.0)
    assert allowed(one, "b", 0.0)
    assert not allowed(one, "a", 0.0)


def test_refusals_spend_nothing() -> None:
    one = limit(quota=1, window=1.0)
    assert allowed(one, "a", 0.0)
    for tenth in range(1, 10):
        assert not allowed(one, "a", tenth / 10)
    assert allowed(one, "a", 1.0)


@given(st.lists(st.floats(0, 3), max_size=60))
def test_never_more_than_quota_and_refill_within_any_time(pauses: list[float]) -> None:
    one, now, granted = limit(), 0.0, []
    for pause in pauses:
        now += pause
        if allowed(one, "a", now):
            granted.append(now)
    for index, start in enumerate(granted):
        for count, end in enumerate(granted[index:], 1):
            assert count <= 3 + (end - start) / 2 + 1e-6 + 1e-2


def test_memory_is_bounded_and_forgets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 100)
    one = limit()
    for number in range(10_000):
        one.take(str(number), 0.0)
    assert len(one._full_at) + len(one._older) <= 200
    one.take("late", 100.0)
    one.take("later", 200.0)
    assert set(one._full_at) | set(one._older) == {"late", "later"}


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_subscriber_is_one_address(address: str, key: str) -> None:
    assert address_key(address) == key


def get(path: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, fields)


async def statuses(gateway: Gateway, path: bytes, fields: bytes = b"", count: int = 4) -> list[int]:
    async with gateway.connect() as raw:
        await raw.send(get(path, fields) * count)
        return [(await raw.response()).status for _ in range(count)]


async def test_client_sees_what_is_left_and_when_to_come_again(gateway: Gateway) -> None:
    async with gateway.connect() as raw:
        for left in (2, 1, 0):
            await raw.send(get(b"/limited"))
            answer = await raw.response()
            assert answer.status == 200
            assert answer.field("ratelimit-policy") == '"tight";q=3;w=60'
            assert (answer.field("ratelimit") or "").startswith(f'"tight";r={left};t=')
        await raw.send(get(b"/limited"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (429, "rate_limited")
        assert answer.field("retry-after") == "20"
        assert (answer.field("ratelimit") or "").startswith('"tight";r=0')
    assert len(gateway.upstream.requests) == 3


async def test_users_count_apart_from_each_other_and_from_their_address(
    gateway: Gateway, issuer: TokenIssuer
) -> None:
    def token(user_id: int) -> bytes:
        return b"Authorization: Bearer %b\r\n" % issuer.token(user_id).encode()

    first, second = token(1), token(2)
    for fields in (first, second):  # verified once, and so known
        assert await statuses(gateway, b"/open", fields, 1) == [200]
    assert await statuses(gateway, b"/limited", first) == [200, 200, 200, 429]
    assert await statuses(gateway, b"/limited", second) == [200, 200, 200, 429]
    assert await statuses(gateway, b"/limited") == [200, 200, 200, 429]


async def test_unverified_tokens_count_against_the_address(gateway: Gateway, issuer: TokenIssuer) -> None:
    for user_id in range(3):
        forged = TokenIssuer(issuer.issuer).token(user_id).encode()
        assert await statuses(gateway, b"/limited", b"Authorization: Bearer %b\r\n" % forged, 1) == [401]
    fresh = issuer.token(9).encode()
    assert await statuses(gateway, b"/limited", b"Authorization: Bearer %b\r\n" % fresh, 1) == [429]


async def test_limit_by_address_counts_users_together(gateway: Gateway, issuer: TokenIssuer) -> None:
    for user_id, expected in ((1, 200), (2, 200), (3, 200), (4, 429)):
        fields = b"Authorization: Bearer %b\r\n" % issuer.token(user_id).encode()
        assert await statuses(gateway, b"/open", fields, 1) == [200]
        assert await statuses(gateway, b"/limited/address", fields, 1) == [expected]


async def test_shadow_limit_refuses_nothing(gateway: Gateway) -> None:
    assert await statuses(gateway, b"/limited/shadow", count=6) == [200] * 6
    assert gateway.app.state.proxy.routes.limits["shadow"].refused == 3


async def test_g8_sockets_without_a_token_are_capped_per_address(
    gateway: Gateway, issuer: TokenIssuer
) -> None:
    handshake = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    for expected in (
        200,
        200,
        200,
        429,
    ):  # the scripted service does not accept: what matters is who is asked
        assert await statuses(gateway, b"/ws/limited", handshake, 1) == [expected]
    token = b"Authorization: Bearer %b\r\n" % issuer.token().encode()
    assert await statuses(gateway, b"/ws/limited", handshake + token, 1) == [200]


@pytest.mark.parametrize(
    ("fields", "address", "scheme"),
    [
        (b"", "127.0.0.1", "http"),
        (b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n", "192.0.2.1", "https"),
        (b"X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\n", "192.0.2.1", "http"),
        (b"X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.2\r\n", "192.0.2.1", "http"),
        (b"X-Forwarded-For: 192.0.2.1:4711\r\n", "192.0.2.1", "http"),
        (b"X-Forwarded-For: [2001:db8::1]:4711\r\n", "2001:db8::1", "http"),
        (b"X-Forwarded-For: 6.6.6.6, 2001:db8::1\r\n", "2001:db8::1", "http"),
        (b"X-Forwarded-For: 192.0.2.1, ::ffff:127.0.0.9\r\n", "192.0.2.1", "http"),
        (b"X-Forwarded-For: 6.6.6.6, unknown\r\n", "127.0.0.1", "http"),
        (b"X-Forwarded-For: 192.0.2.1,\r\n", "127.0.0.1", "http"),
        (b"X-Forwarded-For: nonsense\r\nX-Forwarded-Proto: gopher\r\n", "127.0.0.1", "http"),
    ],
)
async def test_g4_client_behind_a_trusted_proxy_is_the_last_that_no_trusted_one_has(
    start: GatewayFactory, fields: bytes, address: str, scheme: str
) -> None:
    gateway = await start(trusted_proxies=("127.0.0.0/8",))
    assert await statuses(gateway, b"/open", fields, 1) == [200]
    (received,) = gateway.upstream.requests
    assert received.field("x-forwarded-for") == address
    assert received.field("x-forwarded-proto") == scheme


def test_ipv4_client_of_an_ipv6_socket_is_named_as_ipv4() -> None:
    assert plain_address("::ffff:192.0.2.1") == "192.0.2.1"
    assert TrustedProxies([IPv4Network("192.0.2.0/24")]).trusts(plain_address("::ffff:192.0.2.1"))
    assert plain_address("2001:DB8:0::1") == "2001:db8::1"
    assert plain_address("a socket") == "a socket"


async def test_g4_nobody_is_trusted_by_default(gateway: Gateway) -> None:
    for number in range(4):
        fields = b"X-Forwarded-For: 192.0.2.%d\r\n" % number
        assert await statuses(gateway, b"/limited", fields, 1) == [200 if number < 3 else 429]
    assert gateway.upstream.requests[0].field("x-forwarded-for") == "127.0.0.1"
