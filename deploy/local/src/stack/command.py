"""What it takes to start a process: arguments, environment, folder, account, and what happens when its parent dies."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Self, TypedDict

PR_SET_PDEATHSIG = 1  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Account:
    """An operating-system account, as the password database knows it."""

    name: str
    uid: int
    gid: int


class SpawnOptions(TypedDict, total=False):
    """Keyword arguments that subprocess.Popen and asyncio.create_subprocess_exec both understand."""

    cwd: Path
    env: Mapping[str, str]
    start_new_session: bool
    preexec_fn: Callable[[], None]
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Command:
    """A process that can be started; `env` is its whole environment, nothing is inherited."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    account: Account | None = None
    """Whom to run as; None means the caller. Only root may name another account."""
    orphan_signal: signal.Signals = signal.SIGTERM
    """What the kernel sends when the starting thread dies (Linux only, prctl(2) PR_SET_PDEATHSIG)."""

    def marked(self, **variables: str) -> Self:
        """The same command with `variables` added to its environment."""
        return replace(self, env={**self.env, **variables})

    def options(self) -> SpawnOptions:
        """How to start it: in a session of its own, so that a Ctrl-C at the terminal reaches the supervisor only."""
        options: SpawnOptions = {
            "cwd": self.cwd,
            "env": self.env,
            "start_new_session": True,
            "preexec_fn": _bind_to_parent(os.getpid(), self.orphan_signal),
        }
        if self.account is not None:
            options |= {"user": self.account.uid, "group": self.account.gid, "extra_groups": []}
        return options


def spawn(
    command: Command, *, stdout: IO[bytes] | int | None = None, stderr: IO[bytes] | int | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` without waiting for it; the caller owns the process. OSError when it cannot be started."""
    return subprocess.Popen(  # noqa: S603 - the arguments are a list of ours, no shell reads them
        command.argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, **command.options()
    )


def _bind_to_parent(parent: int, orphan_signal: signal.Signals) -> Callable[[], None]:
    """A function for the moment between fork and exec that ties the child's life to its parent's.

    It runs after the change of account, which would clear the setting.
    """

    def bind() -> None:
        if _libc is None:
            return
        _libc.prctl(PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the kernel knew of the bond
            os._exit(1)

    return bind
