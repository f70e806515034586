"""What the wire may do, by raw bytes against a real server (SECURITY G1, G2, G5, G7; DESIGN "The edge")."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.edge import LINGER_BYTES, EdgeLimits, EdgeProtocol
from shared.edge_asgi import HELD_LIMIT
from shared.testing import eventually, serving
from shared.testing_wire import RawConnection, raw_connection
from shared.wire import HEAD_LIMIT

HOST = b"Host: example\r\n"


class Impatient(EdgeProtocol):
    """The edge with deadlines that a test can wait for."""

    limits = EdgeLimits(head=0.3, body_stall=0.3, write_stall=0.3)


class Recorder:
    """An ASGI application that notes what reaches it, and answers by path."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.disconnects = 0
        self.release = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await _echo(receive, send)
        else:
            handler: Callable[..., Awaitable[None]] = getattr(self, f"on_{scope['path'][1:]}", self.on_any)
            await handler(scope, receive, send)

    async def note(self, scope: Any, receive: Any) -> bytes:
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                raise ConnectionError
            body += message["body"]
            more = message["more_body"]
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.requests.append((scope["method"], scope["path"], headers, body))
        return body

    async def on_any(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self.note(scope, receive)
        await _answer(send, body, [(b"content-length", b"%d" % len(body))])

    async def on_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await self.note(scope, receive)
        await _answer(send, b"streamed", [])

    async def on_early(self, scope: Any, _receive: Any, send: Any) -> None:
        self.requests.append((scope["method"], scope["path"], {}, b""))
        await _answer(send, b"no", [(b"content-length", b"2")], status=403)

    async def on_wait(self, scope: Any, receive: Any, send: Any) -> None:
        await self.note(scope, receive)
        await self.release.wait()
        await _answer(send, b"waited", [(b"content-length", b"6")])

    async def on_empty(self, scope: Any, receive: Any, send: Any) -> None:
        await self.note(scope, receive)
        await _answer(send, b"", [], status=204)

    async def on_fail(self, _scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError("fails")

    async def on_truncate(self, _scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("fails")

    async def on_answers_first(self, _scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"late"})

    async def on_lie(self, _scope: Any, _receive: Any, send: Any) -> None:
        await _answer(send, b"long", [(b"content-length", b"2")])

    async def on_inject(self, _scope: Any, _receive: Any, send: Any) -> None:
        await _answer(send, b"", [(b"x", b"a\r\nset-cookie: b")])

    async def on_flood(self, scope: Any, receive: Any, send: Any) -> None:
        await self.note(scope, receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        self.release.set()

    async def on_slow_reader(self, scope: Any, receive: Any, send: Any) -> None:
        await self.release.wait()
        await self.note(scope, receive)
        await _answer(send, b"read", [(b"content-length", b"4")])


async def _lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await asyncio.sleep(0)
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def _answer(send: Any, body: bytes, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Recorder:
    return Recorder()


@pytest.fixture
async def url(app: Recorder) -> AsyncIterator[str]:
    async with serving(app, http=EdgeProtocol) as url:
        yield url


@pytest.fixture
async def impatient(app: Recorder) -> AsyncIterator[str]:
    async with serving(app, http=Impatient) as url:
        yield url


@pytest.fixture
async def raw(url: str) -> AsyncIterator[RawConnection]:
    async with raw_connection(url) as raw:
        yield raw


def get(path: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (path, version, HOST, fields)


def post(path: bytes, fields: bytes, body: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, HOST, fields, body)


REFUSED = {
    "both lengths": post(b"/", b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "both lengths, other order": post(
        b"/", b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", b"0\r\n\r\n"
    ),
    "two lengths": post(b"/", b"Content-Length: 1\r\nContent-Length: 1\r\n", b"a"),
    "two different lengths": post(b"/", b"Content-Length: 1\r\nContent-Length: 2\r\n", b"ab"),
    "list of lengths": post(b"/", b"Content-Length: 1, 1\r\n", b"a"),
    "signed length": post(b"/", b"Content-Length: +1\r\n", b"a"),
    "negative length": post(b"/", b"Content-Length: -1\r\n", b"a"),
    "hexadecimal length": post(b"/", b"Content-Length: 0x1\r\n", b"a"),
    "empty length": post(b"/", b"Content-Length:\r\n"),
    "length in other digits": post(b"/", b"Content-Length: \xb2\r\n"),
    "endless length": post(b"/", b"Content-Length: 99999999999999999999\r\n"),
    "unknown coding": post(b"/", b"Transfer-Encoding: gzip\r\n"),
    "two codings": post(b"/", b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunked twice": post(b"/", b"Transfer-Encoding: chunked, chunked\r\n"),
    "two coding fields": post(b"/", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    "identity": post(b"/", b"Transfer-Encoding: identity\r\n"),
    "obscured coding": post(b"/", b"Transfer-Encoding: \x0bchunked\r\n"),
    "quoted coding": post(b"/", b'Transfer-Encoding: "chunked"\r\n'),
    "chunked in HTTP/1.0": post(b"/", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n").replace(
        b"1.1", b"1.0"
    ),
    "folded line": get(b"/", b"X: a\r\n b\r\n"),
    "folded first line": b"GET / HTTP/1.1\r\n Host: example\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: example\nX: y\r\n\r\n",
    "bare LF everywhere": b"GET / HTTP/1.1\nHost: example\n\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: example\r\n\n",
    "bare CR in a value": get(b"/", b"X: a\rb\r\n"),
    "bare CR as an end": b"GET / HTTP/1.1\rHost: example\r\r",
    "NUL in a value": get(b"/", b"X: a\x00b\r\n"),
    "DEL in a value": get(b"/", b"X: a\x7fb\r\n"),
    "control character in a name": get(b"/", b"X\x01: a\r\n"),
    "space before the colon": get(b"/", b"X : a\r\n"),
    "tab before the colon": get(b"/", b"X\t: a\r\n"),
    "space in a name": get(b"/", b"X Y: a\r\n"),
    "empty name": get(b"/", b": a\r\n"),
    "no colon": get(b"/", b"X\r\n"),
    "non-ASCII name": get(b"/", b"X\xe9: a\r\n"),
    "empty line first": b"\r\n" + get(b"/"),
    "two spaces in the request line": b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "tab in the request line": b"GET\t/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "no target": b"GET HTTP/1.1\r\n" + HOST + b"\r\n",
    "no version": b"GET /\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case protocol": b"GET / http/1.1\r\n" + HOST + b"\r\n",
    "long version": b"GET / HTTP/1.10\r\n" + HOST + b"\r\n",
    "fragment in the target": get(b"/a#b"),
    "absolute target": get(b"http://example/"),
    "relative target": get(b"a"),
    "authority target": b"CONNECT example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "method with a colon": b"G:T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": bytes.fromhex("160301020001000001fc0303"),
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "no Host, no field": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": get(b"/", HOST),
    "Host with a space": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "Host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "empty Host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "malformed chunk size": post(b"/", b"Transfer-Encoding: chunked\r\n", b"x\r\na\r\n0\r\n\r\n"),
    "spaced chunk size": post(b"/", b"Transfer-Encoding: chunked\r\n", b"1 \r\na\r\n0\r\n\r\n"),
    "chunk size with bare LF": post(b"/", b"Transfer-Encoding: chunked\r\n", b"1\na\n0\n\n"),
    "chunk longer than its size": post(b"/", b"Transfer-Encoding: chunked\r\n", b"1\r\nab\r\n0\r\n\r\n"),
    "bare LF in an extension": post(b"/", b"Transfer-Encoding: chunked\r\n", b"1;a\nb\r\na\r\n0\r\n\r\n"),
    "bare LF in a trailer": post(b"/", b"Transfer-Encoding: chunked\r\n", b"0\r\nx: y\n\r\n\r\n"),
}


@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED)
async def test_g1_g2_ambiguous_request_is_refused_and_nothing_behind_it_runs(
    app: Recorder, raw: RawConnection, message: bytes
) -> None:
    await raw.send(message + get(b"/hidden"))
    answer = await raw.response()
    assert answer.status == 400
    assert answer.field("content-type") == "application/problem+json"
    assert answer.field("connection") == "close"
    assert answer.json()["code"] in ("malformed_request", "host_invalid")
    assert answer.json()["request_id"] == answer.field("x-request-id")
    assert answer.field("x-process-time-ms")
    assert await raw.rest() == b""
    assert app.requests == []


@pytest.mark.parametrize("ending", [b"", b"\r\n\r\n"])
async def test_g5_head_over_16_kib_is_431(app: Recorder, raw: RawConnection, ending: bytes) -> None:
    await raw.send(get(b"/")[:-2] + b"X: " + b"a" * HEAD_LIMIT + ending)
    answer = await raw.response()
    assert (answer.status, answer.json()["code"]) == (431, "headers_too_large")
    assert await raw.rest() == b""
    assert app.requests == []


async def test_requests_and_pipelined_requests_are_answered_in_order(
    app: Recorder, raw: RawConnection
) -> None:
    await raw.send(
        get(b"/stream") + post(b"/b", b"Content-Length: 3\r\n", b"abc") + get(b"/empty") + get(b"/d?e=%20f")
    )
    assert (await raw.response()).body == b"streamed"
    assert (await raw.response()).body == b"abc"
    assert (await raw.response()).status == 204
    assert (await raw.response()).status == 200
    assert [path for _, path, _, _ in app.requests] == ["/stream", "/b", "/empty", "/d"]


async def test_a_request_in_single_bytes_is_one_request(app: Recorder, raw: RawConnection) -> None:
    message = post(
        b"/x", b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n"
    ) + get(b"/y")
    for position in range(len(message)):
        raw.writer.write(message[position : position + 1])
        await raw.writer.drain()
    assert (await raw.response()).body == b"abcde"
    assert (await raw.response()).status == 200
    assert [(path, body) for _, path, _, body in app.requests] == [("/x", b"abcde"), ("/y", b"")]


async def test_g1_trailers_never_become_headers(app: Recorder, raw: RawConnection) -> None:
    trailers = b"Authorization: Bearer stolen\r\nX-User-Id: 1\r\n"
    await raw.send(
        post(b"/t", b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n" + trailers + b"\r\n")
        + get(b"/next")
    )
    await raw.response()
    await raw.response()
    (_, _, headers, body), (_, _, following, _) = app.requests
    assert headers == {"host": "example", "transfer-encoding": "chunked"}
    assert body == b"a"
    assert following == {"host": "example"}


@pytest.mark.parametrize("fields", [b"Content-Length: 500\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_g1_bytes_after_an_early_answer_never_run(
    app: Recorder, raw: RawConnection, fields: bytes
) -> None:
    await raw.send(post(b"/early", fields))
    answer = await raw.response()
    assert (answer.status, answer.body) == (403, b"no")
    assert answer.field("connection") == "close"
    raw.writer.write(get(b"/hidden") * 20)
    assert await raw.rest() == b""
    assert [path for _, path, _, _ in app.requests] == ["/early"]


async def test_g1_an_early_answer_arrives_although_the_body_keeps_coming(raw: RawConnection) -> None:
    await raw.send(post(b"/early", b"Content-Length: 300000\r\n"))
    raw.writer.write(b"x" * 200_000)
    assert (await raw.response()).status == 403
    assert await raw.rest() == b""


async def test_a_client_that_never_stops_after_an_early_answer_is_cut_off(raw: RawConnection) -> None:
    await raw.send(post(b"/early", b"Content-Length: 99999999\r\n"))
    assert (await raw.response()).status == 403
    with pytest.raises(ConnectionError):  # noqa: PT012
        for _ in range(100):
            raw.writer.write(b"x" * LINGER_BYTES)
            await raw.writer.drain()
            await asyncio.sleep(0.01)


async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(raw: RawConnection) -> None:
    await raw.send(get(b"/stream", version=b"1.0"))
    answer = await raw.response()
    assert answer.body == b"streamed"
    assert answer.field("transfer-encoding") is None
    assert answer.field("connection") == "close"


async def test_head_gets_no_body_and_the_connection_goes_on(raw: RawConnection) -> None:
    await raw.send(get(b"/stream").replace(b"GET", b"HEAD") + get(b"/stream"))
    assert (await raw.response(to_head=True)).status == 200
    assert (await raw.response()).body == b"streamed"


async def test_connection_close_is_honoured(raw: RawConnection) -> None:
    await raw.send(get(b"/", b"Connection: close\r\n") + get(b"/hidden"))
    assert (await raw.response()).field("connection") == "close"
    assert await raw.rest() == b""


async def test_expect_100_continue_is_answered_when_the_body_is_wanted(raw: RawConnection) -> None:
    await raw.send(post(b"/x", b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
    assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await raw.send(b"hi")
    assert (await raw.response()).body == b"hi"


async def test_failing_application_is_500_problem_json(raw: RawConnection) -> None:
    await raw.send(get(b"/fail") + get(b"/next"))
    answer = await raw.response()
    assert (answer.status, answer.json()["code"]) == (500, "internal_error")
    assert (await raw.response()).status == 200


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_g6_response_cut_short_never_looks_complete(raw: RawConnection, version: bytes) -> None:
    await raw.send(get(b"/truncate", version=version))
    with pytest.raises((ConnectionResetError, EOFError)):
        await raw.response()


@pytest.mark.parametrize("path", [b"/lie", b"/inject"])
async def test_application_cannot_break_the_framing(raw: RawConnection, path: bytes) -> None:
    await raw.send(get(path))
    received = await raw.rest()
    assert b"set-cookie" not in received
    assert b"long" not in received


async def test_g7_head_that_does_not_come_is_408(impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHos")
        answer = await raw.response()
        assert (answer.status, answer.json()["code"]) == (408, "request_timeout")
        assert await raw.rest() == b""


async def test_g7_dripping_does_not_move_the_deadline_of_the_head(impatient: str) -> None:
    async with raw_connection(impatient) as raw:

        async def drip() -> None:
            while True:
                await raw.send(b"X")
                await asyncio.sleep(0.05)

        await raw.send(get(b"/")[:-2])
        task = asyncio.create_task(drip())
        try:
            assert (await raw.response()).status == 408
        finally:
            task.cancel()


async def test_g7_body_that_stalls_is_408(app: Recorder, impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        await raw.send(post(b"/x", b"Content-Length: 10\r\n", b"abc"))
        assert (await raw.response()).status == 408
        assert await raw.rest() == b""
    await eventually(lambda: app.disconnects == 1)


async def test_g7_a_silent_connection_is_closed_without_a_word(impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        assert await raw.rest() == b""


async def test_g7_a_body_we_do_not_read_is_not_the_clients_stall(app: Recorder, impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        size = 2_000_000
        sending = asyncio.create_task(
            raw.send(post(b"/slow_reader", b"Content-Length: %d\r\n" % size, b"x" * size))
        )
        await asyncio.sleep(0.8)  # longer than the deadline: what is tested is that nothing happens in it
        app.release.set()
        assert (await raw.response()).body == b"read"
        await sending


async def test_client_that_takes_nothing_of_its_response_is_cut_off(app: Recorder, impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        raw.reader._limit = 1000  # type: ignore[attr-defined]  # what a StreamReader takes before it pauses
        await raw.send(get(b"/flood"))
        await eventually(app.release.is_set)


async def test_a_body_that_breaks_in_the_middle_of_its_answer_cuts_the_connection(impatient: str) -> None:
    async with raw_connection(impatient) as raw:
        await raw.send(post(b"/answers_first", b"Transfer-Encoding: chunked\r\n"))
        await raw.until(b"half")
        await raw.send(b"oops\r\n")
        assert b"0\r\n\r\n" not in await raw.rest()


async def test_path_that_is_not_utf_8_is_refused(app: Recorder, raw: RawConnection) -> None:
    await raw.send(get(b"/%ff"))
    assert (await raw.response()).json()["code"] == "malformed_request"
    assert app.requests == []


async def test_pipelined_bytes_are_held_within_a_bound(app: Recorder, raw: RawConnection) -> None:
    await raw.send(get(b"/wait"))
    await eventually(lambda: len(app.requests) == 1)
    message = get(b"/after", b"X: %b\r\n" % (b"x" * 8000))
    count = 16 * HELD_LIMIT // len(message)
    sending = asyncio.create_task(raw.send(message * count))
    await asyncio.sleep(0.05)
    app.release.set()
    for _ in range(count + 1):
        assert (await raw.response()).status == 200
    await sending


WEBSOCKET = (
    b"GET /ws HTTP/1.1\r\nHost: example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HELLO, PING = b"\x81\x85\0\0\0\0hello", b"\x89\x81\0\0\0\0p"


@pytest.mark.parametrize(
    "pieces",
    [(WEBSOCKET + HELLO + PING,), (WEBSOCKET, HELLO + PING), (WEBSOCKET + HELLO[:3], HELLO[3:] + PING)],
)
async def test_a_frame_in_the_handshakes_own_segment_arrives(
    raw: RawConnection, pieces: tuple[bytes, ...]
) -> None:
    await raw.send(*pieces)
    assert (await raw.response()).status == 101
    received = await raw.until(b"\x81\x05hello")
    assert (
        b"\x8a\x01p" in received
    )  # a ping is answered at once, the echo takes a turn through the application


async def test_an_upgrade_to_anything_else_is_ignored(raw: RawConnection) -> None:
    await raw.send(get(b"/x", b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + get(b"/y"))
    assert (await raw.response()).status == 200
    assert (await raw.response()).status == 200


async def test_drain_finishes_what_is_under_way_and_closes_idle_connections(app: Recorder) -> None:
    async with AsyncExitStack() as connections:
        async with serving(app, http=EdgeProtocol) as url:
            busy = await connections.enter_async_context(raw_connection(url))
            idle = await connections.enter_async_context(raw_connection(url))
            late = await connections.enter_async_context(raw_connection(url))
            for raw in (idle, late):
                await raw.send(get(b"/"))
                await raw.response()
            await busy.send(get(b"/wait"))
            await eventually(lambda: len(app.requests) == 3)
            loop = asyncio.get_running_loop()
            loop.call_later(0.2, app.release.set)
            # A request that crosses with the beginning of the drain is served still.
            loop.call_later(0.15, late.writer.write, get(b"/stream"))
        assert (await busy.response()).body == b"waited"
        answer = await late.response()
        assert (answer.body, answer.field("connection")) == (b"streamed", "close")
        assert await idle.rest() == b""


async def test_client_that_leaves_disconnects_the_application(app: Recorder, url: str) -> None:
    async with raw_connection(url) as raw:
        await raw.send(post(b"/x", b"Content-Length: 10\r\n", b"abc"))
    await eventually(lambda: app.disconnects == 1)
