"""One stream of the logs of all processes: aligned lines on a terminal, JSON lines everywhere else.

Services are told to log JSON; PostgreSQL and NATS have formats of their own. Each line becomes a Record, and a Record is shown in
one of two forms.
"""

import json
import queue
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]

BACKLOG = 10_000
"""Lines that may wait for a slow terminal; more are dropped and counted, so that output never holds up supervision."""
NAME_WIDTH = 13

_POSTGRES: Final = re.compile(r"\d{4}-\S+ \S+ \S+ \[\d+\] (?P<level>[A-Z]+\d?):  (?P<event>.*)")
_NATS: Final = re.compile(r"\[\d+\] \S+ \S+ \[(?P<level>[A-Z]+)\] ?(?P<event>.*)")
_LEVELS: Final[Mapping[str, Level]] = {
    "critical": "error", "error": "error", "warning": "warning", "info": "info", "debug": "debug",
    # PostgreSQL. ERROR is a failed statement, which its client reports in its own words.
    "FATAL": "warning", "PANIC": "error", "ERROR": "info", "WARNING": "warning",
    # NATS
    "FTL": "error", "ERR": "error", "WRN": "warning",
}  # fmt: skip
_EXPECTED: Final = (
    "the database system is starting up",
    "the database system is shutting down",
    "terminating connection due to administrator command",
    "canceling authentication due to timeout",  # a log-in that met the shutdown
    "Plaintext passwords detected",  # the configuration file is closed to everybody else
)
_HIDDEN_FIELDS: Final = {
    "timestamp",
    "level",
    "event",
    "service",
    "logger",
    "exception",
    "trace_id",
    "span_id",
}
_COLOURS: Final = (36, 32, 35, 34, 33, 96, 92, 95)
_LEVEL_COLOURS: Final[Mapping[Level, int]] = {"debug": 90, "info": 0, "warning": 33, "error": 31}


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that was said."""

    source: str
    level: Level
    event: str
    time: datetime
    fields: Mapping[str, Any] = field(default_factory=dict)
    original: str | None = None
    """The line as it came, if it was JSON already."""


def parse(source: str, line: str) -> Record:
    """Read a line of process `source` in whatever format it has; what is unknown is an info event."""
    now = datetime.now(UTC)
    if line.startswith("{"):
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if isinstance(said, dict):
            level = _LEVELS.get(str(said.get("level")), "info")
            return Record(
                source, level, str(said.get("event", "")), _time(said.get("timestamp"), now), said, line
            )
    matched = _POSTGRES.match(line) or _NATS.match(line)
    if matched is None:
        return Record(source, "info", line, now)
    event = matched["event"]
    level = _LEVELS.get(matched["level"], "debug")  # LOG, INF, DETAIL: their chatter
    return Record(source, "debug" if event.startswith(_EXPECTED) else level, event, now)


def as_json(record: Record) -> str:
    """The record as one line of JSON; a line that was JSON stays byte for byte."""
    if record.original is not None:
        return record.original
    head = {
        "timestamp": record.time.isoformat(),
        "level": record.level,
        "service": record.source,
        "event": record.event,
    }
    return json.dumps({**head, **record.fields}, default=str)


def summary(record: Record) -> str:
    """What was said, without when and by whom: event, fields, and the lines of a traceback."""
    fields = (f"{key}={_shown(value)}" for key, value in record.fields.items() if key not in _HIDDEN_FIELDS)
    return "\n".join([" ".join([record.event, *fields]), *_exception(record.fields.get("exception"))])


class Terminal:
    """The record as aligned text, in colour: time, process, event, fields."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours
        self._assigned: dict[str, int] = {}

    def __call__(self, record: Record) -> str:
        colour = self._assigned.setdefault(record.source, _COLOURS[len(self._assigned) % len(_COLOURS)])
        name = self._paint(f"{record.source:<{NAME_WIDTH}}", colour)
        margin = f"\n{'':>8} {name} "
        text = self._paint(summary(record).replace("\n", margin), _LEVEL_COLOURS[record.level])
        return f"{record.time.astimezone():%H:%M:%S} {name} {text}"

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours and colour else text


class Output:
    """Where records go. A thread writes, so that a stopped terminal stops nothing else."""

    def __init__(self, stream: TextIO, *, human: bool, chatter: bool) -> None:
        """`human`: text rather than JSON. `chatter`: also what the servers say at their own info level."""
        self.human = human
        self._stream = stream
        self._render = Terminal(colours=stream.isatty()) if human else as_json
        self._chatter = chatter
        self._waiting: queue.Queue[str | None] = queue.Queue(BACKLOG)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write_all, name="output", daemon=True)
        self._writer.start()

    def show(self, record: Record) -> None:
        """Put a record into the stream; services have sorted out their levels themselves."""
        if record.level != "debug" or self._chatter or record.original is not None:
            self._put(self._render(record))

    def say(self, event: str, level: Level = "info", source: str = "stack", **fields: Any) -> None:
        """An event of the supervisor's own."""
        self.show(Record(source, level, event, datetime.now(UTC), fields))

    def text(self, text: str) -> None:
        """Plain lines for people; nothing in JSON."""
        if self.human:
            self._put(text)

    def close(self, timeout: float = 2.0) -> None:
        """Write what is waiting, for at most `timeout` seconds."""
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return
        self._writer.join(timeout)

    def _put(self, line: str) -> None:
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write_all(self) -> None:
        while (line := self._waiting.get()) is not None:
            # A terminal that is gone must not keep the supervisor from stopping everything in order.
            with suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                if self._waiting.empty():
                    if self._dropped:
                        dropped, self._dropped = self._dropped, 0
                        self._stream.write(
                            self._render(
                                Record(
                                    "stack",
                                    "warning",
                                    f"{dropped} lines were dropped: output is too slow",
                                    datetime.now(UTC),
                                )
                            )
                            + "\n"
                        )
                    self._stream.flush()


def _time(stamp: object, otherwise: datetime) -> datetime:
    try:
        return datetime.fromisoformat(str(stamp))
    except ValueError:
        return otherwise


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text) if " " in text else text


def _exception(chain: object) -> list[str]:
    """The frames and messages of a structured traceback (structlog's ExceptionDictTransformer), or text as it is."""
    if isinstance(chain, str):
        return chain.splitlines()
    lines: list[str] = []
    for link in chain if isinstance(chain, list) else []:
        frames = link.get("frames") or []
        lines += [
            f"  {frame.get('filename')}:{frame.get('lineno')} in {frame.get('name')}" for frame in frames[-6:]
        ]
        lines.append(f"{link.get('exc_type')}: {link.get('exc_value')}")
    return lines
