"""bench/results.json: one row per figure and peer, made of medians."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench.model import Better, Figure

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
EVIDENCE = FOLDER / "results"
"""For each benchmark: every sample, both sides' configurations, the machine."""


@dataclass(frozen=True, slots=True)
class Result:
    """How the subject compares with one peer in one figure."""

    name: str
    subject: str
    peer: str
    ratio: float
    """subject_median / peer_median: above 1 is good where higher is better, below 1 where lower is."""
    subject_median: float
    peer_median: float
    unit: str
    better: Better
    rounds: int


def compare(
    figure: Figure, subject: str, ours: Sequence[float], peer: str, theirs: Sequence[float]
) -> Result:
    """Make the row of one figure from all rounds of both sides."""
    subject_median, peer_median = median(ours), median(theirs)
    return Result(
        name=figure.name,
        subject=subject,
        peer=peer,
        ratio=round(subject_median / peer_median, 3),
        subject_median=round(subject_median, 3),
        peer_median=round(peer_median, 3),
        unit=figure.unit,
        better=figure.better,
        rounds=min(len(ours), len(theirs)),
    )


def load(path: Path = RESULTS) -> list[Result]:
    """Read the results there are."""
    return [Result(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merge(before: Iterable[Result], new: Sequence[Result]) -> list[Result]:
    """Replace every row of the figures that were measured anew; the others stay."""
    names = {result.name for result in new}
    return [*(result for result in before if result.name not in names), *new]


def save(results: Iterable[Result], path: Path = RESULTS) -> None:
    """Write them, one row on each line, in one step."""
    rows = ",\n".join(json.dumps(asdict(result), ensure_ascii=False) for result in results)
    draft = path.with_suffix(".new")
    draft.write_text(f"[\n{rows}\n]\n")
    draft.replace(path)
