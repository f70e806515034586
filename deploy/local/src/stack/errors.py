"""The failures a person can do something about."""

from __future__ import annotations


class StackError(Exception):
    """An expected failure. Its text is one sentence that says what is wrong and what to do; no traceback is shown."""
