"""The arithmetic of the harness, and that what is committed is what it says."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import cast
from xml.etree import ElementTree as ET

import pytest
from bench import documentation, plot, results, runner
from bench.machine import Cores, Strangers
from bench.model import BenchError, Benchmark, Figure, Party
from bench.results import Result, compare, load, merge, save
from bench.rows import BENCHMARKS
from bench.workbench import Workbench

RATE = Figure("rate", "requests/s", "higher", "how many")
DELAY = Figure("delay", "ms", "lower", "how long")


def row(name: str, peer: str, ratio: float = 1.0) -> Result:
    return Result(name, "gateway", peer, ratio, ratio, 1.0, "requests/s", "higher", 3)


def test_a_row_compares_medians_whatever_single_rounds_say() -> None:
    result = compare(RATE, "gateway", [30.0, 10.0, 1000.0], "envoy", [20.0, 1.0, 21.0])
    assert result == Result("rate", "gateway", "envoy", 1.5, 30.0, 20.0, "requests/s", "higher", 3)


def test_measuring_one_figure_again_leaves_the_others() -> None:
    before = [row("a", "envoy"), row("a", "nginx"), row("b", "envoy")]
    assert merge(before, [row("a", "envoy", 2.0)]) == [row("b", "envoy"), row("a", "envoy", 2.0)]


def test_results_survive_the_file(tmp_path: Path) -> None:
    rows = [row("a", "envoy"), row("b", "nginx", 0.5)]
    save(rows, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == rows
    assert load(tmp_path / "none.json") == []


class Bench:
    """Stands in for a workbench: only its seconds matter here."""

    seconds = 4.0
    cores = Cores(frozenset({0}), frozenset())


def test_everybody_is_measured_in_turn_and_the_first_round_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[tuple[str, float]] = []
    bench = Bench()
    monkeypatch.setattr(Strangers, "share", lambda _: 0.0)

    def party(name: str) -> Party:
        def measure() -> Mapping[str, float]:
            order.append((name, bench.seconds))
            return {"rate": float(len(order))}

        return Party(name, measure)

    benchmark = Benchmark("b", "", (RATE, DELAY), lambda _: _never())
    samples = runner.measure(benchmark, [party("a"), party("b")], cast("Workbench", bench), 2)
    assert order == [("a", 2.0), ("b", 2.0), ("a", 4.0), ("b", 4.0), ("b", 4.0), ("a", 4.0)]
    assert {name: party["rate"] for name, party in samples.items()} == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_disturbed_rounds_are_measured_again_within_a_bound_and_the_quietest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [0.5, 0.01, 0.4, 0.35, 0.9, 0.0]
    monkeypatch.setattr(Strangers, "share", lambda _: shares.pop(0))
    values = iter(range(100))
    party = Party("a", lambda: {"rate": float(next(values))})
    benchmark = Benchmark("b", "", (RATE,), lambda _: _never())
    samples = runner.measure(benchmark, [party], cast("Workbench", Bench()), 3)
    assert samples == {"a": {"rate": [2.0, 4.0, 5.0], "others": [0.01, 0.35, 0.9]}}


def test_strangers_are_those_that_this_process_did_not_start() -> None:
    strangers = Strangers(frozenset({0}))
    assert 0.0 <= strangers.share() <= 1.0


class _never:  # noqa: N801
    def __enter__(self) -> list[Party]:
        raise AssertionError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise AssertionError


def test_figures_that_only_one_side_has_make_no_row() -> None:
    benchmark = Benchmark("b", "", (RATE, DELAY), lambda _: _never())
    samples = {"gateway": {"rate": [1.0], "delay": [2.0]}, "a": {"rate": [2.0]}, "b": {"delay": [1.0]}}
    rows = runner.compared(benchmark, ["gateway", "a", "b"], samples)
    assert [(result.name, result.peer, result.ratio) for result in rows] == [
        ("rate", "a", 0.5),
        ("delay", "b", 2.0),
    ]
    with pytest.raises(BenchError, match="other"):
        runner.compared(benchmark, ["gateway"], {"gateway": {"other": [1.0]}})


def test_names_of_benchmarks_and_figures_are_unambiguous() -> None:
    names = [figure.name for benchmark in BENCHMARKS for figure in benchmark.figures]
    assert len(names) == len(set(names))
    assert len({benchmark.name for benchmark in BENCHMARKS}) == len(BENCHMARKS)
    for benchmark in BENCHMARKS:
        assert [b.name for b in BENCHMARKS if b.gives(benchmark.name)] == [benchmark.name]


def test_committed_results_have_the_documented_shape() -> None:
    rows = json.loads(results.RESULTS.read_text())
    assert rows
    assert len({(row["name"], row["peer"]) for row in rows}) == len(rows)
    known = {figure.name: figure for benchmark in BENCHMARKS for figure in benchmark.figures}
    for one in rows:
        assert list(one) == [field.name for field in fields(Result)]
        figure = known[one["name"]]
        assert (one["unit"], one["better"]) == (figure.unit, figure.better)
        assert one["rounds"] >= 3
        assert one["ratio"] == pytest.approx(one["subject_median"] / one["peer_median"], rel=0.01, abs=0.001)


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_committed_rows_are_made_of_committed_samples(benchmark: Benchmark) -> None:
    path = results.EVIDENCE / f"{benchmark.name}.json"
    if not path.exists():
        assert not [
            result for result in load() if any(result.name == figure.name for figure in benchmark.figures)
        ]
        return
    evidence = json.loads(path.read_text())
    samples = {name: party["samples"] for name, party in evidence["parties"].items()}
    made = runner.compared(benchmark, list(samples), samples)
    assert made == [result for result in load() if result.name in {one.name for one in made}]
    assert all(len(values) >= 3 for party in samples.values() for values in party.values())


def test_documentation_says_what_the_results_say() -> None:
    document, made = documentation.DOCUMENT.read_text(), documentation.markdown(BENCHMARKS, load())
    assert made in document
    assert document == documentation.between(document, made)
    assert documentation.PLOT.read_text() == plot.svg(load())


def test_a_goal_that_is_missed_is_called_missed() -> None:
    figure = Figure("rate", "requests/s", "higher", "how many", goals={"envoy": 1.0, "nginx": 0.5})
    benchmark = Benchmark("b", "about b", (figure,), lambda _: _never())
    table = documentation.markdown([benchmark], [row("rate", "envoy", 0.99), row("rate", "nginx", 0.5)])
    assert "(×0.99), goal ≥ 1 **missed**" in table
    assert "(×0.5), goal ≥ 0.5 reached" in table
    assert "make bench NAME=b" in table
    late = replace(row("delay", "envoy", 1.5), better="lower")
    delay = Benchmark(
        "d", "", (Figure("delay", "ms", "lower", "how long", goals={"envoy": 1.0}),), lambda _: _never()
    )
    assert "goal ≤ 1 **missed**" in documentation.markdown([delay], [late])


def test_plot_shows_better_to_the_right_whichever_way_a_figure_counts() -> None:
    lower = replace(row("delay", "envoy", 0.5), better="lower")
    drawn = plot.svg([row("proxied_get_jwt", "envoy", 0.5), lower])
    ET.fromstring(drawn)  # noqa: S314 - it is our own text, and must be XML
    assert ">2.00<" in drawn
    assert ">0.50<" in drawn
