"""A process under supervision that lives on without being of use."""

import asyncio
import io
import sys
from dataclasses import replace
from pathlib import Path

from stack.command import Command
from stack.logs import Output
from stack.processes import PATIENCE, Supervised


async def test_a_process_that_is_of_no_use_any_more_is_restarted(tmp_path: Path) -> None:
    fit = [True, False, True, False, False]  # once is no reason, twice in a row is
    starts = 0
    again = asyncio.Event()

    def command() -> Command:
        nonlocal starts
        starts += 1
        return Command((sys.executable, "-Sc", "import signal; signal.pause()"), {}, tmp_path)

    async def is_ready() -> bool:
        if starts == 2:
            again.set()
        return True

    async def is_fit() -> bool:
        return fit.pop(0) if fit else True

    said = io.StringIO()
    output = Output(said, human=True, chatter=False)
    process = Supervised(
        "sleeper",
        command,
        is_ready,
        output,
        pid_file=tmp_path / "pid",
        stop_timeout=10,
        patience=replace(PATIENCE, poll=0.01, look=0.01, unfit=2, first_delay=0.01),
        fit=is_fit,
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(process.keep())
        await again.wait()
        await process.ready.wait()
        await process.stop(asyncio.Event())
    output.close()
    assert not fit
    assert said.getvalue().count("sleeper runs, but is of no use any more: restarting it.") == 1
    assert "sleeper is back" in said.getvalue()
