"""The machine: which core does what, and what to say about it beside the figures."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PRIORITY = -15
"""Nice value of everything that takes part in a measurement, on all sides."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The party that is measured has a core to itself; clients, services and the harness have the others."""

    subject: frozenset[int]
    load: frozenset[int]

    @classmethod
    def of_this_machine(cls) -> "Cores | None":
        """Share out the cores that this process may use; None where there is only one."""
        first, *others = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(others)) if others else None


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Run the block on `cores`; processes started in it inherit them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def prefer(pid: int) -> None:
    """Let a process (and what it starts) come before others', where the system permits it: root may, others may not."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)
    # Where the kernel groups processes by session, only the group's own value counts (sched(7), autogroup).
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(PRIORITY))


class Strangers:
    """How much of the measured cores others took: whatever was busy there and was not started by this process."""

    def __init__(self, cores: frozenset[int]) -> None:
        self._cores = cores
        self._busy, self._own, self._wall = _busy_seconds(cores), _own_seconds(cores), time.monotonic()

    def share(self) -> float:
        """Their share since this object was made, 0 to 1; time stolen by the hypervisor counts."""
        own = sum(seconds - self._own.get(pid, 0.0) for pid, seconds in _own_seconds(self._cores).items())
        strange = _busy_seconds(self._cores) - self._busy - own
        passed = (time.monotonic() - self._wall) * len(self._cores)
        return min(max(strange / passed, 0.0), 1.0) if passed else 0.0


def _busy_seconds(cores: frozenset[int]) -> float:
    times = psutil.cpu_times(percpu=True)
    return sum(times[core].user + times[core].nice + times[core].system + times[core].steal for core in cores)


def _own_seconds(cores: frozenset[int]) -> dict[int, float]:
    """CPU time of each descendant that runs on `cores` only, by pid."""
    own = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if cores.issuperset(process.cpu_affinity()):
                times = process.cpu_times()
                own[process.pid] = times.user + times.system + times.children_user + times.children_system
    return own


def describe() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
