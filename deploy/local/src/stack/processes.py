"""A process under supervision: started, waited for, restarted when it dies, stopped for good."""

import asyncio
import os
import signal
import time
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stack import logs
from stack.command import Command
from stack.errors import StackError, StartFailed
from stack.probes import Probe

LAST_LINES = 20
"""Lines kept of each process, shown when it dies."""
LONGEST_LINE = 64 * 1024
"""Bytes; longer lines are split."""
SETTINGS_REFUSED = 2
"""Exit code by which a service says that its settings are wrong; trying again changes nothing."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits, in seconds, and how often it tries."""

    start: float = 60.0
    """From the start of a process until it is ready."""
    poll: float = 0.05
    """Between two probes."""
    attempts: int = 3
    """Starts in a row that never became ready, before the first success, until everything is given up."""
    first_delay: float = 0.2
    """Before the first restart; it doubles with each one."""
    longest_delay: float = 10.0
    look: float = 5.0
    """Between two looks at a process that is ready and has to stay `fit`."""
    unfit: int = 3
    """Looks in a row that find it unfit until it is restarted."""
    stable: float = 30.0
    """A process that was ready this long starts again with the first delay."""
    kill: float = 5.0
    """For a process whose `kill_signal` is gentler than SIGKILL."""
    pipe: float = 1.0
    """For the last output of a process that has ended."""


PATIENCE = Patience()


@dataclass(slots=True)
class _Run:
    """One life of a process."""

    process: Process
    output: asyncio.Task[None]


