"""What a proxy adds to a call when it has little to do: a tenth of what it could."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Party
from bench.peers import envoy
from bench.system import Server, System
from bench.tools import NGINX, WRK
from bench.workbench import Workbench

LOAD = 0.1
LEAST = 0.001
"""Milliseconds; what adds less is not told from nothing."""


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    tokens = system.tokens()
    servers = [system.start_gateway(), envoy.start(system, upstream)]
    client = wrk.script(workbench, "full", tokens=tokens, paths=[standin.SMALL])
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    full = min(wrk.run(workbench, server, client, connections=64).rate for server in servers)
    rate = full * LOAD
    yield [
        Party(
            server.name,
            partial(_measure, workbench, server, upstream.url, rate, tokens),
            f"{rate:.0f} requests/s, a tenth of what the slower one can do\n{server.configuration}",
            server.process,
        )
        for server in servers
    ]


def _measure(
    workbench: Workbench, server: Server, direct: str, rate: float, tokens: Sequence[str]
) -> Mapping[str, float]:
    plain = _pace(workbench, direct, rate, workbench.seconds / 4, tokens)
    through = _pace(workbench, server.url, rate, workbench.seconds * 3 / 4, tokens)
    return {
        "added_latency_p50": max(through["p50"] - plain["p50"], LEAST),
        "added_latency_p99": max(through["p99"] - plain["p50"], LEAST),
    }


def _pace(
    workbench: Workbench, url: str, rate: float, seconds: float, tokens: Sequence[str]
) -> Mapping[str, float]:
    argv = [
        sys.executable,
        "-m",
        "bench.pace",
        url.rpartition(":")[2],
        str(rate),
        str(seconds),
        standin.SMALL,
    ]
    report: dict[str, float] = json.loads(workbench.run(argv, timeout=seconds + 30, text="\n".join(tokens)))
    return report


BENCHMARKS = (
    Benchmark(
        "added_latency",
        "GET of 140 bytes with a token at 10 % load, compared with a direct call to the service in the same round",
        (
            Figure(
                "added_latency_p50",
                "ms",
                "lower",
                "median, less the median of a direct call",
                goals={"envoy": 1.0},
            ),
            Figure(
                "added_latency_p99",
                "ms",
                "lower",
                "99th percentile, less the median of a direct call",
                goals={"envoy": 1.0},
            ),
        ),
        _parties,
        needs=(WRK, NGINX),
        rounds=5,
    ),
)
