"""The stack with stand-ins for the services; the servers are real. Takes the command line of `python -m stack`."""

import sys
from dataclasses import replace
from pathlib import Path

from stack.__main__ import main
from stack.services import TOLLHOUSE, System

STANDIN = str(Path(__file__).with_name("standin.py"))


def standins() -> System:
    """Tollhouse with every program replaced."""
    services = tuple(
        replace(spec, program=(sys.executable, "-S", STANDIN, spec.name)) for spec in TOLLHOUSE.services
    )
    return replace(
        TOLLHOUSE, services=services, declare_streams=(sys.executable, "-S", STANDIN, "streams", "declare")
    )


if __name__ == "__main__":
    raise SystemExit(main(system=standins()))
