"""The HTTP data path: what passes, in which form, and what happens when either side misbehaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack

import pytest

from gateway.connection import UpstreamConnection
from gateway.testing import OK, OPTIONS, Gateway, GatewayFactory, ImpatientProtocol, Peer, Script, answer_ok
from shared.deadlines import NEVER
from shared.errors import Problem
from shared.testing import TokenIssuer, eventually
from shared.testing_wire import RawConnection, raw_connection

HOST = b"Host: example\r\n"


def get(path: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (path, version, HOST, fields)


def post(path: bytes, body: bytes = b"", fields: bytes | None = None) -> bytes:
    fields = b"Content-Length: %d\r\n" % len(body) if fields is None else fields
    return b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, HOST, fields, body)


def bearer(token: str) -> bytes:
    return b"Authorization: Bearer %b\r\n" % token.encode()


def always(*pieces: bytes, close: bool = False) -> Script:
    """A service that answers every request with these bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)
            if close:
                return

    return script


# What passes


async def test_g4_request_fields_that_claim_something_are_dropped(
    gateway: Gateway, raw: RawConnection
) -> None:
    claims = [
        b"X-Forwarded-For: 1.2.3.4",
        b"X-Forwarded-Host: evil",
        b"X-Forwarded-Anything: 1",
        b"Forwarded: for=1.2.3.4",
        b"X-Real-IP: 1.2.3.4",
        b"X-User-Id: 1",
        b"X-User-Anything: 1",
        b"X_Under: 1",
        b"Authoriz_ation: 1",
        b"Connection: close-not, X-Hop",
        b"X-Hop: 1",
        b"Keep-Alive: 5",
        b"TE: trailers",
        b"Trailer: X",
        b"Proxy-Authorization: 1",
        b"Proxy-Connection: keep-alive",
        b"Upgrade: h2c",
    ]
    await raw.send(
        get(
            b"/open/x",
            b"".join(claim + b"\r\n" for claim in claims) + b"Cookie: a=b\r\nX-Kept: 1\r\nx-kept: 2\r\n",
        )
    )
    assert (await raw.response()).status == 200
    (received,) = gateway.upstream.requests
    fields = dict(received.head.headers)
    request_id = fields.pop(b"x-request-id")
    assert len(request_id) == 36
    assert fields.pop(b"traceparent")
    assert [value for name, value in received.head.headers if name == b"x-kept"] == [b"1", b"2"]
    assert fields == {
        b"host": gateway.upstream.url.removeprefix("http://").encode(),
        b"cookie": b"a=b",
        b"x-kept": b"2",
        b"x-forwarded-for": b"127.0.0.1",
        b"x-forwarded-proto": b"http",
        b"x-forwarded-host": b"example",
    }


async def test_query_passes_byte_for_byte_and_a_trailing_slash_does_not(
    gateway: Gateway, raw: RawConnection
) -> None:
    query = b"?b=2&a=1&a=%2e%2e%2F&x=%zz&y=\xff&//..&empty=&&"
    for path, forwarded in ((b"/open/x/", b"/open/x"), (b"/open/", b"/open"), (b"/open/%41%7e", b"/open/A~")):
        await raw.send(get(path + query))
        assert (await raw.response()).status == 200
        assert gateway.upstream.requests[-1].head.target == forwarded + query


@pytest.mark.parametrize(
    "path",
    [
        b"/open/../closed",
        b"/open/..",
        b"/open/.",
        b"/open/./x",
        b"/open/..;/closed",
        b"/open/.;x",
        b"/open/%2e%2e/closed",
        b"/open/%2E",
        b"/open/.%2e/x",
        b"/open/a%2fb",
        b"/open/a%5Cb",
        b"/open/a\\b",
        b"/open//x",
        b"//open/x",
        b"/open/x//",
        b"/open/%00",
        b"/open/%0d%0a",
        b"/open/%7f",
        b"/open/\xc3\xa9",
        b"/open/%zz",
        b"/open/%",
        b'/open/"x"',
        b"/open/{x}",
    ],
)
async def test_g3_ambiguous_path_is_refused(gateway: Gateway, raw: RawConnection, path: bytes) -> None:
    await raw.send(get(path))
    answer = await raw.response()
    assert (answer.status, answer.json()["code"]) == (400, "path_ambiguous")
    assert gateway.upstream.requests == []


