"""Every operation of the merged document keeps what the document promises, whatever a client sends (Schemathesis).

`make fuzz` runs the same with many more cases and a seed that it prints.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from journey import ADMIN_EMAIL, ADMIN_PASSWORD, System
from schemathesis_hooks import ENDS_THE_SESSION_IN_USE

CASES = os.environ.get("FUZZ_CASES", "20")
"""Per operation."""
SEED = os.environ.get("FUZZ_SEED") or "1"
HERE = Path(__file__).parent
FUZZING = "FUZZ_CASES" in os.environ

pytestmark = pytest.mark.timeout(0 if FUZZING else 300)


async def test_with_a_token(patient_system: System) -> None:
    await _conforms(
        patient_system,
        *(part for name in ENDS_THE_SESSION_IN_USE for part in ("--exclude-operation-id", name)),
        CONFORMANCE_URL=patient_system.url,
        CONFORMANCE_EMAIL=ADMIN_EMAIL,
        CONFORMANCE_PASSWORD=ADMIN_PASSWORD,
    )


async def test_without_a_token(patient_system: System) -> None:
    await _conforms(patient_system)


async def _conforms(system: System, *arguments: str, **environment: str) -> None:
    seed = str(random.randrange(2**32)) if SEED == "random" else SEED  # noqa: S311
    print(f"seed {seed}, {CASES} cases per operation")  # noqa: T201  # who wants to see it again needs it
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--no-color",
        "run",
        f"{system.url}/openapi.json",
        "--checks=all",
        f"--max-examples={CASES}",
        f"--seed={seed}",
        *arguments,
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE), **environment},
        stdout=None if FUZZING else asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, (output or b"").decode()
