"""Metrics of a service with any number of worker processes, as one Prometheus page.

Each worker counts in memory that it shares with its main process: a file of doubles, and beside it a file that names them.
To count is one addition to a cell, without a lock or a call (0.1 µs). The main process adds all workers up when it is
scraped. What a worker counted stays when it dies, even by SIGKILL; its gauges go with it.
"""

import asyncio
import fcntl
import mmap
import os
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socket import AF_INET, AF_INET6
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, NamedTuple
from uuid import uuid4

import orjson

MAX_CELLS: Final = 16 * 1024
"""Numbers that a process may have; what does not fit any more is added up in one that is not shown."""
OBSERVE_SECONDS: Final = 1.0
"""How old an observed number may be."""
SCRAPE_TIMEOUT: Final = 5.0
"""Seconds that a scraper may take to send its request, and to read."""
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of a latency histogram's buckets, in seconds; a last one has no bound."""

_CELL_BYTES: Final = 8
_PRESENT: Final = frozenset({"gauge", "level"})
"""Kinds that say how it is now: nothing of them stays of a process that is gone."""
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # TemporaryDirectory makes a name of its own in it

Kind = Literal["counter", "gauge", "level", "histogram"]
"""A level is a gauge of something that all processes see alike: the highest is shown, not the sum."""


class Cell(NamedTuple):
    """What a number means."""

    kind: Kind
    family: str
    help: str
    labels: tuple[tuple[str, str], ...]
    suffix: str = ""
    """`_bucket` or `_sum`, for numbers of a histogram."""


class Metrics:
    """The numbers of this process. Without a directory they are counted, and nobody sees them."""

    def __init__(self, directory: Path | None = None) -> None:
        self._open = ExitStack()
        self._indexes: dict[Cell, int] = {}
        self._observed: list[tuple[int, Callable[[], float]]] = []
        self._names: Any = None
        self._memory: mmap.mmap | bytearray
        if directory is None:
            self._memory = bytearray(MAX_CELLS * _CELL_BYTES)
        else:
            # Named when it is locked: a scraper takes an unlocked file for that of a process that has died.
            path = directory / uuid4().hex
            self._names = self._open.enter_context(path.with_suffix(".names").open("wb", buffering=0))
            file = self._open.enter_context(path.with_suffix(".new").open("w+b"))
            file.truncate(MAX_CELLS * _CELL_BYTES)
            fcntl.flock(file, fcntl.LOCK_EX)
            self._memory = mmap.mmap(file.fileno(), MAX_CELLS * _CELL_BYTES)
            path.with_suffix(".new").rename(path.with_suffix(".cells"))
        self.cells = memoryview(self._memory).cast("d")
        """What hot paths add to, at the indexes that the methods below return. The first cell takes what has no place."""
        self._cell(Cell("counter", "", "", ()))

    def counter(self, family: str, help: str, **labels: str) -> int:  # noqa: A002  # Prometheus' word for it
        """Return the index of a number that only grows."""
        return self._cell(Cell("counter", family, help, tuple(labels.items())))

    def gauge(self, family: str, help: str, **labels: str) -> int:  # noqa: A002
        """Return the index of a number that may fall. Several processes' are added up."""
        return self._cell(Cell("gauge", family, help, tuple(labels.items())))

    def level(self, family: str, help: str, **labels: str) -> int:  # noqa: A002
        """Return the index of a number that may fall and that every process measures of the same thing."""
        return self._cell(Cell("level", family, help, tuple(labels.items())))

    def histogram(self, family: str, help: str, **labels: str) -> tuple[int, int]:  # noqa: A002
        """Return the index of the first bucket (the others follow) and that of the sum.

        To add a value: `cells[first + bisect_left(LATENCY_BOUNDS, value)] += 1; cells[sum] += value`.
        """
        named = tuple(labels.items())
        if len(self._indexes) + len(LATENCY_BOUNDS) + 2 > MAX_CELLS:
            raise RuntimeError("There is no place for a histogram: they belong to the start.")
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS), "+Inf"]
        first, *_ = [
            self._cell(Cell("histogram", family, help, (*named, ("le", bound)), "_bucket"))
            for bound in bounds
        ]
        return first, self._cell(Cell("histogram", family, help, named, "_sum"))

    def count(self, family: str, help: str, **labels: str) -> None:  # noqa: A002
        """Add one, where it happens rarely enough to be looked up."""
        self.cells[self.counter(family, help, **labels)] += 1

    def observe(self, index: int, read: Callable[[], float]) -> None:
        """Let the number at `index` be what `read` returns, asked once in OBSERVE_SECONDS (`watch`)."""
        self._observed.append((index, read))
        self.cells[index] = read()

    async def watch(self) -> None:
        """Keep what is observed up to date until cancelled."""
        while True:
            self.refresh()
            await asyncio.sleep(OBSERVE_SECONDS)

    def refresh(self) -> None:
        """Ask everything observed now."""
        for index, read in self._observed:
            self.cells[index] = read()

    def close(self) -> None:
        """Ask everything observed for the last time and let go of the files; the main process keeps what was counted.

        The cells stay: connections that a drain had to cut still count themselves.
        """
        self.refresh()
        self._observed.clear()
        self._names = None
        self._open.close()

    def _cell(self, cell: Cell) -> int:
        index = self._indexes.get(cell)
        if index is None:
            index = len(self._indexes)
            if index >= MAX_CELLS:
                return 0
            if self._names is not None:
                self._names.write(orjson.dumps(tuple(cell), option=orjson.OPT_APPEND_NEWLINE))
            self._indexes[cell] = index
        return index


