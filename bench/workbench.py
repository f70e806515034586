"""Where a benchmark runs: a folder of its own, processes on chosen cores, and nothing left behind."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from bench.machine import Cores, pinned, prefer
from shared.testing import free_port
from stack.command import Account, Command, spawn

START_TIMEOUT = 60.0
"""Seconds that a process may take until it listens."""
STOP_TIMEOUT = 10.0
POLL = 0.02
ROOT = Path(__file__).parent.parent

_HANDED_ON = ("HOME", "LANG", "PATH", "TZ")
"""What processes see of the caller's environment: settings of a shell must not change a figure."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children have used."""

    cpu: float
    """Seconds, since the start."""
    rss: float
    """MiB resident now."""


class Process:
    """A running process of a benchmark."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._popen = popen
        self.pid = popen.pid

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._popen.poll() is None

    def usage(self) -> Usage:
        """Add up the process and all its children."""
        cpu = rss = 0.0
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                cpu += times.user + times.system
                rss += process.memory_info().rss / 2**20
        return Usage(cpu, rss)

    def peak_rss(self) -> float:
        """MiB resident at most since `forget_peak`."""
        return sum(_status_kib(process.pid, "VmHWM") for process in self._family()) / 1024

    def forget_peak(self) -> None:
        """Let `peak_rss` count from now (proc(5), clear_refs)."""
        for process in self._family():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def stop(self) -> None:
        """End it and whatever it started: in order, or by force after STOP_TIMEOUT."""
        with suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own
        self._popen.wait()

    def last_words(self) -> str:
        """The end of its log, for a message."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(f"    {line[:300]}" for line in lines[-15:]) or "    (it said nothing)"

    def _family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.pid)
            return [own, *own.children(recursive=True)]
        return []


class StartError(Exception):
    """A process did not come up; the text has its last words."""


class Workbench:
    """Starts processes for one benchmark and ends them with it."""

    def __init__(self, cores: Cores, folder: Path, logs: Path, *, seconds: float) -> None:
        self.cores = cores
        self.folder = folder
        """For configurations and data; deleted afterwards."""
        self.seconds = seconds
        """How long one round of one party should take."""
        self.as_root = os.geteuid() == 0
        self._logs = logs
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(pinned(self.cores.load))
        prefer(os.getpid())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cores: frozenset[int],
        port: int | None = None,
        ready: Callable[[], bool] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        account: Account | None = None,
    ) -> Process:
        """Start a process on `cores`, and wait until it is `ready`, or listens on `port`. It ends with the benchmark.

        Its output goes to a file. `env` is added to PATH and the like; nothing else is inherited.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        inherited = {key: os.environ[key] for key in _HANDED_ON if key in os.environ}
        log = self._logs / f"{name}.log"
        command = Command(tuple(argv), {**inherited, **(env or {})}, cwd, account)
        try:
            with log.open("wb") as out, pinned(cores):
                popen = spawn(command, stdout=out, stderr=subprocess.STDOUT)
        except OSError as error:
            raise StartError(f"{name} cannot be started: {error}") from None
        prefer(popen.pid)
        process = Process(name, popen, log)
        self._stack.callback(process.stop)
        if ready is None and port is not None:
            ready = _listening(port)
        if ready is not None:
            wait_until(ready, process)
        return process

    def afterwards(self, work: Callable[[], None]) -> None:
        """Do something at the end of the benchmark, once what is started from now on has ended."""
        self._stack.callback(work)

    def run(
        self, argv: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None, text: str = ""
    ) -> str:
        """Run a program of the load's side to its end, with `text` on its standard input; returns what it wrote.

        Raises:
            StartError: it failed.
        """
        inherited = {key: os.environ[key] for key in _HANDED_ON if key in os.environ}
        done = subprocess.run(  # noqa: S603 - our own arguments, no shell reads them
            argv,
            capture_output=True,
            text=True,
            input=text,
            timeout=timeout,
            check=False,
            cwd=ROOT,
            env={**inherited, **(env or {})},
        )
        if done.returncode != 0:
            raise StartError(f"{argv[0]} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file into the folder."""
        path = self.folder / name
        path.write_text(text)
        return path

    def port(self) -> int:
        """A port that nobody listens on."""
        return free_port()


def wait_until(ready: Callable[[], bool], process: Process) -> None:
    """Return once `ready` says so.

    Raises:
        StartError: `process` ended before, or START_TIMEOUT has passed.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if not process.alive():
            raise StartError(f"{process.name} ended before it was ready:\n{process.last_words()}")
        if time.monotonic() > deadline:
            raise StartError(
                f"{process.name} was not ready within {START_TIMEOUT:.0f} s:\n{process.last_words()}"
            )
        time.sleep(POLL)


def _listening(port: int) -> Callable[[], bool]:
    def ready() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    return ready


def _status_kib(pid: int, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0
