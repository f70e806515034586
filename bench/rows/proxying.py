"""Requests through the gateway and its peers, each on one core: as many a second as it takes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Party
from bench.peers import envoy, nginx, node, python
from bench.standin import StandIn
from bench.system import Server, System
from bench.tools import NGINX, NODE, NPM, WRK
from bench.workbench import Workbench

START: Mapping[str, Callable[[System, StandIn], Server]] = {
    "envoy": envoy.start,
    "fastify": partial(node.start_gateway, name="fastify"),
    "express": partial(node.start_gateway, name="express"),
    "fastapi-httpx": python.start_fastapi_httpx,
    "nginx": nginx.start,
}
"""How each peer comes up before the same service."""

QUEUE = 1024
"""With 1 000 connections that all wait for an answer, those beyond the shipped queue (256) would get a 503, as they should; Envoy's
limits are out of the way, too."""
MAY_TIME_OUT = frozenset({"fastapi-httpx"})
"""Peers that leave requests unanswered under load; those that they do answer are counted."""


@contextmanager
def through(
    workbench: Workbench,
    name: str,
    peers: Sequence[str],
    *,
    path: str = standin.SMALL,
    body_bytes: int | None = None,
    connections: int = 64,
    with_cost: bool = False,
) -> Iterator[Sequence[Party]]:
    """Set up the gateway and `peers`, and a client that loads them; `name` is the figure."""
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    queue = system.routes("[upstreams.items]", f"max_queue = {QUEUE}") if connections > QUEUE // 4 else None
    gateway = system.start_gateway(routes=queue)
    servers = [gateway, *(START[peer](system, upstream) for peer in peers)]
    tokens = system.tokens()
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    client = wrk.script(workbench, name, tokens=tokens, paths=[path], body_bytes=body_bytes)
    yield [
        Party(
            server.name,
            partial(_measure, workbench, name, server, client, connections, with_cost),
            server.configuration,
            server.process,
        )
        for server in servers
    ]
    checks.gateway_is_strict(gateway, system, upstream)


def _measure(
    workbench: Workbench, name: str, server: Server, client: Path, connections: int, with_cost: bool
) -> Mapping[str, float]:
    before = server.process.usage().cpu
    answered = wrk.run(
        workbench, server, client, connections=connections, may_time_out=server.name in MAY_TIME_OUT
    )
    usage = server.process.usage()
    if not with_cost:
        return {name: answered.rate}
    return {
        name: answered.rate,
        f"{name}_cpu": (usage.cpu - before) / answered.requests * 1e6,
        f"{name}_rss": usage.rss,
    }


def _benchmark(
    name: str,
    about: str,
    peers: Sequence[str],
    *,
    path: str = standin.SMALL,
    body_bytes: int | None = None,
    connections: int = 64,
) -> Benchmark:
    return Benchmark(
        name,
        about,
        (Figure(name, "requests/s", "higher", "requests answered", goals={"envoy": 1.0}),),
        lambda workbench: through(
            workbench, name, peers, path=path, body_bytes=body_bytes, connections=connections
        ),
        needs=(WRK, NGINX, NODE, NPM) if "fastify" in peers else (WRK, NGINX),
    )


BENCHMARKS = (
    Benchmark(
        "proxied_get_jwt",
        "GET of 140 bytes with a token, 64 connections",
        (
            Figure(
                "proxied_get_jwt",
                "requests/s",
                "higher",
                "requests answered",
                goals={"envoy": 1.0, "fastify": 3.0, "express": 10.0, "fastapi-httpx": 40.0},
            ),
            Figure("proxied_get_jwt_cpu", "µs/request", "lower", "CPU time of such a request"),
            Figure("proxied_get_jwt_rss", "MiB", "lower", "memory resident under that load"),
        ),
        lambda workbench: through(workbench, "proxied_get_jwt", list(START), with_cost=True),
        needs=(WRK, NGINX, NODE, NPM),
    ),
    _benchmark(
        "proxied_get_1000_connections",
        "GET of 140 bytes with a token, 1 000 connections",
        ("envoy", "fastify", "nginx"),
        connections=1000,
    ),
    _benchmark(
        "proxied_post_1k",
        "POST of 1 KiB with a token, 64 connections",
        ("envoy", "fastify", "nginx"),
        path=standin.SINK,
        body_bytes=1024,
    ),
    _benchmark(
        "proxied_get_100k",
        "GET of 100 KiB with a token, 64 connections",
        ("envoy", "fastify", "nginx"),
        path=standin.LARGE,
    ),
)
