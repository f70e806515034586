"""Logs: one JSON line an event, and nothing in them that should stay inside."""

import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from shared import logs
from shared.settings import Settings


class ProbeSettings(Settings):
    service = "probe"
    port: int = 1


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the loggers of the run as they were."""
    structured = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {
        name: logging.getLogger(name).level
        for name in ("uvicorn.access", "httpx", "httpcore", "sqlalchemy.engine")
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, previous in levels.items():
        logging.getLogger(name).setLevel(previous)
    structlog.configure(**structured)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_event_is_one_json_line_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ProbeSettings(log_format="json"))

    logs.get_logger("probe.module").info("item.counted", count=3, note="two\nlines")

    (line,) = _lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "item.counted",
        "level": "info",
        "logger": "probe.module",
        "service": "probe",
        "count": 3,
        "note": "two\nlines",
    }


def test_lines_of_other_libraries_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ProbeSettings(log_format="json"))

    logging.getLogger("uvicorn.error").warning("connection %s", "lost", extra={"peer": "a"})

    (line,) = _lines(capsys)
    assert line["event"] == "connection lost"
    assert line["level"] == "warning"
    assert line["service"] == "probe"
    assert line["peer"] == "a"


@pytest.mark.parametrize("form", ["json", "console"])
def test_traceback_shows_no_local_variables(capsys: pytest.CaptureFixture[str], form: Any) -> None:
    logs.configure(ProbeSettings(log_format=form))

    def check() -> None:
        password = "".join(["hun", "ter2"])
        raise ValueError("refused" if password else "")

    try:
        check()
    except ValueError:
        logs.get_logger("probe").exception("login.failed")

    output = capsys.readouterr().out
    assert "refused" in output
    assert "hunter2" not in output


def test_nothing_below_the_level_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ProbeSettings(log_format="json", log_level="warning"))

    logs.get_logger("probe").info("quiet.event")
    logging.getLogger("other").info("quiet too")
    logging.getLogger("httpx").info("GET http://127.0.0.1/?token=secret")

    assert capsys.readouterr().out == ""


def test_without_a_terminal_the_format_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(ProbeSettings(log_format="auto"))

    logs.get_logger("probe").warning("plain.event")

    assert _lines(capsys)[0]["event"] == "plain.event"
