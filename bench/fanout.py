"""Sockets that listen to a fan-out and count what comes: one process, raw bytes, so that the server is the bottleneck.

`python -m bench.fanout <file>` connects as the file says, and then measures a round for each line on its control port.
"""

import base64
import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OUTSTANDING = 2
"""Bursts that are under way at once: the next is published while one is delivered."""
STALL_LIMIT = 60.0
"""Seconds without a byte after which the round has failed."""
PAYLOAD_BYTES = 200
_TEXT = b"\x81"  # begins a text frame; the messages are ASCII and their lengths have no such byte
_PING = b"\x89\x04"
_PING_BYTES = 6
_SUBSCRIBE = b'{"type":"subscribe","topic":"items"}'


@dataclass(frozen=True, slots=True)
class Plan:
    """What to connect to, and where events are put in."""

    port: int
    path: str
    sockets: int
    tokens: Sequence[str]
    """One after the other; none where the server asks for none."""
    source_port: int
    nats: Sequence[str] = ()
    """User and password, where the source is NATS; else it takes a line for each event."""

    def save(self, path: Path) -> Path:
        """Write it for the process."""
        path.write_text(json.dumps(asdict(self)))
        return path


def payload() -> bytes:
    """Make a CloudEvent of PAYLOAD_BYTES, as of now."""
    event = {
        "id": "01a20f59-b620-7781-b8fc-39ab395a3ad6",
        "type": "items.item.shown.v1",  # of a kind that nobody stores: what is measured is the fan-out
        "subject": "1",
        "sequence": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": {"x": ""},
    }
    short = json.dumps(event, separators=(",", ":")).encode()
    return short[:-3] + b"x" * (PAYLOAD_BYTES - len(short)) + short[-3:]


class Source:
    """Where events are put in."""

    def __init__(self, plan: Plan) -> None:
        self._socket = socket.create_connection(("127.0.0.1", plan.source_port))
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._nats = bool(plan.nats)
        if self._nats:
            user, password = plan.nats
            options = {"user": user, "pass": password, "verbose": False, "pedantic": False}
            self._socket.sendall(b"CONNECT %b\r\nPING\r\n" % json.dumps(options).encode())
            while b"PONG" not in self._socket.recv(65536):
                pass

    def put(self, burst: int) -> None:
        """Put `burst` events in at once."""
        event = payload()
        if self._nats:
            event = b"PUB events.items.item.shown.1 %d\r\n%b\r\n" % (len(event), event)
        else:
            event += b"\n"
        self._socket.sendall(event * burst)
        if self._nats:
            self._answer_pings()

    def _answer_pings(self) -> None:
        while self._poll.poll(0):
            if b"PING" in self._socket.recv(65536):
                self._socket.sendall(b"PONG\r\n")


def masked(message: bytes) -> bytes:
    """Make a client's frame; a mask of zeros leaves the bytes as they are."""
    return b"\x81%c\x00\x00\x00\x00%b" % (0x80 | len(message), message)


