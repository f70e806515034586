"""What a newcomer is told when the machine lacks something: one sentence, before anything else is done."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bootstrap.sh"
ROOT = Path(__file__).parents[3]

Bootstrap = Callable[..., tuple[int, str]]


@pytest.fixture
def bootstrap(tmp_path: Path) -> Bootstrap:
    """Run the script in a folder of its own, with a PATH that has only the basic tools and what the test puts there."""
    clone, tools = tmp_path / "clone", tmp_path / "tools"
    clone.mkdir()
    tools.mkdir()
    shutil.copy(ROOT / "uv.lock", clone)
    for tool in ("id", "grep", "tail", "awk", "cut", "touch", "sh", "pwd", "true"):
        (tools / tool).symlink_to(str(shutil.which(tool)))

    def run(**variables: str) -> tuple[int, str]:
        result = subprocess.run(  # noqa: S603 - ours
            [str(shutil.which("sh")), str(SCRIPT)],
            cwd=clone,
            env={"PATH": str(tools), "HOME": str(tmp_path), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return result.returncode, result.stdout.strip()

    return run


def fake_python(tmp_path: Path, name: str, version: str, *, modules: bool = True) -> Path:
    """A program that passes for a Python of `version`."""
    path = tmp_path / "tools" / name
    suitable = tuple(map(int, version.split("."))) >= (3, 11)
    path.write_text(
        f"""#!/bin/sh
case "$*" in
  --version) echo "Python {version}" ;;
  *version_info*) exit {0 if suitable else 1} ;;
  *ensurepip*) exit {0 if modules else 1} ;;
  *) exit 1 ;;
esac
"""
    )
    path.chmod(0o755)
    return path


def test_no_python(bootstrap: Bootstrap) -> None:
    assert bootstrap() == (
        2,
        "make: there is no Python: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3.",
    )


def test_too_old_a_python(bootstrap: Bootstrap, tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.9.2")
    code, said = bootstrap()
    assert code == 2
    assert said.startswith("make: Python 3.9.2 is too old: install Python 3.11 or newer")


def test_a_suitable_python_beside_an_old_one_is_found(bootstrap: Bootstrap, tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.9.2")
    fake_python(tmp_path, "python3.12", "3.12.1")
    assert "Making .venv with Python 3.12.1" in bootstrap()[1]


def test_a_named_python_that_does_not_exist_or_is_too_old(bootstrap: Bootstrap, tmp_path: Path) -> None:
    assert bootstrap(PYTHON="/nowhere/python") == (2, "make: there is no Python at PYTHON=/nowhere/python.")
    old = fake_python(tmp_path, "old", "3.8.0")
    assert bootstrap(PYTHON=str(old)) == (
        2,
        f"make: PYTHON={old} is Python 3.8.0, and Tollhouse needs 3.11 or newer.",
    )


def test_a_python_without_venv(bootstrap: Bootstrap, tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.11.2", modules=False)
    code, said = bootstrap()
    assert code == 2
    assert said == (
        "make: Python 3.11.2 lacks the venv module: install it (on Debian and Ubuntu: apt install python3-venv)."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(bootstrap: Bootstrap, tmp_path: Path) -> None:
    (tmp_path / "clone").chmod(0o500)
    code, said = bootstrap()
    (tmp_path / "clone").chmod(0o700)
    assert code == 2
    assert said.startswith(f"make: {tmp_path / 'clone'} is read-only for ")


def test_an_unreachable_index(bootstrap: Bootstrap, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    code, said = bootstrap(
        PYTHON=sys.executable, PIP_INDEX_URL=nowhere, PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0"
    )
    assert code == 2
    assert said.splitlines()[-1].startswith(
        "make: the package index cannot be reached or is empty; check the network"
    )
    assert not (tmp_path / "clone" / ".venv" / ".synced").exists()


def test_the_script_is_plain_posix_shell() -> None:
    subprocess.run([str(shutil.which("sh")), "-n", str(SCRIPT)], check=True)  # noqa: S603 - ours
    assert not [word for word in ("[[", "local ", "function ", "pipefail") if word in SCRIPT.read_text()]


def test_make_alone_lists_every_target() -> None:
    shown = subprocess.run(  # noqa: S603 - ours
        [str(shutil.which("make"))], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    rules = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    (phony,) = [line for line in rules if line.startswith(".PHONY:")]
    for target in phony.split()[1:]:
        assert f"  make {target} " in shown
