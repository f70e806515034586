"""WebSockets through the gateway: who may open one, what passes, how it ends (SECURITY G8)."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import tunnel
from gateway.frames import FrameFollower
from gateway.testing import GatewayFactory, Peer, Script
from gateway.tunnel import EARLY_LIMIT
from shared.testing import TokenIssuer, eventually
from shared.testing_wire import RawConnection

ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nServer: secret\r\n\r\n"
)
HELLO = b"\x81\x05hello"
CLOSE_1000 = b"\x88\x02\x03\xe8"
CLOSE_1012 = b"\x88\x02\x03\xf4"


def handshake(path: bytes = b"/ws", fields: bytes = b"") -> bytes:
    return (
        b"GET %b HTTP/1.1\r\nHost: example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n" % (path, fields)
    )


async def echo(peer: Peer) -> None:
    """Accept, then send back whatever comes."""
    await peer.request()
    await peer.send(ACCEPT)
    if peer.rest:
        await peer.send(peer.rest)
    while True:
        peer.rest = b""
        await peer.send(await peer.more())


def accepts(*pieces: bytes, stay: bool = True) -> Script:
    """A service that accepts, sends these pieces and stays or leaves."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ACCEPT, *pieces)
        while stay:
            await peer.more()

    return script


async def opened(raw: RawConnection, fields: bytes = b"", path: bytes = b"/ws") -> None:
    await raw.send(handshake(path, fields))
    assert (await raw.response()).status == 101


