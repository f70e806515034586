"""`python -m bench`: what `make bench` calls."""

import argparse
import signal
import sys
import time
from typing import NoReturn

from bench import documentation, runner
from bench.machine import Cores
from bench.model import BenchError, Benchmark
from bench.results import RESULTS, load, merge, save
from bench.rows import BENCHMARKS
from bench.tools import missing
from bench.workbench import StartError

SECONDS = 3.0

EPILOGUE = """\
Everybody is measured in turn, round after round; the results are the medians of all rounds and their ratio.
results.json gets the rows (those of other names stay), results/ what they were made of, docs/performance.md the tables.
The exit code is 0 when all was measured, 1 when something failed on the way, 2 when something is missing to start with.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m bench",
        description="Measure this system beside its peers.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a benchmark or one of its figures; none means all"
    )
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument(
        "--rounds", type=int, help="rounds of each benchmark (default: its own number, mostly 5)"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="seconds of a round (default: %(default)g)"
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="look into our process under the load, too (results/NAME.profile.txt)",
    )
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(_listed(benchmark) for benchmark in BENCHMARKS))
        return 0
    chosen = [b for b in BENCHMARKS if not options.names or any(map(b.gives, options.names))]
    for name in options.names:
        if not any(b.gives(name) for b in BENCHMARKS):
            return _refuse(f"There is no {name}; --list names what there is.")
    if lacking := missing(tool for benchmark in chosen for tool in benchmark.needs):
        return _refuse(lacking)
    cores = Cores.of_this_machine()
    if cores is None:
        return _refuse("It takes two cores: one that is measured, and one that makes the load.")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run_all(chosen, cores, options)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _run_all(chosen: list[Benchmark], cores: Cores, options: argparse.Namespace) -> int:
    began = time.monotonic()
    failed = []
    for benchmark in chosen:
        try:
            new = runner.run(
                benchmark,
                cores,
                rounds=options.rounds or benchmark.rounds,
                seconds=options.seconds,
                with_profile=options.profile,
            )
        except (BenchError, StartError) as error:
            print(f"\n{benchmark.name} failed: {error}", file=sys.stderr)
            failed.append(benchmark.name)
            continue
        save(merge(load(), new))
        print("\n" + documentation.plain_table(new), flush=True)
    documentation.write(BENCHMARKS)
    print(f"\n{RESULTS} is up to date after {time.monotonic() - began:.0f} s.")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _listed(benchmark: Benchmark) -> str:
    figures = "\n".join(
        f"    {figure.name:<32} {figure.about} [{figure.unit}]" for figure in benchmark.figures
    )
    return f"{benchmark.name}: {benchmark.about}\n{figures}"


def _refuse(why: str) -> int:
    print(why, file=sys.stderr)
    return 2


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
