"""Requests through the gateway and its peers, all on one core: as many a second as it takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Parties, Party
from bench.peers import envoy
from bench.system import Server, System
from bench.tools import NGINX, WRK
from bench.workbench import Workbench

CONNECTIONS = 64


@contextmanager
def _get_jwt(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    tokens = system.tokens()
    gateway = system.start_gateway()
    client = wrk.script(workbench, "get", tokens=tokens, paths=[standin.SMALL])
    servers = [gateway, envoy.start(system, upstream)]
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    yield [_party(workbench, server, client, CONNECTIONS, _get_jwt_figures) for server in servers]
    checks.gateway_is_strict(gateway, system, upstream)


def _get_jwt_figures(server: Server, answered: wrk.Answered, cpu: float) -> Mapping[str, float]:
    return {
        "proxied_get_jwt": answered.rate,
        "proxied_get_jwt_cpu": cpu / answered.requests * 1e6,
        "proxied_get_jwt_rss": server.process.usage().rss,
    }


def _party(
    workbench: Workbench,
    server: Server,
    client: Path,
    connections: int,
    figures: Callable[[Server, wrk.Answered, float], Mapping[str, float]],
) -> Party:
    def measure() -> Mapping[str, float]:
        before = server.process.usage().cpu
        answered = wrk.run(workbench, server.url, client, connections=connections)
        return figures(server, answered, server.process.usage().cpu - before)

    return Party(server.name, measure, server.configuration)


def _parties(workbench: Workbench) -> Parties:
    return _get_jwt(workbench)


BENCHMARKS = (
    Benchmark(
        "proxied_get_jwt",
        "GET of 140 bytes with a token, 64 connections, one core each",
        (
            Figure("proxied_get_jwt", "requests/s", "higher", "GET of 140 bytes with a token"),
            Figure("proxied_get_jwt_cpu", "µs/request", "lower", "CPU time of the same"),
            Figure("proxied_get_jwt_rss", "MiB", "lower", "memory resident under that load"),
        ),
        _parties,
        needs=(WRK, NGINX),
    ),
)
