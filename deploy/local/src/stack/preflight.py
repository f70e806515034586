"""What is looked at before anything starts: the folder, its lock, leftovers of a killed run, the ports."""

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from stack.errors import StackError

MARKER = "TOLLHOUSE_STACK"
"""Environment variable of every process of a stack; its value is the DATA_DIR."""
LEFTOVER_PATIENCE = 5.0
"""Seconds leftovers get to end by themselves before they are killed."""

PORT_PATIENCE = 1.0
"""Seconds a busy port gets to become free."""
PORT_POLL = 0.05


@contextmanager
def claimed(data_dir: Path) -> Iterator[None]:
    """Make `data_dir` with its `run` folder, and hold it: one stack at a time uses it. StackError in every other case.

    The lock is on the folder itself, so nothing of it stays behind.
    """
    as_root = os.geteuid() == 0
    try:
        # The account that PostgreSQL runs as under root passes through to its own folder, but cannot look around.
        data_dir.mkdir(mode=0o711 if as_root else 0o700, parents=True, exist_ok=True)
        (data_dir / "run").mkdir(mode=0o700, exist_ok=True)
        _try_writing(data_dir)
        descriptor = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as failure:
        raise StackError(
            f"{data_dir} cannot be used: {failure.strerror}. Choose another folder by DATA_DIR."
        ) from None
    pid_file = data_dir / "run" / "stack.pid"
    if as_root and os.fstat(descriptor).st_uid != 0:
        os.close(descriptor)
        raise StackError(
            f"{data_dir} belongs to {data_dir.owner()}, and root would lock {data_dir.owner()} out of it: "
            "run as its owner, or choose another DATA_DIR."
        )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as failure:
        os.close(descriptor)
        if failure.errno not in {errno.EAGAIN, errno.EACCES}:
            raise StackError(
                f"{data_dir} cannot be locked: {failure.strerror}. Choose another DATA_DIR."
            ) from None
        raise StackError(
            f"Another stack{_owner(pid_file)} uses {data_dir}: stop it, or choose another DATA_DIR (and PORT_OFFSET)."
        ) from None
    try:
        pid_file.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with suppress(OSError):
            pid_file.unlink(missing_ok=True)
        os.close(descriptor)


def end_leftovers(data_dir: Path) -> int:
    """End every process of a killed run on `data_dir`, which the caller has claimed; returns how many there were."""
    left = list(_leftovers(data_dir))
    for process in left:
        with suppress(psutil.Error):
            # SIGINT is PostgreSQL's fast shutdown; it has its own way of ending its children.
            process.send_signal(signal.SIGINT if process.name() == "postgres" else signal.SIGTERM)
    _, stubborn = psutil.wait_procs(left, timeout=LEFTOVER_PATIENCE)
    for process in stubborn:
        with suppress(psutil.Error):
            process.kill()
    _, alive = psutil.wait_procs(stubborn, timeout=LEFTOVER_PATIENCE)
    if alive:
        names = ", ".join(f"{process.name()} (pid {process.pid})" for process in alive)
        raise StackError(f"Processes of an earlier run cannot be ended: {names}. End them, then try again.")
    for pid_file in (data_dir / "run").glob("*.pid"):
        if pid_file.name != "stack.pid":
            pid_file.unlink(missing_ok=True)
    return len(left)


def check_ports(wanted: Mapping[str, tuple[str, int]]) -> None:
    """StackError unless every (address, port) in `wanted`, by the name of its process, can be listened on."""
    deadline = time.monotonic() + PORT_PATIENCE
    for name, (host, port) in wanted.items():
        while (failure := _listening_fails(host, port)) is not None:
            # A process that was killed a moment ago can hold its port longer than it can be seen.
            if failure.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise StackError(_port_problem(name, host, port, failure)) from None
            time.sleep(PORT_POLL)


def _listening_fails(host: str, port: int) -> OSError | None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as failure:
        return failure
    return None


def _port_problem(name: str, host: str, port: int, failure: OSError) -> str:
    if failure.errno == errno.EADDRINUSE:
        way_out = "stop it, or move every port with PORT_OFFSET=100"
        option = {"gateway": "GATEWAY_PORT", "metrics": "GATEWAY_METRICS_PORT"}.get(name)
        if option is not None:
            way_out += f", or only this one with {option}"
        return f"Port {port} ({name}) is in use{_listener(port)}: {way_out}."
    if failure.errno == errno.EACCES:
        return f"Port {port} ({name}) needs root: choose one above 1023."
    return f"{host}:{port} ({name}) cannot be listened on: {failure.strerror or failure}."


def _listener(port: int) -> str:
    """` by nginx (pid 77)`, or nothing where the system does not tell."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _leftovers(data_dir: Path) -> Iterator[psutil.Process]:
    """Live processes that carry this folder in their environment, other than this one and those it came from."""
    family = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if (
                process.pid not in family
                and process.environ().get(MARKER) == str(data_dir)
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                yield process


def _owner(pid_file: Path) -> str:
    with suppress(OSError, ValueError):
        return f" (pid {int(pid_file.read_text())})"
    return ""


def _try_writing(data_dir: Path) -> None:
    """OSError on a folder or disk that takes no data, before any process meets it."""
    trial = data_dir / "trial"
    trial.write_bytes(bytes(4096))
    trial.unlink()
