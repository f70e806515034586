"""The tables that are made of the results: on the terminal, and in docs/performance.md between two marks."""

from collections.abc import Iterable
from pathlib import Path

from bench.results import Result, load
from bench.workbench import ROOT

DOCUMENT = ROOT / "docs/performance.md"
BEGIN, END = "<!-- results: made by `make bench` -->", "<!-- end of results -->"


def plain_table(results: Iterable[Result]) -> str:
    """The rows as lines of a terminal."""
    return "\n".join(
        f"{result.name:<28} {number(result.subject_median):>9} / {result.peer:<20} {number(result.peer_median):>9} {result.unit:<12} "
        f"= {result.ratio:.2f} ({result.better} is better)"
        for result in results
    )


def markdown(results: Iterable[Result]) -> str:
    """The same as a Markdown table."""
    rows = [
        f"| `{result.name}` | {number(result.subject_median)} | {result.peer} {number(result.peer_median)} | {result.unit} "
        f"| **{result.ratio:.2f}** | {result.better} |"
        for result in results
    ]
    return "\n".join(["| figure | ours | peer | unit | ratio | better |", "|---|--:|--:|---|--:|---|", *rows])


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def between(document: str, made: str) -> str:
    """Replace what stands between the marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def write(document: Path = DOCUMENT) -> None:
    """Bring the document up to the results."""
    document.write_text(between(document.read_text(), markdown(load())))