def connect(plan: Plan, index: int) -> socket.socket:
    """Open a WebSocket that listens to the topic."""
    connection = socket.create_connection(("127.0.0.1", plan.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = [
        f"GET {plan.path} HTTP/1.1",
        "Host: bench",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
    ]
    if plan.tokens:
        lines.append(f"Authorization: Bearer {plan.tokens[index % len(plan.tokens)]}")
    handshake = "\r\n".join([*lines, "", ""]).encode()
    connection.sendall(handshake + (masked(_SUBSCRIBE) if plan.tokens else b""))
    return connection


def await_welcome(plan: Plan, connection: socket.socket) -> None:
    """Read until the server has said all that it says before the first event."""
    last = b'"subscribed"' if plan.tokens else b"\r\n\r\n"
    connection.settimeout(30)
    seen = b""
    while last not in seen or (plan.tokens and not seen.endswith(b"}")):
        seen += (data := connection.recv(65536))
        if not data:
            raise SystemExit(f"the server closed a socket in the handshake: {seen[:500]!r}")
    if not seen.startswith(b"HTTP/1.1 101"):
        raise SystemExit(f"the server refused a socket: {seen[:500]!r}")
    connection.setblocking(False)


class Listeners:
    """The sockets, and how many messages they got."""

    def __init__(self, plan: Plan) -> None:
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._buffer = bytearray(1024 * 1024)
        self.received = 0
        for first in range(0, plan.sockets, 200):  # fewer than wait to be accepted
            group = [connect(plan, index) for index in range(first, min(first + 200, plan.sockets))]
            for connection in group:
                await_welcome(plan, connection)
                self._sockets[connection.fileno()] = connection
                self._poll.register(connection, select.EPOLLIN)

    def read(self, wait: float) -> bool:
        """Read what has come; return whether something had."""
        ready = self._poll.poll(wait, 4096)
        buffer = self._buffer
        for number, _ in ready:
            size = self._sockets[number].recv_into(buffer)
            if not size:
                raise SystemExit("the server closed a socket")
            if buffer.find(_PING, 0, size) >= 0:
                self.received += self._without_pings(self._sockets[number], bytes(buffer[:size]))
            else:
                self.received += buffer.count(_TEXT, 0, size)
        return bool(ready)

    def _without_pings(self, connection: socket.socket, data: bytes) -> int:
        count = 0
        while (place := data.find(_PING)) >= 0:
            count += data.count(_TEXT, 0, place)
            connection.send(b"\x8a\x84\x00\x00\x00\x00" + data[place + 2 : place + _PING_BYTES])
            data = data[place + _PING_BYTES :]
        return count + data.count(_TEXT)


def measure(
    listeners: Listeners, source: Source, *, sockets: int, burst: int, seconds: float
) -> dict[str, Any]:
    """Publish bursts for `seconds`, and read until every socket has every message."""
    started = time.perf_counter()
    listeners.received = expected = 0
    published: list[float] = []
    latencies: list[float] = []
    last_byte = started
    while True:
        now = time.perf_counter()
        while (
            len(latencies) < len(published) and listeners.received >= (len(latencies) + 1) * burst * sockets
        ):
            latencies.append(now - published[len(latencies)])
        if now - started < seconds:
            while len(published) - len(latencies) < OUTSTANDING:
                source.put(burst)
                published.append(time.perf_counter())
                expected += burst * sockets
        elif listeners.received >= expected:
            break
        if listeners.read(0.1):
            last_byte = time.perf_counter()
        elif time.perf_counter() - last_byte > STALL_LIMIT:
            raise SystemExit(f"nothing comes any more: {listeners.received} of {expected} messages")
    return {"messages": listeners.received, "seconds": time.perf_counter() - started, "latencies": latencies}


def serve(plan: Plan, control_port: int) -> None:
    """Connect, then measure a round for each `{"seconds", "burst", "stalled"}` that comes."""
    listeners, source = Listeners(plan), Source(plan)
    control = socket.create_server(("127.0.0.1", control_port))
    while True:
        control.settimeout(0)
        try:
            asker, _ = control.accept()
        except BlockingIOError:
            listeners.read(0.2)  # pings
            continue
        asker.setblocking(True)
        with asker, asker.makefile("rwb") as lines:
            for line in lines:
                order = json.loads(line)
                stalled = [connect(plan, index) for index in range(order.pop("stalled"))]
                for connection in stalled:
                    await_welcome(plan, connection)  # and read nothing from then on
                report = measure(listeners, source, sockets=plan.sockets, **order)
                for connection in stalled:
                    connection.close()
                lines.write(json.dumps(report).encode() + b"\n")
                lines.flush()


def ask(control_port: int, *, seconds: float, burst: int, stalled: int = 0) -> dict[str, Any]:
    """Let a running load measure a round, beside `stalled` further sockets that read nothing."""
    with socket.create_connection(("127.0.0.1", control_port)) as connection:
        connection.settimeout(seconds + STALL_LIMIT + 30)
        connection.sendall(
            json.dumps({"seconds": seconds, "burst": burst, "stalled": stalled}).encode() + b"\n"
        )
        report: dict[str, Any] = json.loads(connection.makefile("rb").readline())
    return report


if __name__ == "__main__":
    serve(Plan(**json.loads(Path(sys.argv[1]).read_text())), int(sys.argv[2]))
