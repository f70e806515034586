"""Which account a server runs as, and whether that account can reach a path.

PostgreSQL refuses to run as root, so root runs it as an unprivileged account. A clone under root's own home folder (mode
0700) is closed to that account; what PostgreSQL needs then lives under SYSTEM_DIR instead.
"""

import os
import pwd
import stat
from pathlib import Path

from stack.command import Account
from stack.errors import StackError

SYSTEM_DIR = Path("/var/lib/tollhouse")
"""Where root keeps what an unprivileged account must reach and cannot reach in the clone."""

CANDIDATES = ("postgres", "nobody")


def unprivileged_account() -> Account | None:
    """The account PostgreSQL runs as: None (the caller's own) unless the caller is root."""
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise StackError(
        "PostgreSQL refuses to run as root and there is no account named postgres or nobody: add one, or run as an ordinary user."
    )


def can_enter(path: Path, account: Account | None) -> bool:
    """Whether `account` (with no other group than its own) may search every folder down to `path`, `path` included."""
    if account is None:
        return True
    path = path.resolve()
    return all(_may_search(folder.stat(), account) for folder in (path, *path.parents))


def _may_search(status: os.stat_result, account: Account) -> bool:
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == account.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)