@pytest.mark.parametrize(
    "path", [b"/open/a%20b", b"/open/%C3%A9", b"/open/a.b..c", b"/open/...", b"/open/a;b=c,d", b"/open/%252e"]
)
async def test_unusual_but_plain_path_passes_as_it_is(
    gateway: Gateway, raw: RawConnection, path: bytes
) -> None:
    await raw.send(get(path))
    assert (await raw.response()).status == 200
    assert gateway.upstream.requests[0].head.target == path


@pytest.mark.parametrize("path", [b"/opened", b"/ope", b"/unknown/x", b"/open%2dx"])
async def test_unknown_prefix_is_404(raw: RawConnection, path: bytes) -> None:
    await raw.send(get(path))
    answer = await raw.response()
    assert (answer.status, answer.json()["code"]) == (404, "route_not_found")


async def test_response_fields_pass_but_for_those_of_the_connection(start: GatewayFactory) -> None:
    gateway = await start(
        always(
            b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: secret\r\n"
            b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nX-Request-ID: theirs\r\nX-Process-Time-ms: 1\r\n"
            b'Access-Control-Allow-Origin: *\r\nX-Content-Type-Options: sniff\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n'
        )
    )
    async with gateway.connect() as raw:
        await raw.send(get(b"/open", b"X-Request-ID: mine.1_2-3\r\n"))
        answer = await raw.response()
    assert (answer.status, answer.field("location"), answer.field("etag")) == (302, "/elsewhere", '"1"')
    assert answer.field("set-cookie") == "a=1, b=2"
    assert answer.field("x-request-id") == "mine.1_2-3"
    assert answer.field("x-content-type-options") == "nosniff"
    assert answer.field("content-security-policy") == "frame-ancestors 'none'"
    assert answer.field("referrer-policy") == "no-referrer"
    assert float(answer.field("x-process-time-ms") or "nan") > 0
    assert (answer.field("date") or "").endswith("GMT")
    for name in ("server", "connection", "x-hop", "keep-alive", "access-control-allow-origin"):
        assert answer.field(name) is None


@pytest.mark.parametrize("value", [b"", b"a b", b"x" * 129, b"a,b", b"\xe9"])
async def test_insane_request_id_is_replaced(gateway: Gateway, raw: RawConnection, value: bytes) -> None:
    await raw.send(get(b"/open", b"X-Request-ID: %b\r\n" % value))
    answer = await raw.response()
    assert len(answer.field("x-request-id") or "") == 36
    assert gateway.upstream.requests[0].field("x-request-id") == answer.field("x-request-id")


# Bodies


@pytest.mark.parametrize(
    ("response", "body"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",), b"hello"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"he", b"llo"), b"hello"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",), b""),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",), b"hello"),
        (
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r",
                b"\nhe\r\n3\r\nllo\r\n0\r\nX-T: 1\r",
                b"\n\r\n",
            ),
            b"hello",
        ),
        ((b"HTT", b"P/1.1 200 OK\r\nConte", b"nt-Length: 5\r\n\r\nhello"), b"hello"),
        ((b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,), b"ok"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", OK), b"ok"),
    ],
)
async def test_body_passes_however_it_is_framed_and_the_connection_is_reused(
    start: GatewayFactory, response: tuple[bytes, ...], body: bytes
) -> None:
    gateway = await start(always(*response))
    async with gateway.connect() as raw:
        for _ in range(3):
            await raw.send(get(b"/open"))
            answer = await raw.response()
            assert (answer.status, answer.body) == (200, body)
            assert answer.field("x-t") is None
            assert answer.field("link") is None
    assert gateway.upstream.connections == 1


