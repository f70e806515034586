"""What is made of the results: lines for a terminal, the tables of docs/performance.md between two marks, and its plot."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import plot
from bench.model import Benchmark, Figure
from bench.results import Result, load
from bench.workbench import ROOT

DOCUMENT = ROOT / "docs/performance.md"
PLOT = ROOT / "docs/performance.svg"
BEGIN, END = "<!-- results: made by `make bench` -->", "<!-- end of results -->"


def write(benchmarks: Sequence[Benchmark], document: Path = DOCUMENT, picture: Path = PLOT) -> None:
    """Bring the document and its plot up to the results."""
    results = load()
    document.write_text(between(document.read_text(), markdown(benchmarks, results)))
    picture.write_text(plot.svg(results))


def plain_table(results: Iterable[Result]) -> str:
    """The rows as lines of a terminal."""
    return "\n".join(
        f"{result.name:<28} {number(result.subject_median):>9} / {result.peer:<20} {number(result.peer_median):>9} {result.unit:<14} "
        f"= {result.ratio:.2f} ({result.better} is better)"
        for result in results
    )


def markdown(benchmarks: Iterable[Benchmark], results: Sequence[Result]) -> str:
    """A table for each benchmark that has results, with the command that makes it."""
    sections = []
    for benchmark in benchmarks:
        names = {figure.name for figure in benchmark.figures}
        if rows := [result for result in results if result.name in names]:
            title = f"**{benchmark.about}**: `make bench NAME={benchmark.name}`"
            sections.append(f"{title}\n\n{_table(benchmark.figures, rows)}")
    return "\n\n".join(sections)


def _table(figures: Iterable[Figure], rows: Sequence[Result]) -> str:
    peers = list(dict.fromkeys(row.peer for row in rows))
    subjects = " / ".join(dict.fromkeys(row.subject for row in rows))
    lines = [f"| | unit | {subjects} | {' | '.join(peers)} |", f"|---|---|--:|{'--:|' * len(peers)}"]
    for figure in figures:
        mine = {row.peer: row for row in rows if row.name == figure.name}
        if mine:
            ours = number(next(iter(mine.values())).subject_median)
            cells = " | ".join(_cell(figure, mine.get(peer)) for peer in peers)
            lines.append(
                f"| {figure.about} (`{figure.name}`) | {figure.unit}, {figure.better} | {ours} | {cells} |"
            )
    return "\n".join(lines)


def _cell(figure: Figure, row: Result | None) -> str:
    if row is None:
        return "–"
    text = f"{number(row.peer_median)} (×{number(row.ratio)})"
    goal = figure.goals.get(row.peer)
    if goal is None:
        return text
    reached = row.ratio >= goal if row.better == "higher" else row.ratio <= goal
    sign = "≥" if row.better == "higher" else "≤"
    return f"{text}, goal {sign} {goal:g} {'reached' if reached else '**missed**'}"


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def between(document: str, made: str) -> str:
    """Replace what stands between the marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{after}"
