"""Bodies of 10 MiB: how fast they pass, at what cost, and whether the gateway holds any of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Party
from bench.peers import envoy
from bench.system import Server, System
from bench.tools import NGINX, WRK
from bench.workbench import Workbench

Direction = Literal["up", "down"]

CONNECTIONS = 4
MIB = 2**20
LEAST_GROWTH = 0.1
"""MiB; a smaller growth counts as this much, for ratios to mean something."""


@contextmanager
def _parties(workbench: Workbench, direction: Direction) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    tokens = system.tokens()
    limit = f"body_limit = {2 * standin.HUGE_BYTES}"
    gateway = system.start_gateway(routes=system.routes('prefix = "/v1/items"', limit))
    servers = [gateway, envoy.start(system, upstream)]
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    if direction == "down":
        client = wrk.script(workbench, "down", tokens=tokens, paths=[standin.HUGE])
    else:
        size = standin.HUGE_BYTES
        client = wrk.script(workbench, "up", tokens=tokens[:1], paths=[standin.SINK], body_bytes=size)
    yield [
        Party(
            server.name,
            partial(_measure, workbench, f"body_10mib_{direction}", server, client),
            server.configuration,
            server.process,
        )
        for server in servers
    ]


def _measure(workbench: Workbench, name: str, server: Server, client: Path) -> Mapping[str, float]:
    before = server.process.usage()
    server.process.forget_peak()
    answered = wrk.run(workbench, server, client, connections=CONNECTIONS)
    mib = answered.requests * standin.HUGE_BYTES / MIB
    return {
        name: mib / answered.seconds,
        f"{name}_cpu": (server.process.usage().cpu - before.cpu) / mib * 1e6,
        f"{name}_rss_growth": max(server.process.peak_rss() - before.rss, LEAST_GROWTH),
    }


def _benchmark(direction: Direction, about: str) -> Benchmark:
    name = f"body_10mib_{direction}"
    return Benchmark(
        name,
        f"bodies of 10 MiB {about} the service, 4 connections",
        (
            Figure(name, "MiB/s", "higher", "passed", goals={"envoy": 1.0}),
            Figure(f"{name}_cpu", "µs/MiB", "lower", "CPU time of the same"),
            Figure(
                f"{name}_rss_growth",
                "MiB",
                "lower",
                "peak of resident memory above that before; ours is to be 2 MiB at most",
            ),
        ),
        lambda workbench: _parties(workbench, direction),
        needs=(WRK, NGINX),
    )


BENCHMARKS = (_benchmark("up", "to"), _benchmark("down", "from"))