async def test_close_delimited_body_passes_and_its_connection_does_not_come_back(
    start: GatewayFactory,
) -> None:
    gateway = await start(always(b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", close=True))
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open"))
            assert (await raw.response()).body == b"hello"
    assert gateway.upstream.connections == 2


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_status_without_body_has_none_whatever_its_length_says(
    start: GatewayFactory, status: bytes
) -> None:
    gateway = await start(always(b"HTTP/1.1 %b\r\nContent-Length: 5\r\nETag: x\r\n\r\n" % status))
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open"))
            assert (await raw.response()).field("etag") == "x"
    assert gateway.upstream.connections == 1


async def test_head_passes_the_length_and_no_body(start: GatewayFactory) -> None:
    gateway = await start(always(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"))
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open").replace(b"GET", b"HEAD"))
            answer = await raw.response(to_head=True)
            assert answer.field("content-length") == "500"
    assert gateway.upstream.connections == 1


async def test_http_1_0_client_gets_a_chunked_answer_unchunked(start: GatewayFactory) -> None:
    gateway = await start(
        always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    )
    async with gateway.connect() as raw:
        await raw.send(get(b"/open", version=b"1.0"))
        answer = await raw.response()
        assert (answer.body, answer.field("transfer-encoding"), answer.field("connection")) == (
            b"hello",
            None,
            "close",
        )


@pytest.mark.parametrize("chunked", [True, False])
async def test_request_body_passes_in_pieces(gateway: Gateway, raw: RawConnection, chunked: bool) -> None:
    if chunked:
        await raw.send(
            post(b"/open", fields=b"Transfer-Encoding: chunked\r\n"),
            b"3;x=y\r\nabc\r\n",
            b"2\r\nde\r\n0\r\nT: 1\r\n\r\n",
        )
    else:
        await raw.send(post(b"/open", fields=b"Content-Length: 5\r\n"), b"abc", b"de")
    assert (await raw.response()).status == 200
    (received,) = gateway.upstream.requests
    assert (received.body, received.head.chunked, received.field("t")) == (b"abcde", chunked, None)


async def test_expect_100_continue_is_answered_by_the_gateway(gateway: Gateway, raw: RawConnection) -> None:
    await raw.send(post(b"/open", fields=b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
    assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await raw.send(b"hi")
    assert (await raw.response()).status == 200
    assert gateway.upstream.requests[0].field("expect") is None


async def test_expect_100_continue_is_not_answered_where_the_request_is_refused(raw: RawConnection) -> None:
    await raw.send(post(b"/closed", fields=b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
    assert (await raw.response()).status == 401


async def test_g5_announced_body_over_the_limit_is_413_before_the_service_hears_of_it(
    gateway: Gateway, raw: RawConnection
) -> None:
    await raw.send(post(b"/open", fields=b"Content-Length: 1001\r\n"))
    answer = await raw.response()
    assert (answer.status, answer.json()["code"], answer.field("connection")) == (
        413,
        "body_too_large",
        "close",
    )
    assert gateway.upstream.connections == 0


async def test_g5_chunked_body_over_the_limit_is_413_before_the_service_has_the_rest(
    gateway: Gateway, raw: RawConnection
) -> None:
    await raw.send(
        post(b"/open", fields=b"Transfer-Encoding: chunked\r\n"), b"1f4\r\n" + b"x" * 500 + b"\r\n"
    )
    await raw.send(b"1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n")
    answer = await raw.response()
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
    await eventually(lambda: gateway.upstream.open == 0)
    assert gateway.upstream.requests == []


async def test_g1_trailers_and_hidden_requests_stay_out(gateway: Gateway, raw: RawConnection) -> None:
    await raw.send(
        post(b"/open", fields=b"Transfer-Encoding: chunked\r\n")
        + b"1\r\na\r\n0\r\nAuthorization: Bearer stolen\r\n\r\n"
    )
    assert (await raw.response()).status == 200
    assert gateway.upstream.requests[0].field("authorization") is None
    await raw.send(post(b"/closed", fields=b"Content-Length: 60\r\n"))
    assert (await raw.response()).status == 401
    raw.writer.write(get(b"/open/hidden") * 5)
    assert await raw.rest() == b""
    assert len(gateway.upstream.requests) == 1


async def test_g7_clients_that_drip_their_bodies_hold_nothing_of_the_service(gateway: Gateway) -> None:
    drips = 10 * int(OPTIONS["max_connections"])
    async with AsyncExitStack() as stack:
        for _ in range(drips):
            raw = await stack.enter_async_context(gateway.connect())
            await raw.send(post(b"/open", fields=b"Content-Length: 500\r\n", body=b"x"))
        async with gateway.connect() as other:
            await other.send(get(b"/open"))
            assert (await other.response()).status == 200
    assert len(gateway.upstream.requests) == 1


async def test_early_answer_of_the_service_reaches_the_client(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await peer.more()

    gateway = await start(script)
    async with gateway.connect() as raw:
        await raw.send(post(b"/big", fields=b"Content-Length: 100000\r\n", body=b"x" * 70_000))
        answer = await raw.response()
        assert (answer.status, answer.body, answer.field("connection")) == (403, b"no", "close")
        raw.writer.write(get(b"/open/hidden"))
        assert await raw.rest() == b""
    await eventually(lambda: gateway.pool.connections == 0)


async def test_slow_client_pauses_the_service(start: GatewayFactory) -> None:
    size = 30_000_000

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 100_000):
            peer.writer.write(b"x" * 100_000)
            await peer.writer.drain()
            written.append(100_000)

    written: list[int] = []
    gateway = await start(script, options={"idle_timeout": 10.0})
    async with gateway.connect() as raw:
        raw.reader._limit = 10_000  # type: ignore[attr-defined]  # what a StreamReader takes before it pauses
        await raw.send(get(b"/big"))
        await eventually(lambda: len(written) > 0)
        before = -1
        while before != sum(written):  # until nothing moves any more
            before = sum(written)
            await asyncio.sleep(0.1)
        assert before < size // 2
        assert len((await raw.response()).body) == size


async def test_client_that_asks_on_and_takes_nothing_piles_nothing_up(start: GatewayFactory) -> None:
    body = b"x" * 100_000
    gateway = await start(always(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    asked = 300
    async with gateway.connect() as raw:
        raw.reader._limit = 10_000  # type: ignore[attr-defined]  # what a StreamReader takes before it pauses
        await raw.send(get(b"/open") * asked)
        await eventually(lambda: len(gateway.upstream.requests) > 0)
        before = -1
        while before != len(gateway.upstream.requests):  # until nothing moves any more
            before = len(gateway.upstream.requests)
            await asyncio.sleep(0.1)
        assert before < asked // 2
        for _ in range(asked):
            assert (await raw.response()).body == body


async def test_g7_client_that_pipelines_and_takes_nothing_is_cut_off(start: GatewayFactory) -> None:
    body = b"x" * 100_000
    gateway = await start(
        always(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body),
        protocol=ImpatientProtocol,
    )
    async with gateway.connect() as raw:
        raw.reader._limit = 10_000  # type: ignore[attr-defined]
        await raw.send(get(b"/open") * 300)
        await eventually(lambda: gateway.app.state.proxy.meters.clients == 0)


async def test_slow_service_pauses_the_client(start: GatewayFactory) -> None:
    size = 30_000_000
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.head()
        await go_on.wait()
        received = len(peer.rest)
        while received < size:
            peer.rest = b""
            received += len(await peer.more())
        await peer.send(OK)

    gateway = await start(script, options={"idle_timeout": 10.0})
    async with gateway.connect() as raw:
        await raw.send(post(b"/big", fields=b"Content-Length: %d\r\n" % size))
        sending = asyncio.create_task(raw.send(b"x" * size))
        await asyncio.sleep(0.3)
        assert not sending.done()
        go_on.set()
        assert (await raw.response()).status == 200
        await sending


# A service that misbehaves


@pytest.mark.parametrize(
    "response",
    [
        b"garbage\r\n\r\n",
        b"\x00\x01\x02",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9,
    ],
)
async def test_garbage_is_502_and_its_connection_is_not_used_again(
    start: GatewayFactory, response: bytes
) -> None:
    gateway = await start(always(response))
    async with gateway.connect() as raw:
        await raw.send(post(b"/open", b"x"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (502, "upstream_failed")
    await eventually(lambda: gateway.pool.connections == 0)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_g6_truncated_body_never_looks_complete(
    start: GatewayFactory, response: bytes, version: bytes
) -> None:
    gateway = await start(always(response, b"", close=True))
    async with gateway.connect() as raw:
        await raw.send(get(b"/open", version=version))
        with pytest.raises((EOFError, ConnectionResetError)):
            await raw.response()


async def test_g6_malformed_chunk_in_the_middle_never_looks_complete(start: GatewayFactory) -> None:
    gateway = await start(
        always(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"oops\r\n")
    )
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        with pytest.raises((EOFError, ConnectionResetError)):
            await raw.response()


async def test_surplus_bytes_end_the_connection_and_never_reach_another_client(start: GatewayFactory) -> None:
    gateway = await start(always(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open"))
            assert (await raw.response()).body == b"ok"
    assert gateway.upstream.connections == 2


async def test_bytes_on_an_idle_connection_end_it(start: GatewayFactory) -> None:
    gateway = await start(always(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"))
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        assert (await raw.response()).body == b"ok"
        await eventually(lambda: gateway.pool.connections == 0)
        await raw.send(get(b"/open"))
        assert (await raw.response()).body == b"ok"


async def test_service_that_never_answers_is_504(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.more()

    gateway = await start(script)
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (504, "upstream_timeout")
    assert gateway.upstream.connections == 1
    await eventually(lambda: gateway.pool.connections == 0)


async def test_response_that_stalls_is_cut(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await peer.more()

    gateway = await start(script)
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        with pytest.raises((EOFError, ConnectionResetError)):
            await raw.response()


async def test_whole_request_has_a_deadline(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await peer.send(b"1\r\nx\r\n")
            await asyncio.sleep(0.1)

    gateway = await start(script)
    async with gateway.connect() as raw, asyncio.timeout(8):
        await raw.send(get(b"/open"))
        with pytest.raises((EOFError, ConnectionResetError)):
            await raw.response()


async def test_service_that_is_away_is_503_with_retry_after(start: GatewayFactory) -> None:
    gateway = await start(routes_url="http://127.0.0.1:1")
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"], answer.field("retry-after")) == (
            503,
            "upstream_unavailable",
            "1",
        )


# Reuse and retries


def closes_before_second_request(*, reset: bool) -> Script:
    """A service that answers once per connection and then closes it in the very moment of reuse."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        if reset:
            peer.writer.transport.abort()

    return script


@pytest.mark.parametrize("reset", [True, False])
async def test_get_on_a_connection_that_closes_in_that_moment_is_invisibly_retried(
    start: GatewayFactory, reset: bool
) -> None:
    gateway = await start(closes_before_second_request(reset=reset))
    async with gateway.connect() as raw:
        for _ in range(4):
            await raw.send(get(b"/open"))
            assert (await raw.response()).body == b"ok"
    assert gateway.upstream.connections == 4


async def test_post_is_never_sent_twice(start: GatewayFactory) -> None:
    gateway = await start(closes_before_second_request(reset=False))
    async with gateway.connect() as raw:
        await raw.send(post(b"/open", b"1"))
        assert (await raw.response()).status == 200
        await raw.send(post(b"/open", b"2"))
        assert (await raw.response()).status == 502
    assert [received.body for received in gateway.upstream.requests] == [b"1", b"2"]


async def test_get_is_not_retried_once_something_was_seen(start: GatewayFactory) -> None:
    gateway = await start(always(b"HTTP/1.1 2", close=True))
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        assert (await raw.response()).status == 502
    assert gateway.upstream.connections == 1


async def test_service_that_says_close_is_not_asked_again_on_that_connection(start: GatewayFactory) -> None:
    gateway = await start(always(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"))
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open"))
            answer = await raw.response()
            assert (answer.body, answer.field("connection")) == (b"ok", None)
    assert gateway.upstream.connections == 2


async def test_idle_connections_are_closed_after_a_while(start: GatewayFactory) -> None:
    gateway = await start(options={"pool_idle": 0.1})
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        await raw.response()
        assert gateway.pool.connections == 1
        await eventually(lambda: gateway.pool.connections == 0)


async def test_old_connections_are_not_reused(start: GatewayFactory) -> None:
    gateway = await start(options={"pool_age": 0.001})
    async with gateway.connect() as raw:
        for _ in range(2):
            await raw.send(get(b"/open"))
            await raw.response()
            await asyncio.sleep(0.01)
    assert gateway.upstream.connections == 2


# A service in trouble


async def test_service_that_only_times_out_is_left_alone_and_then_probed(start: GatewayFactory) -> None:
    healthy = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if not healthy.is_set():
            await peer.more()
        await peer.send(OK)

    options = {"first_byte_timeout": 0.1, "breaker_failures": 2, "breaker_open": 0.5}
    gateway = await start(script, options=options)

    async def ask() -> tuple[int, str | None]:
        async with gateway.connect() as raw:
            await raw.send(get(b"/open"))
            answer = await raw.response()
            return answer.status, answer.field("retry-after")

    assert [await ask(), await ask()] == [(504, None), (504, None)]
    assert await ask() == (503, "1")
    assert len(gateway.upstream.requests) == 2
    healthy.set()
    await eventually(lambda: _is(ask(), (200, None)))
    assert await ask() == (200, None)


async def test_clients_that_are_slow_themselves_do_not_open_the_breaker(start: GatewayFactory) -> None:
    """Uploads that outlast the deadline of the whole request, while the service would have read on."""
    gateway = await start(options={"breaker_failures": 1})
    async with gateway.connect() as raw, gateway.connect() as other:
        await raw.send(post(b"/brief", b"x" * 100_000, fields=b"Content-Length: 1000000\r\n"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"], answer.field("connection")) == (
            408,
            "request_timeout",
            "close",
        )
        await other.send(get(b"/open"))
        assert (await other.response()).status == 200
    await eventually(lambda: gateway.upstream.open == gateway.pool.connections == gateway.pool.idle)


async def test_service_that_does_not_read_an_upload_is_a_service_that_fails(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.head()
        await asyncio.Event().wait()

    gateway = await start(script, options={"breaker_failures": 1})
    async with gateway.connect() as raw, gateway.connect() as other:
        sending = asyncio.create_task(
            raw.send(post(b"/big", b"x" * 20_000_000, fields=b"Content-Length: 30000000\r\n"))
        )
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (504, "upstream_timeout")
        sending.cancel()
        await other.send(get(b"/open"))
        assert (await other.response()).json()["code"] == "upstream_unavailable"


class Ending(asyncio.Future[str]):
    """A request whose end alone is of interest."""

    def connected(self, connection: UpstreamConnection) -> None:
        connection.begin(self, post(b"/", b"x" * 20_000_000), is_head=False, complete=True, until=NEVER)

    def failed(self, problem: Problem, *, unseen: bool) -> None:  # noqa: ARG002
        self.set_result(problem.code)

    def flush(self, head: object = None) -> None:
        """What comes does not matter."""

    response_head = response_body = pause_body = resume_body = response_complete = flush


async def test_first_byte_is_due_also_where_the_way_to_the_service_was_full(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.Event().wait()

    gateway = await start(script)
    ending = Ending()
    gateway.pool.acquire(ending)
    assert await asyncio.wait_for(ending, 20) == "upstream_timeout"


async def _is(asking: Awaitable[object], expected: object) -> bool:
    return await asking == expected


async def test_retries_are_a_bounded_share_of_the_requests(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()

    gateway = await start(script)
    async with gateway.connect() as raw:
        for _ in range(30):
            await raw.send(get(b"/open"))
            assert (await raw.response()).status == 502
    assert len(gateway.upstream.requests) in range(40, 45)


# Bounds


@pytest.fixture
async def stuck(start: GatewayFactory) -> AsyncIterator[tuple[Gateway, asyncio.Event]]:
    """A gateway before a service that answers when told to; at most 4 requests at once, 2 wait."""
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(OK)

    yield await start(script, options={"first_byte_timeout": 20.0, "queue_timeout": 20.0}), release
    release.set()


async def test_requests_beyond_the_bound_wait_and_beyond_the_queue_are_503(
    stuck: tuple[Gateway, asyncio.Event],
) -> None:
    gateway, release = stuck

    async def ask() -> int:
        async with raw_connection(gateway.url) as raw:
            await raw.send(get(b"/open"))
            return (await raw.response()).status

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    await eventually(lambda: len(gateway.upstream.requests) == 4)
    waiting = [asyncio.create_task(ask()) for _ in range(2)]
    await eventually(lambda: gateway.pool.waiting == 2)
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"], answer.field("retry-after")) == (
            503,
            "upstream_overloaded",
            "1",
        )
    release.set()
    assert await asyncio.gather(*asking, *waiting) == [200] * 6
    assert gateway.upstream.connections == 4


async def test_a_request_does_not_wait_for_ever_for_a_connection(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.more()

    gateway = await start(script, options={"first_byte_timeout": 20.0, "max_connections": 1})
    async with gateway.connect() as raw, gateway.connect() as waiting:
        await raw.send(get(b"/open"))
        await eventually(lambda: gateway.upstream.requests)
        await waiting.send(get(b"/open"))
        assert (await waiting.response()).json()["code"] == "upstream_overloaded"
    assert gateway.pool.retries.made == 0  # to ask again would be to wait again


async def test_clients_that_leave_cancel_their_requests_and_free_their_places(
    stuck: tuple[Gateway, asyncio.Event],
) -> None:
    gateway, release = stuck
    for _ in range(3):
        async with (
            gateway.connect() as a,
            gateway.connect() as b,
            gateway.connect() as c,
            gateway.connect() as d,
            gateway.connect() as waiting,
        ):
            for raw in (a, b, c, d, waiting):
                await raw.send(get(b"/open"))
            await eventually(lambda: gateway.pool.waiting == 1)
        await eventually(lambda: gateway.pool.connections == 0 and gateway.pool.waiting == 0)
    release.set()
    async with gateway.connect() as raw:
        await raw.send(get(b"/open"))
        assert (await raw.response()).status == 200


async def test_client_that_leaves_ends_the_services_work_at_once(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await peer.more()

    gateway = await start(script, options={"idle_timeout": 20.0})
    async with gateway.connect() as raw:
        await raw.send(get(b"/stream"))
        await raw.until(b"half")
    await eventually(lambda: gateway.upstream.open == 0 and gateway.pool.connections == 0)


async def test_g7_body_that_stalls_is_408_and_frees_the_service(start: GatewayFactory) -> None:
    gateway = await start(protocol=ImpatientProtocol)
    async with gateway.connect() as raw:
        await raw.send(post(b"/open", fields=b"Content-Length: 10\r\n", body=b"abc"))
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (408, "request_timeout")
    await eventually(lambda: gateway.pool.connections == 0)


# Who may


async def test_tokens_are_judged_by_the_routes_policy(gateway: Gateway, issuer: TokenIssuer) -> None:
    good = issuer.token(7)
    bad = TokenIssuer(issuer.issuer).token(7)
    cases = [
        (b"/open", b"", 200, None),
        (b"/open", bearer(good), 200, None),
        (b"/open", bearer(bad), 401, "invalid_token"),
        (b"/open", b"Authorization: Basic eDp5\r\n", 401, "invalid_token"),
        (b"/open", bearer(good) + bearer(good), 401, "invalid_token"),
        (b"/big", bearer(bad), 200, None),
        (b"/closed", b"", 401, "not_authenticated"),
        (b"/closed", bearer(good), 200, None),
        (b"/closed", bearer(good).replace(b"Bearer", b"bearer"), 200, None),
        (b"/closed", bearer(issuer.token(7, expires_in=-60)), 401, "invalid_token"),
        (b"/closed/admin", bearer(good), 403, "insufficient_scope"),
        (b"/closed/admin/x", bearer(good), 403, "insufficient_scope"),
        (b"/closed/administrator", bearer(good), 200, None),
        (b"/closed/admin/x", bearer(issuer.token(7, scope="a things:admin")), 200, None),
    ]
    for _ in range(2):  # from the key set, then from the cache of verified tokens
        for path, fields, status, code in cases:
            async with gateway.connect() as raw:
                await raw.send(get(path, fields))
                answer = await raw.response()
                assert (path, fields, answer.status) == (path, fields, status)
                if code:
                    assert answer.json()["code"] == code
                if status == 401:
                    assert (answer.field("www-authenticate") or "").startswith("Bearer")


async def test_the_token_goes_on_to_the_service_as_it_came(gateway: Gateway, issuer: TokenIssuer) -> None:
    token = issuer.token(7)
    async with gateway.connect() as raw:
        await raw.send(get(b"/closed", bearer(token)))
        await raw.response()
    assert gateway.upstream.requests[0].field("authorization") == f"Bearer {token}"


async def test_body_that_comes_while_the_token_is_verified_is_not_lost(
    gateway: Gateway, issuer: TokenIssuer
) -> None:
    body = b"x" * 200_000
    async with gateway.connect() as raw:
        await raw.send(
            post(b"/closed", body, b"Content-Length: %d\r\n" % len(body) + bearer(issuer.token(9)))
        )
        assert (await raw.response()).status == 200
    assert gateway.upstream.requests[0].body == body


@pytest.mark.parametrize("method", [b"TRACE", b"PROPFIND", b"get"])
async def test_method_that_is_not_the_routes_is_405(raw: RawConnection, method: bytes) -> None:
    await raw.send(get(b"/open").replace(b"GET", method))
    answer = await raw.response()
    assert (answer.status, answer.field("allow")) == (405, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")


async def test_websocket_path_asked_for_as_http_is_426(raw: RawConnection) -> None:
    await raw.send(get(b"/ws"))
    answer = await raw.response()
    assert (answer.status, answer.field("upgrade")) == (426, "websocket")


# Cross-origin requests


async def test_g9_preflight_is_answered_by_the_gateway(start: GatewayFactory) -> None:
    gateway = await start(cors_origins=("https://app.example",))
    preflight = b"Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: authorization\r\n"
    async with gateway.connect() as raw:
        await raw.send(
            get(b"/closed", b"Origin: https://app.example\r\n" + preflight).replace(b"GET", b"OPTIONS")
        )
        answer = await raw.response()
        assert answer.status == 204
        assert answer.field("access-control-allow-origin") == "https://app.example"
        assert "PUT" in (answer.field("access-control-allow-methods") or "")
        assert answer.field("access-control-allow-headers") == "authorization"
        await raw.send(
            get(b"/closed", b"Origin: https://evil.example\r\n" + preflight).replace(b"GET", b"OPTIONS")
        )
        answer = await raw.response()
        assert (answer.status, answer.field("access-control-allow-origin")) == (204, None)
        await raw.send(get(b"/open").replace(b"GET", b"OPTIONS"))
        assert (await raw.response()).field("allow") == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
        for path in (b"/open", b"/health"):
            await raw.send(get(path, b"Origin: https://app.example\r\n"))
            answer = await raw.response()
            assert answer.field("access-control-allow-origin") == "https://app.example"
            assert (
                answer.field("access-control-expose-headers")
                == "ETag, Location, Link, X-Request-ID, Retry-After, RateLimit"
            )
            assert answer.field("vary") == "origin"
    assert len(gateway.upstream.requests) == 1


# Draining


async def test_drain_finishes_requests_and_ends_streams(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        received = await peer.request()
        if received.head.target == b"/stream":
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n")
            await peer.more()
        await asyncio.sleep(0.3)
        await peer.send(OK)

    async with AsyncExitStack() as connections:
        async with AsyncExitStack() as servers:
            gateway = await start(script, stack=servers)
            stream = await connections.enter_async_context(gateway.connect())
            await stream.send(get(b"/stream"))
            await stream.until(b"data")
            busy = await connections.enter_async_context(gateway.connect())
            await busy.send(get(b"/open"))
            await eventually(lambda: len(gateway.upstream.requests) == 2)
        assert await stream.until(b"0\r\n\r\n")
        answer = await busy.response()
        assert (answer.status, answer.field("connection")) == (200, "close")


async def test_drain_lets_nothing_without_end_begin(start: GatewayFactory) -> None:
    """Requests that were on their way when the drain began are answered; streams and WebSockets would hold it up."""

    async def script(peer: Peer) -> None:
        while (await peer.request()).head.target != b"/stream":
            await peer.send(OK)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndata\r\n")
        await peer.more()

    async with AsyncExitStack() as connections, AsyncExitStack() as servers:
        gateway = await start(script, stack=servers)
        stream, late_stream, late_socket, late = [
            await connections.enter_async_context(gateway.connect()) for _ in range(4)
        ]
        for raw in (late_stream, late_socket, late):
            await raw.send(get(b"/open"))
            assert (await raw.response()).status == 200
        await stream.send(get(b"/stream"))
        await stream.until(b"data")
        drained = asyncio.create_task(servers.aclose())
        assert await stream.until(b"0\r\n\r\n")
        await late.send(get(b"/open"))
        await late_stream.send(get(b"/stream"))
        await late_socket.send(get(b"/ws", b"Connection: Upgrade\r\nUpgrade: websocket\r\n"))
        assert (await late.response()).status == 200
        for raw in (late_stream, late_socket):
            answer = await raw.response()
            assert (answer.status, answer.json()["code"], answer.field("retry-after")) == (
                503,
                "upstream_unavailable",
                "1",
            )
        await drained


async def test_gateway_serves_after_everything(start: GatewayFactory) -> None:
    gateway = await start(answer_ok)
    async with gateway.connect() as raw:
        await raw.send(get(b"/health") + get(b"/open") + get(b"/health/"))
        assert [(await raw.response()).status for _ in range(3)] == [200, 200, 200]
