"""The Dockerfile, as far as it can be judged without building: `make test-images` builds and runs the images."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_builds_with_the_uv_that_made_the_lock() -> None:
    (locked,) = re.findall(
        r'^name = "uv"\nversion = "([\d.]+)"', (ROOT / "uv.lock").read_text(), re.MULTILINE
    )
    assert f"ARG UV_VERSION={locked}\n" in (ROOT / "Dockerfile").read_text()