async def test_bytes_pass_both_ways_untouched(start: GatewayFactory) -> None:
    gateway = await start(echo)
    async with gateway.connect() as raw:
        await raw.send(
            handshake(b"/ws/?topic=a%20b", b"Sec-WebSocket-Extensions: permessage-deflate\r\nCookie: a=b\r\n")
        )
        answer = await raw.response()
        assert answer.status == 101
        assert answer.field("sec-websocket-accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert answer.field("server") is None
        assert answer.field("x-request-id")
        for data in (b"\x81\x85abcdhello", b"anything at all", bytes(range(256)) * 1000):
            await raw.send(data)
            assert await raw.until(data) == data
    (received,) = gateway.upstream.requests
    assert received.head.target == b"/ws?topic=a%20b"
    assert received.field("sec-websocket-extensions") == "permessage-deflate"
    assert received.field("cookie") == "a=b"
    assert received.field("x-forwarded-for") == "127.0.0.1"
    assert received.head.upgrade == b"websocket"
    await eventually(lambda: gateway.upstream.open == 0)
    assert gateway.pool.tunnels == 0


async def test_a_frame_in_the_handshakes_own_segment_arrives(
    start: GatewayFactory, issuer: TokenIssuer
) -> None:
    gateway = await start(echo)
    for fields in (b"", b"Authorization: Bearer %b\r\n" % issuer.token().encode()):
        async with gateway.connect() as raw:
            await raw.send(handshake(b"/ws", fields) + HELLO)
            assert (await raw.response()).status == 101
            assert await raw.until(HELLO) == HELLO


async def test_a_frame_in_the_services_own_segment_arrives(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ACCEPT + HELLO)
        await peer.more()

    gateway = await start(script)
    async with gateway.connect() as raw:
        await opened(raw)
        assert await raw.until(HELLO) == HELLO


async def test_g8_early_frames_are_kept_within_a_bound(start: GatewayFactory) -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go_on.wait()
        await peer.send(ACCEPT)
        count = len(peer.rest)
        while count < size:
            peer.rest = b""
            count += len(await peer.more())
        await peer.send(b"all")

    size = EARLY_LIMIT * 400
    gateway = await start(script, options={"first_byte_timeout": 20.0})
    async with gateway.connect() as raw:
        sending = asyncio.create_task(raw.send(handshake() + b"x" * size))
        await eventually(lambda: gateway.upstream.requests)
        await asyncio.sleep(0.1)
        assert not sending.done()
        go_on.set()
        assert (await raw.response()).status == 101
        assert await raw.until(b"all")
        await sending


async def test_g8_foreign_origin_is_403_before_the_upgrade(start: GatewayFactory) -> None:
    gateway = await start(echo, cors_origins=("https://app.example",))
    for origin, status in (
        (b"https://evil.example", 403),
        (b"null", 403),
        (b"https://example.evil", 403),
        (b"https://app.example", 101),
        (b"https://example", 101),  # its own: the Host of the handshake
    ):
        async with gateway.connect() as raw:
            await raw.send(handshake(b"/ws", b"Origin: %b\r\n" % origin))
            assert ((await raw.response()).status, origin) == (status, origin)
    assert len(gateway.upstream.requests) == 2


async def test_g8_bad_token_is_401_before_the_upgrade(start: GatewayFactory, issuer: TokenIssuer) -> None:
    gateway = await start(echo)
    good, bad = issuer.token().encode(), TokenIssuer(issuer.issuer).token().encode()
    cases = [
        (b"/ws", b"", 101),
        (b"/ws", b"Authorization: Bearer %b\r\n" % good, 101),
        (b"/ws", b"Authorization: Bearer %b\r\n" % bad, 401),
        (b"/ws", b"Sec-WebSocket-Protocol: tollhouse.v1, bearer.%b\r\n" % good, 101),
        (b"/ws", b"Sec-WebSocket-Protocol: tollhouse.v1, bearer.%b\r\n" % bad, 401),
        (b"/ws", b"Sec-WebSocket-Protocol: bearer.\r\n", 401),
        (b"/ws", b"Sec-WebSocket-Protocol: bearer.\xff\xfe\r\n", 401),
        (b"/ws", b"Authorization: Bearer \xff\xfe\r\n", 401),
        (
            b"/ws",
            b"Sec-WebSocket-Protocol: bearer.%b\r\nSec-WebSocket-Protocol: bearer.%b\r\n" % (good, good),
            401,
        ),
        (b"/ws", b"Authorization: Bearer %b\r\nSec-WebSocket-Protocol: bearer.%b\r\n" % (good, good), 401),
        (b"/ws/closed", b"", 401),
        (b"/ws/closed", b"Authorization: Bearer %b\r\n" % good, 101),
    ]
    for path, fields, status in cases:
        async with gateway.connect() as raw:
            await raw.send(handshake(path, fields))
            answer = await raw.response()
            assert (path, fields, answer.status) == (path, fields, status)
            if status == 401:
                assert answer.json()["request_id"] == answer.field("x-request-id")
                assert (answer.field("www-authenticate") or "").startswith("Bearer")
                assert await raw.rest() == b""


async def test_g8_token_of_a_subprotocol_reaches_the_service_as_authorization_only(
    start: GatewayFactory, issuer: TokenIssuer
) -> None:
    gateway = await start(echo)
    token = issuer.token()
    async with gateway.connect() as raw:
        await opened(raw, b"Sec-WebSocket-Protocol: tollhouse.v1, bearer.%b, other\r\n" % token.encode())
    (received,) = gateway.upstream.requests
    assert received.field("authorization") == f"Bearer {token}"
    assert received.field("sec-websocket-protocol") == "tollhouse.v1, other"


async def test_client_is_not_left_waiting_where_we_fail_ourselves(
    start: GatewayFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start(echo)

    async def fails(_token: str) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(gateway.app.state.verifier, "verify", fails)
    for request in (handshake(), b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n"):
        async with gateway.connect() as raw:
            await raw.send(request.replace(b"\r\n\r\n", b"\r\nAuthorization: Bearer x\r\n\r\n"))
            answer = await raw.response()
            assert (answer.status, answer.json()["code"]) == (500, "internal_error")
            assert "LookupError" not in answer.body.decode()
    await eventually(lambda: gateway.pool.tunnels == 0)


async def test_refusal_of_the_service_passes(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Why: so\r\n\r\n", b"no", b"no")

    gateway = await start(script)
    async with gateway.connect() as raw:
        await raw.send(handshake())
        answer = await raw.response()
        assert (answer.status, answer.body, answer.field("x-why")) == (403, b"nono", "so")
        assert await raw.rest() == b""


@pytest.mark.parametrize(
    ("reply", "status"),
    [(b"garbage\r\n\r\n", 502), (b"", 502), (b"HTTP/1.1 101 Switching", 502), (None, 504)],
)
async def test_handshake_that_the_service_spoils_is_a_problem(
    start: GatewayFactory, reply: bytes | None, status: int
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if reply is None:
            await peer.more()
        else:
            await peer.send(reply)

    gateway = await start(script)
    async with gateway.connect() as raw:
        await raw.send(handshake())
        assert (await raw.response()).status == status
    await eventually(lambda: gateway.pool.tunnels == 0)


async def test_service_that_is_away_is_503(start: GatewayFactory) -> None:
    gateway = await start(routes_url="http://127.0.0.1:1")
    async with gateway.connect() as raw:
        await raw.send(handshake())
        assert (await raw.response()).json()["code"] == "upstream_unavailable"


async def test_websockets_have_a_bound(start: GatewayFactory) -> None:
    gateway = await start(echo, options={"max_tunnels": 1})
    async with gateway.connect() as raw, gateway.connect() as second:
        await opened(raw)
        await second.send(handshake())
        assert (await second.response()).json()["code"] == "upstream_overloaded"


async def test_service_that_dies_between_frames_is_told_as_1012(start: GatewayFactory) -> None:
    gateway = await start(accepts(HELLO, stay=False))
    async with gateway.connect() as raw:
        await opened(raw)
        assert await raw.rest() == HELLO + CLOSE_1012


async def test_service_that_dies_within_a_frame_is_not_told_as_anything(start: GatewayFactory) -> None:
    gateway = await start(accepts(HELLO, b"\x81\x05he", stay=False))
    async with gateway.connect() as raw:
        await opened(raw)
        assert await raw.rest() == HELLO + b"\x81\x05he"


async def test_close_of_the_service_passes_as_it_is(start: GatewayFactory) -> None:
    gateway = await start(accepts(HELLO + CLOSE_1000, stay=False))
    async with gateway.connect() as raw:
        await opened(raw)
        assert await raw.rest() == HELLO + CLOSE_1000


async def test_client_that_half_closes_still_gets_what_the_service_sends(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ACCEPT)
        peer.rest = b""
        while await peer.reader.read(100):
            pass
        await peer.send(CLOSE_1000)

    gateway = await start(script)
    async with gateway.connect() as raw:
        await opened(raw)
        raw.writer.write_eof()
        assert await raw.rest() == CLOSE_1000


async def test_client_that_leaves_during_the_handshake_leaves_nothing_behind(start: GatewayFactory) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.more()

    gateway = await start(script, options={"first_byte_timeout": 20.0})
    async with gateway.connect() as raw:
        await raw.send(handshake())
        await eventually(lambda: gateway.upstream.requests)
    await eventually(lambda: gateway.upstream.open == 0 and gateway.pool.tunnels == 0)


async def test_tunnel_on_which_nothing_moves_is_closed(
    start: GatewayFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "IDLE_SECONDS", 0.2)
    gateway = await start(echo)
    async with gateway.connect() as raw:
        await opened(raw)
        await raw.send(HELLO)
        assert await raw.rest() == HELLO
    await eventually(lambda: gateway.upstream.open == 0)


async def test_slow_client_pauses_the_service(start: GatewayFactory) -> None:
    frame = b"\x82\x7f" + (1_000_000).to_bytes(8, "big") + b"x" * 1_000_000
    written: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ACCEPT)
        for _ in range(30):
            peer.writer.write(frame)
            await peer.writer.drain()
            written.append(1)
        await peer.send(CLOSE_1000)

    gateway = await start(script)
    async with gateway.connect() as raw:
        raw.reader._limit = 10_000  # type: ignore[attr-defined]  # what a StreamReader takes before it pauses
        await opened(raw)
        before = -1
        while before != len(written):  # until nothing moves any more
            before = len(written)
            await asyncio.sleep(0.2)
        assert before < 20
        assert await raw.rest() == frame * 30 + CLOSE_1000


async def leave_when_told(raw: RawConnection) -> bytes:
    received = await raw.rest()
    raw.writer.close()
    return received


async def test_drain_says_1012_at_a_frame_boundary(start: GatewayFactory) -> None:
    finish = asyncio.Event()

    async def script(peer: Peer) -> None:
        received = await peer.request()
        await peer.send(ACCEPT)
        if received.head.target == b"/ws?middle":
            await peer.send(b"\x81\x05he")
            await finish.wait()
            await peer.send(b"llo" + HELLO)
        await peer.more()

    async with AsyncExitStack() as connections:
        async with AsyncExitStack() as servers:
            gateway = await start(script, stack=servers)
            idle, middle, opening = [
                await connections.enter_async_context(gateway.connect()) for _ in range(3)
            ]
            await opened(idle)
            await opened(middle, path=b"/ws?middle")
            await middle.until(b"he")
            asyncio.get_running_loop().call_later(0.2, finish.set)
            await opening.send(
                handshake()[:-2]
            )  # a head that is never finished does not hold the drain up for long
            opening.writer.close()
            closing = [asyncio.create_task(leave_when_told(raw)) for raw in (idle, middle)]
        assert await asyncio.gather(*closing) == [CLOSE_1012, b"llo" + CLOSE_1012]


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([0x81, 0x82, 0x01, 0x80, 0x89, 0x8A]),
        st.sampled_from([0, 1, 125, 126, 300, 65535, 65536]),
    ),
    max_size=6,
)


def frame(first: int, size: int) -> bytes:
    if size < 126:
        return bytes([first, size]) + b"\x88" * size
    if size < 65536:
        return bytes([first, 126]) + size.to_bytes(2, "big") + b"\x88" * size
    return bytes([first, 127]) + size.to_bytes(8, "big") + b"\x88" * size


@given(FRAMES, st.lists(st.integers(1, 70000), max_size=5))
def test_follower_knows_every_boundary_however_the_bytes_are_cut(
    frames: list[tuple[int, int]], cuts: list[int]
) -> None:
    data = b"".join(frame(*one) for one in frames)
    boundaries = {0}
    for one in frames:
        boundaries.add(max(boundaries) + len(frame(*one)))
    follower, position = FrameFollower(), 0
    for size in [*cuts, len(data)]:
        piece = data[position : position + size]
        assert follower.feed(piece) == len(piece)
        position += len(piece)
        assert follower.at_boundary == (position in boundaries)
    assert not follower.closing


@given(FRAMES, st.integers(0, 200_000))
def test_follower_stops_at_the_first_boundary(frames: list[tuple[int, int]], cut: int) -> None:
    data = b"".join(frame(*one) for one in [*frames, (0x88, 2)])
    boundaries, end = [], 0
    for one in [*frames, (0x88, 2)]:
        end += len(frame(*one))
        boundaries.append(end)
    cut %= end
    follower = FrameFollower()
    follower.feed(data[:cut])
    assert cut + follower.feed(data[cut:], stop=True) == min(
        boundary for boundary in boundaries if boundary > cut
    )
