"""Runs benchmarks: everybody in turn, round after round, and everything that was seen is kept."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import machine
from bench.model import BenchError, Benchmark, Party
from bench.profiling import profile
from bench.results import EVIDENCE, Result, compare
from bench.workbench import ROOT, Workbench

WARM_UP_SECONDS = 2.0
"""A first round of everybody, which does not count."""

DISTURBED = 0.05
"""Where others took more of the measured core than this, a party is measured again …"""
REPEATS = 2
"""… so often in one benchmark, lest a busy machine make it endless; the least disturbed measurement counts."""

STRANGERS = "others"
"""Beside the figures of a sample: the share of the measured core that other processes took."""

Samples = Mapping[str, Mapping[str, list[float]]]
"""By party and figure, a value of each round."""


def run(
    benchmark: Benchmark, cores: machine.Cores, *, rounds: int, seconds: float, with_profile: bool = False
) -> list[Result]:
    """Run one benchmark and keep its evidence; `with_profile` looks into the subject afterwards.

    Raises:
        BenchError: what was measured is worth nothing.
        StartError: somebody did not come up.
    """
    print(f"\n{benchmark.name}: {benchmark.about}", flush=True)
    logs = EVIDENCE / "logs" / benchmark.name
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="tollhouse-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another account when the benchmark runs as root
        with (
            Workbench(cores, folder, logs, seconds=seconds) as workbench,
            benchmark.parties(workbench) as parties,
        ):
            for party in parties:
                print(f"\n--- {party.name}\n{_neutral(party.configuration, folder).strip()}", flush=True)
            print()
            samples = measure(benchmark, parties, workbench, rounds)
            if with_profile and parties[0].process is not None:
                _keep_profile(benchmark, parties[0], workbench)
            evidence = {
                "benchmark": benchmark.name,
                "about": benchmark.about,
                "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": _commit(),
                "machine": machine.describe(),
                "cores": {"measured": sorted(cores.subject), "load": sorted(cores.load)},
                "seconds": seconds,
                "parties": {
                    party.name: {
                        "configuration": _neutral(party.configuration, folder),
                        "samples": samples[party.name],
                    }
                    for party in parties
                },
            }
    (EVIDENCE / f"{benchmark.name}.json").write_text(
        json.dumps(evidence, indent=1, ensure_ascii=False) + "\n"
    )
    return compared(benchmark, [party.name for party in parties], samples)


def _keep_profile(benchmark: Benchmark, subject: Party, workbench: Workbench) -> None:
    try:
        (EVIDENCE / f"{benchmark.name}.profile.txt").write_text(profile(subject, workbench))
    except BenchError as error:  # what was measured is worth keeping all the same
        print(f"There is no profile: {error}", flush=True)


def measure(
    benchmark: Benchmark, parties: Sequence[Party], workbench: Workbench, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Measure all parties `rounds` times, each round in the reverse order of the one before, so that a drift of the machine hits all."""
    seconds, workbench.seconds = workbench.seconds, WARM_UP_SECONDS
    for party in parties:
        party.measure()
    workbench.seconds = seconds
    samples: dict[str, dict[str, list[float]]] = {party.name: {} for party in parties}
    first = benchmark.figures[0]
    spare = REPEATS
    began = time.monotonic()
    for number in range(rounds):
        for party in parties if number % 2 == 0 else reversed(parties):
            tries = _measure_in_peace(party, workbench.cores.subject, spare)
            spare -= len(tries) - 1
            values, strange = min(tries, key=lambda one: one[1])
            for figure, value in (*values.items(), (STRANGERS, strange)):
                samples[party.name].setdefault(figure, []).append(value)
            shown = f"{values[first.name]:>12,.2f} {first.unit}" if first.name in values else ""
            note = f"  (others took {strange:.0%} of the core)" if strange > DISTURBED else ""
            print(
                f"{time.monotonic() - began:5.0f} s  round {number + 1}/{rounds}  {party.name:<20}{shown}{note}",
                flush=True,
            )
    return samples


def _measure_in_peace(
    party: Party, cores: frozenset[int], repeats: int
) -> list[tuple[Mapping[str, float], float]]:
    tries = []
    for _ in range(1 + repeats):
        strangers = machine.Strangers(cores)
        values = party.measure()
        tries.append((values, strangers.share()))
        if tries[-1][1] <= DISTURBED:
            break
    return tries


def compared(benchmark: Benchmark, parties: Sequence[str], samples: Samples) -> list[Result]:
    """Make the rows: the first party beside each other one, in every figure that both have."""
    subject, *peers = parties
    known = {STRANGERS, *(figure.name for figure in benchmark.figures)}
    if unknown := {name for party in parties for name in samples[party]} - known:
        raise BenchError(f"{benchmark.name} measured figures that it does not declare: {sorted(unknown)}")
    return [
        compare(figure, subject, samples[subject][figure.name], peer, samples[peer][figure.name])
        for figure in benchmark.figures
        for peer in peers
        if figure.name in samples[subject] and figure.name in samples[peer]
    ]


def _neutral(configuration: str, folder: Path) -> str:
    return configuration.replace(str(folder), "$FOLDER").replace(str(ROOT), "$REPOSITORY")


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run(  # noqa: S603 - our own arguments, no shell reads them
        [git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    return done.stdout.strip() or "unknown"