class Supervised:
    """One process that is kept running: `keep` until `stop`."""

    def __init__(
        self,
        name: str,
        command: Callable[[], Command],
        probe: Probe,
        output: logs.Output,
        *,
        pid_file: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        kill_signal: signal.Signals = signal.SIGKILL,
        stop_timeout: float,
        patience: Patience = PATIENCE,
        fit: Probe | None = None,
    ) -> None:
        """`command` is asked again at each start. `kill_signal` is for the whole process group, once `stop_timeout` has passed.

        `fit`: what must stay true of a process that became ready, or it is restarted (what Kubernetes calls liveness).
        """
        self.name = name
        self.ready = asyncio.Event()
        self._command = command
        self._probe = probe
        self._output = output
        self._pid_file = pid_file
        self._stop_signal = stop_signal
        self._kill_signal = kill_signal
        self._stop_timeout = stop_timeout
        self._patience = patience
        self._fit = fit
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._run: _Run | None = None
        self._stopping = asyncio.Event()
        self._restarting = False
        self._nudge = asyncio.Event()
        self._was_ready = False

    async def keep(self) -> None:
        """Start, and start again whenever it dies, until `stop`. StartFailed: it never came up."""
        failed_starts = 0
        delay = self._patience.first_delay
        while not self._stopping.is_set():
            run = self._run = await self._start()
            began = time.monotonic()
            try:
                if self._stopping.is_set():
                    return
                became_ready = await self._becomes_ready(run)
                if became_ready:
                    failed_starts = 0
                    self._announce(time.monotonic() - began)
                    await self._stays_fit(run)
                else:
                    failed_starts += 1
                code = await run.process.wait()
            finally:
                await self._bury(run)
            if self._stopping.is_set():
                if code > 0:
                    self._output.say(f"{self.name} {how_it_ended(code)} while stopping.", "warning")
                return
            if self._restarting:
                self._restarting = False
                continue
            self._give_up_if_hopeless(code, failed_starts, became_ready=became_ready)
            if became_ready and time.monotonic() - began > self._patience.stable:
                delay = self._patience.first_delay
            self._output.say(
                f"{self.name} {how_it_ended(code)}; starting it again in {delay:.1f} s. Its last lines:\n{self.last_lines()}",
                "error",
            )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudge.wait(), delay)
            self._nudge.clear()
            delay = min(delay * 2, self._patience.longest_delay)

    async def restart(self) -> None:
        """End the present process in order, if there is one; `keep` starts the next one at once."""
        if self._stopping.is_set():
            return
        if self._run is not None and self._run.process.returncode is None:
            self._restarting = True
            await self._end(self._run, hurry=asyncio.Event())
        else:
            self._nudge.set()

    async def stop(self, hurry: asyncio.Event) -> None:
        """End it for good: in order, then by force once the deadline has passed or `hurry` is set."""
        self._stopping.set()
        self._nudge.set()
        if self._run is not None and self._run.process.returncode is None:
            await self._end(self._run, hurry)

    async def _end(self, run: _Run, hurry: asyncio.Event) -> None:
        with suppress(ProcessLookupError):
            run.process.send_signal(self._stop_signal)
        ended = asyncio.create_task(run.process.wait())
        hurried = asyncio.create_task(hurry.wait())
        try:
            await asyncio.wait(
                {ended, hurried}, timeout=self._stop_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended.done():
                if not hurry.is_set():
                    self._output.say(
                        f"{self.name} did not stop within {self._stop_timeout:.0f} s: killing it.", "warning"
                    )
                _kill_group(run, self._kill_signal)
                await asyncio.wait({ended}, timeout=self._patience.kill)
                _kill_group(run, signal.SIGKILL)
            await ended
        finally:
            hurried.cancel()

    def last_lines(self) -> str:
        """What it said last, indented for a message."""
        return "\n".join(f"    {line}" for line in self._lines) or "    (it said nothing)"

    async def _start(self) -> _Run:
        self._lines.clear()
        process, output = await start(self._command(), self._hear)
        draft = self._pid_file.with_suffix(".new")
        draft.write_text(f"{process.pid}\n")
        draft.replace(self._pid_file)  # nobody reads half of it
        return _Run(process, output)

    async def _becomes_ready(self, run: _Run) -> bool:
        """Probe until it answers; False when it died, or had to be killed because it took too long."""
        deadline = time.monotonic() + self._patience.start
        ended = asyncio.create_task(run.process.wait())
        try:
            while not ended.done():
                if await self._probe():
                    return not ended.done()
                if time.monotonic() > deadline:
                    self._output.say(
                        f"{self.name} was not ready within {self._patience.start:.0f} s: ending it.", "error"
                    )
                    _kill_group(run, signal.SIGKILL)
                await asyncio.wait({ended}, timeout=self._patience.poll)
            return False
        finally:
            ended.cancel()

    async def _stays_fit(self, run: _Run) -> None:
        """Return once it has died; end it when it lives on without being of use."""
        if self._fit is None:
            return
        failures = 0
        ended = asyncio.create_task(run.process.wait())
        try:
            while not ended.done():
                await asyncio.wait({ended}, timeout=self._patience.look)
                failures = 0 if ended.done() or await self._fit() else failures + 1
                if failures == self._patience.unfit:
                    self._output.say(f"{self.name} runs, but is of no use any more: restarting it.", "error")
                    await self._end(run, hurry=asyncio.Event())
        finally:
            ended.cancel()

    async def _bury(self, run: _Run) -> None:
        """Leave nothing of a life that is over: workers of a killed parent, the pipe, the pid file."""
        _kill_group(run, signal.SIGKILL)
        if run.process.returncode is None:
            await run.process.wait()
        await asyncio.wait({run.output}, timeout=self._patience.pipe)
        run.output.cancel()
        self._pid_file.unlink(missing_ok=True)
        self.ready.clear()

    def _announce(self, seconds: float) -> None:
        if self._was_ready:
            self._output.say(f"{self.name} is back after {seconds:.1f} s.")
        self._was_ready = True
        self.ready.set()

    def _give_up_if_hopeless(self, code: int, failed_starts: int, *, became_ready: bool) -> None:
        if became_ready or self._was_ready:
            return
        if code == SETTINGS_REFUSED or failed_starts >= self._patience.attempts:
            times = "" if failed_starts == 1 else f" {failed_starts} times in a row"
            raise StartFailed(
                f"{self.name} {how_it_ended(code)}{times} before it was ready. Its last lines:\n{self.last_lines()}"
            )

    def _hear(self, line: str) -> None:
        record = logs.parse(self.name, line)
        self._lines.append(record.event if record.original is None else logs.summary(record))
        self._output.show(record)


def _kill_group(run: _Run, number: signal.Signals) -> None:
    # The process leads a group of its own, see Command.options.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(run.process.pid, number)


async def start(command: Command, hear: Callable[[str], None]) -> tuple[Process, asyncio.Task[None]]:
    """Start `command` and a task that gives each of its lines to `hear`. StackError: it cannot be started."""
    # A pipe of our own: asyncio's would make Process.wait() wait for grandchildren that hold it, too.
    readable, writable = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=writable,
            stderr=asyncio.subprocess.STDOUT,
            **command.options(),
        )
    except OSError as failure:
        os.close(readable)
        raise StackError(f"{command.argv[0]} cannot be started: {failure.strerror}.") from None
    finally:
        os.close(writable)
    return process, asyncio.create_task(_read_lines(readable, hear))


async def run_once(name: str, verb: str, command: Command, output: logs.Output) -> None:
    """Run a program to its end, for process `name`. StartFailed, with its last lines, when its exit code is not 0."""
    lines: deque[str] = deque(maxlen=LAST_LINES)

    def hear(line: str) -> None:
        record = logs.parse(name, line)
        lines.append(record.event if record.original is None else logs.summary(record))
        output.show(record)

    process, reading = await start(command, hear)
    try:
        code = await process.wait()
        await asyncio.wait({reading}, timeout=PATIENCE.pipe)
    finally:
        reading.cancel()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
    if code != 0:
        said = "\n".join(f"    {line}" for line in lines) or "    (it said nothing)"
        raise StartFailed(f"{name} {verb} {how_it_ended(code)}. Its last lines:\n{said}")


def how_it_ended(code: int) -> str:
    """`code` as asyncio gives it, in words: negative for a signal."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


async def _read_lines(readable: int, hear: Callable[[str], None]) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(readable, "rb", buffering=0)
    )
    rest = b""
    try:
        while chunk := await reader.read(LONGEST_LINE):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                if text := line.decode(errors="replace").rstrip():
                    hear(text)
    finally:
        if text := rest.decode(errors="replace").rstrip():
            hear(text)
        transport.close()
