"""A stack in a process of its own, with stand-ins for the services and real servers."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stack import postgres, settings
from stack.preflight import MARKER

PROGRAM = Path(__file__).with_name("standin_stack.py")
PATIENCE = 60.0
PORTS = (
    settings.GATEWAY,
    settings.USERS,
    settings.ITEMS,
    settings.NOTIFICATIONS,
    settings.METRICS,
    settings.NATS,
    settings.POSTGRES,
    *map(settings.metrics_of, (settings.USERS, settings.ITEMS, settings.NOTIFICATIONS)),
)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` holds, and return what it gave."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return value


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def marked(data_dir: Path) -> list[psutil.Process]:
    """The live processes of the stack on `data_dir`."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get(MARKER) == str(data_dir)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


class Stack:
    """One `python -m stack` after another on the same DATA_DIR and ports."""

    def __init__(self, data_dir: Path, folder: Path) -> None:
        self.data_dir = data_dir
        self.folder = folder
        offsets = (random.randrange(200, 16_000) for _ in range(1000))  # noqa: S311 - no secret
        self.offset = next(offset for offset in offsets if all(is_free(port + offset) for port in PORTS))
        self.lines: list[str] = []
        self.process: subprocess.Popen[str]
        self._reader: threading.Thread

    def start(self, *arguments: str, **variables: str) -> "Stack":
        """Start it with `variables` in its environment; its output goes to `lines`."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("USERS_", "GATEWAY_"))
        }
        env = inherited | {"DATA_DIR": str(self.data_dir), "PORT_OFFSET": str(self.offset)} | variables
        self.lines = []
        self.process = subprocess.Popen(  # noqa: S603 - ours
            [sys.executable, str(PROGRAM), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=env,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def ready(self) -> "Stack":
        """Wait until it says that it is."""
        self.says("ready.")
        return self

    def says(self, text: str) -> str:
        """Wait for a line with `text`, and return it."""

        def said() -> str | None:
            found = next((line for line in self.lines if text in line), None)
            assert found or self.process.poll() is None, f"ended without saying {text!r}:\n{self.output}"
            return found

        return str(eventually(said, f"{text!r} in\n{self.output}"))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.ends()

    def ends(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def pid(self, name: str) -> int:
        """What DATA_DIR/run says."""

        def written() -> int:
            path = self.data_dir / "run" / f"{name}.pid"
            return int(path.read_text() or 0) if path.exists() else 0

        return int(eventually(written, f"{name}.pid"))

    def knows(self, service: str) -> dict[str, Any]:
        """What a stand-in noted when it started."""
        return dict(json.loads((self.data_dir / "standin" / f"{service}.json").read_text()))

    def leaves_nothing(self) -> bool:
        """Whether no process, port or pid file is left."""
        return (
            not marked(self.data_dir)
            and all(is_free(port + self.offset) for port in PORTS)
            and not list((self.data_dir / "run").iterdir())
        )

    def _read(self, process: subprocess.Popen[str]) -> None:
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                self.lines.append(line.rstrip("\n"))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A folder that PostgreSQL's account can reach, also when the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="stack-")).resolve()
    folder.chmod(0o755)
    yield folder / "data"
    for process in marked(folder / "data"):
        process.kill()
    postgres.discard(folder / "data")
    shutil.rmtree(folder)


@pytest.fixture
def stack(data_dir: Path, tmp_path: Path) -> Iterator[Stack]:
    """A stack that has not been started; whatever the test leaves running is stopped."""
    one = Stack(data_dir, tmp_path)
    yield one
    if getattr(one, "process", None) is not None and one.process.poll() is None:
        one.stop()
