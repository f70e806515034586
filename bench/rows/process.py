"""A process by itself: how long it takes until it serves, and what it holds when nobody asks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from bench import checks, standin
from bench.model import Benchmark, Figure, Party
from bench.peers import envoy, node
from bench.system import Server, System
from bench.tools import NGINX, NODE, NPM
from bench.workbench import Workbench


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    token = system.issuer.token()
    starts: Mapping[str, Callable[[], Server]] = {
        "gateway": system.start_gateway,
        "envoy": lambda: envoy.start(system, upstream),
        "fastify": lambda: node.start_gateway(system, upstream, "fastify"),
    }
    running: dict[str, Server] = {}
    yield [
        Party(name, partial(_measure, name, start, token, running), "as for proxied_get_jwt")
        for name, start in starts.items()
    ]


def _measure(
    name: str, start: Callable[[], Server], token: str, running: dict[str, Server]
) -> Mapping[str, float]:
    if name in running:  # it ran until now, so that the harness knows whose time it took
        running.pop(name).process.stop()
    began = time.monotonic()
    server = running[name] = start()
    checks.same_answer(server, standin.SMALL, token, standin.ITEM.encode())
    return {"start_to_ready": time.monotonic() - began, "idle_rss": server.process.usage().rss}


BENCHMARKS = (
    Benchmark(
        "start_to_ready",
        "one process, started until it has answered a request, on one core",
        (
            Figure(
                "start_to_ready",
                "s",
                "lower",
                "from its start to its first answer; ours is to take at most 1.5 s",
            ),
            Figure(
                "idle_rss", "MiB", "lower", "memory resident then; ours is to hold at most 80 MB (76 MiB)"
            ),
        ),
        _parties,
        needs=(NGINX, NODE, NPM),
    ),
)
