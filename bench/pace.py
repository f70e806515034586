"""An open-loop client: requests at random moments of a fixed average rate, whether or not earlier ones were answered.

`python -m bench.pace PORT RATE SECONDS PATH`, with a token on each line of standard input, writes JSON. A latency counts from the
moment that a request was due, so that a server that stalls cannot hide what it made wait.
"""

import ctypes
import json
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

CONNECTIONS = 32
DRAIN_SECONDS = 2.0
"""How long the last answers may take; what comes later counts as lost."""
_PR_SET_TIMERSLACK = 29  # linux/prctl.h


@dataclass(slots=True)
class Paced:
    """What came of it."""

    latencies: list[float] = field(default_factory=list)
    """Milliseconds."""
    bad: int = 0
    """Requests without an answer, or with another than 200."""


class _Connection:
    """One request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self._received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._received = b""
        self.socket.send(request)

    def receive(self) -> bool | None:
        """Whether the answer is a good one; None while it is not complete."""
        data = self.socket.recv(65536)
        if not data:
            return False
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return None
        return head.startswith(b"HTTP/1.1 200 ")


def pace(port: int, rate: float, seconds: float, requests: Sequence[bytes]) -> Paced:
    """Send `requests` in turn."""
    free = [_Connection(port) for _ in range(CONNECTIONS)]
    busy: set[_Connection] = set()
    waiting: deque[float] = deque()
    paced = Paced()
    chance, number = random.Random(1), 0  # noqa: S311
    due = time.perf_counter()
    end = due + seconds
    while True:
        now = time.perf_counter()
        while due <= now and due < end:
            waiting.append(due)
            due += chance.expovariate(rate)
        while waiting and free:
            connection = free.pop()
            connection.send(requests[number % len(requests)], waiting.popleft())
            busy.add(connection)
            number += 1
        if now >= end and not busy:
            return paced
        if now > end + DRAIN_SECONDS:
            paced.bad += len(busy) + len(waiting)
            return paced
        # select() waits to the microsecond, epoll to the millisecond.
        timeout = min(due, end + DRAIN_SECONDS) - time.perf_counter() if now < end else DRAIN_SECONDS
        for connection in select.select(busy, [], [], max(timeout, 0))[0]:
            if (good := connection.receive()) is None:
                continue
            busy.remove(connection)
            if good:
                paced.latencies.append((time.perf_counter() - connection.due) * 1000)
                free.append(connection)
            else:
                paced.bad += 1
                free.append(_Connection(port))


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of all do not exceed (nearest rank)."""
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]


def main() -> None:
    """Run a command line."""
    port, rate, seconds, path = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # wake up when it is due, not 50 µs later
    requests = [
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token.strip()}\r\n\r\n".encode()
        for token in sys.stdin
    ]
    paced = pace(port, rate, seconds, requests)
    if paced.bad or not paced.latencies:
        sys.exit(f"{paced.bad} requests to port {port} had no good answer")
    print(json.dumps({f"p{percent}": percentile(paced.latencies, percent) for percent in (50, 99)}))


if __name__ == "__main__":
    main()
