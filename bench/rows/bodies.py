"""Bodies of 10 MiB: how fast they pass, and whether the gateway holds any of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Party
from bench.peers import envoy
from bench.system import Server, System
from bench.tools import NGINX, WRK
from bench.workbench import Workbench

CONNECTIONS = 4
MIB = 2**20
LEAST_GROWTH = 0.1
"""MiB; a smaller growth counts as this much, for ratios to mean something."""


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    tokens = system.tokens()
    gateway = system.start_gateway(
        routes=system.routes('prefix = "/v1/items"', f"body_limit = {2 * standin.HUGE_BYTES}")
    )
    servers = [gateway, envoy.start(system, upstream)]
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    down = wrk.script(workbench, "down", tokens=tokens, paths=[standin.HUGE])
    up = wrk.script(workbench, "up", tokens=tokens[:1], paths=[standin.SINK], body_bytes=standin.HUGE_BYTES)
    yield [
        Party(
            server.name, partial(_measure, workbench, server, up, down), server.configuration, server.process
        )
        for server in servers
    ]


def _measure(workbench: Workbench, server: Server, up: Path, down: Path) -> Mapping[str, float]:
    settled = server.process.usage().rss
    server.process.forget_peak()
    uploaded = wrk.run(workbench, server, up, connections=CONNECTIONS)
    downloaded = wrk.run(workbench, server, down, connections=CONNECTIONS)
    return {
        "body_10mib_up": uploaded.rate * standin.HUGE_BYTES / MIB,
        "body_10mib_down": downloaded.rate * standin.HUGE_BYTES / MIB,
        "body_10mib_rss_growth": max(server.process.peak_rss() - settled, LEAST_GROWTH),
    }


BENCHMARKS = (
    Benchmark(
        "body_10mib",
        "bodies of 10 MiB both ways, 4 connections",
        (
            Figure("body_10mib_up", "MiB/s", "higher", "to the service", goals={"envoy": 1.0}),
            Figure("body_10mib_down", "MiB/s", "higher", "from the service", goals={"envoy": 1.0}),
            Figure(
                "body_10mib_rss_growth",
                "MiB",
                "lower",
                "peak of resident memory above that before, both ways",
            ),
        ),
        _parties,
        needs=(WRK, NGINX),
    ),
)
