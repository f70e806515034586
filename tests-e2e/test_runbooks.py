"""The commands of docs/events.md, copied as they stand."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from journey import Person, System

ROOT = Path(__file__).parent.parent
RUNBOOKS = re.findall(
    r"<!-- runbook -->\n```sh\n(.*?)```", (ROOT / "docs" / "events.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.mark.parametrize("runbook", RUNBOOKS, ids=lambda runbook: runbook.partition("events ")[2].split()[0])
async def test_the_commands_work_as_they_stand(embedded: System, ada: Person, runbook: str) -> None:
    await ada.offer()
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-eu", "-c", runbook),
        cwd=ROOT,
        env={**os.environ, **embedded.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await shell.communicate()

    assert shell.returncode == 0, output.decode()
    if "replay" in runbook:
        assert b"would be published" in output
        assert b"of which the stream had already" in output


def test_there_are_runbooks() -> None:
    assert len(RUNBOOKS) == 3
