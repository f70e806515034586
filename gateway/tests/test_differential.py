"""Mutated requests: the gateway and a service with a parser of its own (h11) must agree on how many there were.

Each case is a stream of one or two requests with random damage, and a plain last request behind it. Whatever the gateway
makes of it, the service must get well-formed requests only, and exactly those that the client gets answers to.
"""

import asyncio
import itertools
import random

import h11
import pytest

from gateway.testing import Gateway, GatewayFactory, ImpatientProtocol, Peer
from shared.testing_wire import raw_connection

SEED = 20261123
AT_ONCE = 64

HOST = b"Host: example\r\n"
LAST = b"GET /open/last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
BASES = [
    b"GET /open/a HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /open/a?b=c HTTP/1.1\r\n" + HOST + b"Accept: */*\r\nX-A: 1\r\n\r\n",
    b"POST /open/a HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello",
    b"POST /open/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"PUT /open/a HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: 1\r\n\r\n",
    b"POST /open/a HTTP/1.0\r\n" + HOST + b"Content-Length: 2\r\n\r\nhi",
    b"GET /open/a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /open/a HTTP/1.1\r\n" + HOST + b"Content-Length: 30\r\n\r\nGET /open/hidden HTTP/1.1\r\n\r\n\r\n",
    b"HEAD /open/a HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /open/a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
]
SNIPPETS = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\x00",
    b"\x0b",
    b"\xff",
    b":",
    b",",
    b";",
    b"0",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer_Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b" Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Connection: Content-Length\r\n",
    b"Connection: Transfer-Encoding\r\n",
    b"Connection: close\r\n",
    b"Host: other\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"GET /open/hidden HTTP/1.1\r\nHost: a\r\n\r\n",
    b"5\r\nhello\r\n",
    b'5;a="\r\n"\r\n',
    b"fffffffffffffff\r\n",
]


def mutated(rng: random.Random) -> bytes:
    """Return one or two requests with damage at a few places."""
    data = b"".join(rng.choice(BASES) for _ in range(rng.randint(1, 2)))
    for _ in range(rng.randint(0, 3)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data = data[:place] + rng.choice(SNIPPETS) + data[place:]
            case 1:
                data = data[:place] + data[place + rng.randint(1, 4) :]
            case 2:
                data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
            case 3:  # a line gets a companion
                line = data.find(b"\r\n", place) + 2
                data = data[:line] + rng.choice(SNIPPETS) + data[line:]
            case _:
                data = data.replace(b"\r\n", b"\n", 1) if rng.random() < 0.3 else data.replace(b" ", b"\t", 1)
    return data


# A query passes byte for byte; h11 wants it in ASCII.
_ASCII = bytes(byte if byte < 0x80 else 0x7E for byte in range(256))


class Witness:
    """The service: parses with h11 what comes, and counts."""

    def __init__(self) -> None:
        self.complete = 0
        self.errors: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        parser = h11.Connection(h11.SERVER)
        data: bytes | None = peer.rest
        while True:
            try:
                if data is not None:
                    parser.receive_data(data.translate(_ASCII))
                await self._answer(peer, parser)
            except h11.RemoteProtocolError as error:
                self.errors.append(str(error))
                return
            data = await peer.more()

    async def _answer(self, peer: Peer, parser: h11.Connection) -> None:
        while (event := parser.next_event()) is not h11.NEED_DATA:
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            if isinstance(event, h11.EndOfMessage):
                self.complete += 1
                response = h11.Response(
                    status_code=200, headers=[("X-From", "service"), ("Content-Length", "0")]
                )
                await peer.send(parser.send(response) or b"", parser.send(h11.EndOfMessage()) or b"")
                parser.start_next_cycle()


async def answered_by_the_service(gateway: Gateway, data: bytes, cuts: list[int]) -> int:
    """Send a case in segments and count the answers that come from the service."""
    async with raw_connection(gateway.url) as raw:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        try:
            for start, end in itertools.pairwise(edges):
                raw.writer.write(data[start:end])
                await raw.writer.drain()
        except ConnectionError:
            pass  # refused before it had all arrived
        return (await raw.rest()).lower().count(b"\r\nx-from: service\r\n")


@pytest.mark.parametrize("mutations", [2500, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_gateway_and_service_agree_on_how_many_requests_there_were(
    start: GatewayFactory, mutations: int
) -> None:
    witness = Witness()
    gateway = await start(
        witness, protocol=ImpatientProtocol, options={"max_connections": 200, "first_byte_timeout": 20.0}
    )
    rng = random.Random(SEED)  # noqa: S311
    cases = [
        (mutated(rng) + LAST, [rng.randrange(9999) for _ in range(rng.randint(0, 2))])
        for _ in range(mutations)
    ]
    waiting = iter(cases)

    async def work() -> int:
        return sum([await answered_by_the_service(gateway, data, cuts) for data, cuts in waiting])

    answered = sum(await asyncio.gather(*(work() for _ in range(AT_ONCE))))
    assert witness.errors == []
    assert witness.complete == answered
    assert answered > mutations / 2  # the damage leaves something to compare
