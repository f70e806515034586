"""WebSocket messages through the gateway and Envoy."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from bench import checks, standin
from bench.model import BenchError, Benchmark, Figure, Party
from bench.peers import envoy
from bench.system import Server, System
from bench.tools import NGINX
from bench.workbench import Workbench

CONNECTIONS = 64
_SOCKETS = (sys.executable, "-m", "bench.sockets")


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    port = workbench.port()
    workbench.start("echo", [*_SOCKETS, "serve", str(port)], cores=workbench.cores.load, port=port)
    gateway = system.start_gateway(more={"GATEWAY_NOTIFICATIONS_URL": f"http://127.0.0.1:{port}"})
    servers = [gateway, envoy.start(system, upstream, sockets_port=port)]
    tokens = system.tokens()
    for server in servers:
        checks.same_answer(server, standin.SMALL, tokens[0], standin.ITEM.encode())
    yield [
        Party(server.name, partial(_measure, workbench, server, tokens), server.configuration, server.process)
        for server in servers
    ]
    checks.gateway_is_strict(gateway, system, upstream)


def _measure(workbench: Workbench, server: Server, tokens: Sequence[str]) -> Mapping[str, float]:
    port, seconds = server.url.rpartition(":")[2], workbench.seconds
    before = server.process.usage().cpu
    argv = [*_SOCKETS, "load", port, str(CONNECTIONS), str(seconds)]
    report = json.loads(workbench.run(argv, timeout=seconds + 60, text="\n".join(tokens)))
    cpu = server.process.usage().cpu - before
    if not report["messages"] or cpu <= 0:
        raise BenchError(f"no messages came through {server.name}")
    return {
        "ws_messages": report["messages"] / cpu,
        "ws_messages_rate": report["messages"] / report["seconds"],
    }


BENCHMARKS = (
    Benchmark(
        "ws_messages",
        "WebSocket messages of 120 bytes to an echo and back, 64 sockets, one message under way on each",
        (
            Figure(
                "ws_messages",
                "messages/CPU s",
                "higher",
                "WebSocket messages for a second of the proxy's CPU time",
            ),
            Figure(
                "ws_messages_rate",
                "messages/s",
                "higher",
                "the same by the clock; clients and echo share a core",
            ),
        ),
        _parties,
        needs=(NGINX,),
    ),
)
