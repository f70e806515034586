"""Passwords and keys of this stack: made once, kept in `DATA_DIR/credentials.json` with mode 0600."""

import base64
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from stack.errors import StackError

Maker = Callable[[], str]


def password() -> str:
    """192 random bits that need no quoting in URLs and configuration files."""
    return secrets.token_urlsafe(24)


def encryption_key() -> str:
    """32 random bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def load(path: Path, wanted: Mapping[str, Maker]) -> dict[str, str]:
    """Every credential in `wanted`, read from `path`; what is missing there is made and written, the rest stays as it is.

    StackError: the file is not what this function wrote.
    """
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        stored = {}
    except ValueError:
        stored = None
    if not isinstance(stored, dict) or not all(isinstance(value, str) for value in stored.values()):
        raise StackError(f"{path} is damaged: restore it, or delete {path.parent} to start from nothing.")
    missing = {name: make() for name, make in wanted.items() if name not in stored}
    if missing:
        stored |= missing
        _write(path, json.dumps(stored, indent=2))
    return {name: stored[name] for name in wanted}


def _write(path: Path, text: str) -> None:
    """Replace `path` in one step: a crash leaves the old passwords or the new ones, never half a file."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
