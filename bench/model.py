"""What a benchmark is: figures, and parties that are measured in turn."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

from bench.tools import Tool
from bench.workbench import Process, Workbench

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that is measured: it becomes one row of the results for each peer that has it."""

    name: str
    unit: str
    better: Better
    about: str
    """What it means, as a line of the documentation."""
    goals: Mapping[str, float] = field(default_factory=dict)
    """By peer: the ratio (ours / theirs) that is to be reached."""


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a comparison, set up and warm."""

    name: str
    measure: Callable[[], Mapping[str, float]]
    """One round of a few seconds: a value for each figure that this party has."""
    configuration: str = ""
    """How it was started and configured, for the reader."""
    process: Process | None = None
    """What `--profile` looks into."""


Parties = AbstractContextManager[Sequence[Party]]
"""The subject first, then its peers. Whatever they need runs until the block ends."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One comparison: `parties` sets it up on a workbench, the harness measures them in turn."""

    name: str
    about: str
    figures: tuple[Figure, ...]
    parties: Callable[[Workbench], Parties]
    needs: tuple[Tool, ...] = ()
    rounds: int = 5

    def gives(self, name: str) -> bool:
        """Whether `name` asks for this benchmark: its own name, or that of a figure."""
        return name == self.name or any(name == figure.name for figure in self.figures)


class BenchError(Exception):
    """The benchmark cannot be run, or what it measured is worth nothing; the text says why."""
