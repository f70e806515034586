"""Where a Python process spends its time under a benchmark's load: py-spy's samples, added up by function."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench.model import BenchError, Party
from bench.workbench import Workbench

RATE = 100
"""Samples a second; the process stands still for each."""
SECONDS = 10.0
LINES = 40
WAITING = ("poll", "epoll_wait", "epoll_pwait", "select")
"""Innermost functions of a thread that has nothing to do."""


def profile(party: Party, workbench: Workbench) -> str:
    """Load the party while py-spy watches its process; returns a table.

    Raises:
        BenchError: it has no process of its own, or may not be watched.
    """
    if party.process is None:
        raise BenchError(f"{party.name} has no process to profile")
    folded = workbench.folder / "profile.folded"
    program = Path(sys.executable).with_name("py-spy")
    argv = [
        str(program),
        "record",
        "--pid",
        str(party.process.pid),
        "--format",
        "raw",
        "--output",
        str(folded),
    ]
    argv += ["--duration", f"{SECONDS:.0f}", "--rate", str(RATE), "--native"]
    seconds, workbench.seconds = workbench.seconds, SECONDS + 2
    try:
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watching:  # noqa: S603
            party.measure()
            said, _ = watching.communicate(timeout=60)
    finally:
        workbench.seconds = seconds
    if watching.returncode != 0 or not folded.exists():
        raise BenchError(f"py-spy could not watch {party.name}: {said}")
    return table(folded.read_text().splitlines())


def table(folded: Iterable[str]) -> str:
    """Add up samples, one `outermost;…;innermost count` on each line: the share of each function itself, and with what it calls."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in folded:
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        if frames[-1].partition(" ")[0] in WAITING:
            continue
        total += int(count)
        alone[frames[-1]] += int(count)
        for function in set(frames):
            within[function] += int(count)
    if not total:
        raise BenchError("py-spy saw nothing")
    rows = [f"{total} samples", " itself  within  function"]
    rows += [
        f"{count / total:7.1%} {within[name] / total:7.1%}  {name}"
        for name, count in alone.most_common(LINES)
    ]
    return "\n".join(rows) + "\n"


def _function(frame: str) -> str:
    """`send (gateway/wire.py:12)` without its line, and without where packages lie."""
    name, _, place = frame.partition(" (")
    place = place.rstrip(")").rpartition(":")[0] or place.rstrip(")")
    for root in ("/site-packages/", "/src/", "/lib/"):
        place = place.rpartition(root)[2]
    return f"{name} ({place})" if place else name