class Collector:
    """Adds up what the processes below a directory count, and remembers those that have died."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._buried: dict[Cell, float] = {}
        self._collecting = threading.Lock()

    def collect(self) -> dict[Cell, float]:
        """Return every number, added up over all processes there are or were."""
        with self._collecting:
            living: list[dict[Cell, float]] = []
            for cells in self._directory.glob("*.cells"):
                names = cells.with_suffix(".names")
                with cells.open("rb") as file:
                    dead = _unlocked(file.fileno())
                    numbers = _read(names.read_bytes(), file.read())
                if dead:
                    _add(self._buried, {cell: n for cell, n in numbers.items() if cell.kind not in _PRESENT})
                    cells.unlink()
                    names.unlink()
                else:
                    living.append(numbers)
            total = dict(self._buried)
        for numbers in living:
            _add(total, numbers)
        return total


def _unlocked(file: int) -> bool:
    """Whether the process that wrote the file has gone: the kernel drops its lock, however it ended."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(names: bytes, memory: bytes) -> dict[Cell, float]:
    # The last line may be half written.
    lines = names[: names.rfind(b"\n") + 1].splitlines()
    cells = memoryview(memory).cast("d")
    numbers = {}
    for index, line in enumerate(lines):
        kind, family, text, labels, suffix = orjson.loads(line)
        if family:
            cell = Cell(kind, family, text, tuple((name, value) for name, value in labels), suffix)
            numbers[cell] = cells[index]
    return numbers


def _add(total: dict[Cell, float], numbers: Mapping[Cell, float]) -> None:
    for cell, number in numbers.items():
        if cell.kind == "level":
            total[cell] = max(total.get(cell, number), number)
        else:
            total[cell] = total.get(cell, 0.0) + number


def exposition(numbers: Mapping[Cell, float]) -> bytes:
    """Write numbers in Prometheus' text format 0.0.4."""
    families: dict[str, list[tuple[Cell, float]]] = {}
    for cell, number in numbers.items():
        families.setdefault(cell.family, []).append((cell, number))
    lines = []
    for family, members in sorted(families.items()):
        first, _ = members[0]
        kind = "gauge" if first.kind == "level" else first.kind
        lines += [f"# HELP {family} {first.help}", f"# TYPE {family} {kind}"]
        running: dict[tuple[tuple[str, str], ...], float] = {}
        for cell, number in members:
            if cell.suffix == "_bucket":  # cells count for themselves, Prometheus wants what is below a bound
                series = cell.labels[:-1]
                running[series] = running.get(series, 0.0) + number
                lines.append(_line(f"{family}_bucket", cell.labels, running[series]))
            else:
                lines.append(_line(f"{family}{cell.suffix}", cell.labels, number))
        lines += [_line(f"{family}_count", labels, number) for labels, number in running.items()]
    return "".join(f"{line}\n" for line in lines).encode()


def _line(name: str, labels: tuple[tuple[str, str], ...], number: float) -> str:
    named = ",".join(f'{label}="{_escape(value)}"' for label, value in labels)
    return f"{name}{{{named}}} {number:.17g}" if named else f"{name} {number:.17g}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@contextmanager
def exporting(host: str, port: int) -> Iterator[Path]:
    """Answer `GET /metrics` on a port of its own, from a thread of the main process, while the block runs.

    Yields the directory that the processes share.

    Raises:
        OSError: the port cannot be had.
    """
    # In memory where that exists, so that no disk is written to with every count.
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix="metrics-", dir=parent) as name:
        directory = Path(name)
        with _Exporter(host, port, Collector(directory)) as server:
            thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
            thread.start()
            try:
                yield directory
            finally:
                server.shutdown()
                thread.join()


class _Exporter(socketserver.TCPServer):
    """Serves one scraper at a time."""

    allow_reuse_address = True

    def __init__(self, host: str, port: int, collector: Collector) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.collector = collector
        super().__init__((host, port), _Scrape)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of scrapers that leave."""


class _Scrape(BaseHTTPRequestHandler):
    timeout = SCRAPE_TIMEOUT
    server: _Exporter

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == "/metrics"
        body = exposition(self.server.collector.collect()) if found else b"See /metrics.\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are not worth a line."""
