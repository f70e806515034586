"""What the logs of different processes look like in one stream."""

import io
import json
import threading

import pytest

from stack import logs
from stack.logs import Output, Terminal, as_json, parse

SERVICE_LINE = json.dumps(
    {
        "timestamp": "2026-11-23T10:00:00Z",
        "level": "error",
        "service": "items",
        "event": "request.failed",
        "path": "/v1/items",
        "note": "two words",
        "exception": [
            {
                "exc_type": "ValueError",
                "exc_value": "no",
                "frames": [{"filename": "a.py", "lineno": 7, "name": "f"}],
            }
        ],
    }
)


@pytest.mark.parametrize(
    ("line", "level", "event"),
    [
        ("2026-11-23 10:53:31.115 UTC [5154] LOG:  checkpoint starting", "debug", "checkpoint starting"),
        ("2026-11-23 10:53:31.115 UTC [5154] PANIC:  no disk", "error", "no disk"),
        ("2026-11-23 10:53:31.115 UTC [5154] FATAL:  the database system is starting up", "debug", "the database system is starting up"),
        ("[77] 2026/11/23 10:54:42.402141 [INF] Server is ready", "debug", "Server is ready"),
        ("[77] 2026/11/23 10:54:42.402141 [INF]", "debug", ""),
        ("[77] 2026/11/23 10:54:42.402141 [ERR] Publish Violation", "error", "Publish Violation"),
        ("Traceback (most recent call last):", "info", "Traceback (most recent call last):"),
        ("{not json", "info", "{not json"),
        ("[1, 2]", "info", "[1, 2]"),
        (SERVICE_LINE, "error", "request.failed"),
        ('{"event": "x", "level": "odd", "timestamp": 5}', "info", "x"),
    ],
)  # fmt: skip
def test_each_format_is_understood(line: str, level: str, event: str) -> None:
    record = parse("some", line)
    assert (record.level, record.event) == (level, event)


def test_json_stays_as_it_is_and_text_becomes_json() -> None:
    assert as_json(parse("items", SERVICE_LINE)) == SERVICE_LINE
    said = json.loads(as_json(parse("nats", "[77] 2026/11/23 10:54:42.402141 [WRN] slow")))
    assert (said["service"], said["level"], said["event"]) == ("nats", "warning", "slow")


def test_a_terminal_shows_name_event_fields_and_the_traceback() -> None:
    lines = Terminal(colours=False)(parse("items", SERVICE_LINE)).splitlines()
    assert lines[0].endswith('items         request.failed path=/v1/items note="two words"')
    assert [line.strip() for line in lines[1:]] == [
        "items           a.py:7 in f",
        "items         ValueError: no",
    ]
    assert "\x1b[31mrequest.failed" in Terminal(colours=True)(parse("items", SERVICE_LINE))


def test_a_traceback_in_text_is_shown_as_it_is() -> None:
    assert logs.summary(parse("x", '{"event": "e", "exception": "one\\ntwo"}')) == "e\none\ntwo"


def test_the_chatter_of_servers_is_shown_on_demand() -> None:
    line = "[77] 2026/11/23 10:54:42.402141 [INF] Server is ready"
    for chatter in (False, True):
        stream = io.StringIO()
        output = Output(stream, human=True, chatter=chatter)
        output.show(parse("nats", line))
        output.close()
        assert ("Server is ready" in stream.getvalue()) is chatter


class _Stopped(io.StringIO):
    """A terminal after Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.resumed = threading.Event()

    def write(self, text: str) -> int:
        self.resumed.wait()
        return super().write(text)


def test_a_stopped_terminal_holds_nothing_up_and_is_told_what_it_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "BACKLOG", 10)
    stream = _Stopped()
    output = Output(stream, human=False, chatter=False)
    for number in range(100):
        output.say(f"event {number}")
    output.text("nothing in JSON")
    stream.resumed.set()
    output.close()
    said = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert said[0] == "event 0"
    assert said[-1].endswith("lines were dropped: output is too slow")


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(text)


def test_a_terminal_that_is_gone_is_no_failure() -> None:
    output = Output(_Gone(), human=False, chatter=False)
    output.say("unheard")
    output.close()
