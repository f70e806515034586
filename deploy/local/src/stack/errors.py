"""The failures a person can do something about."""

from typing import ClassVar


class StackError(Exception):
    """An expected failure of the setup. Its text is a sentence that says what is wrong and what to do, with no traceback."""

    exit_code: ClassVar[int] = 2


class StartFailed(StackError):
    """A process could not be brought up; the text names it and ends with its last lines."""

    exit_code: ClassVar[int] = 1
