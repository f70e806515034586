"""From a write to the event of it on a subscribed socket, at a steady rate: through the outbox, or by `send_text`."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import httpx

from bench.commits import WRITERS, Plan
from bench.model import BenchError, Benchmark, Figure, Party
from bench.system import System
from bench.workbench import ROOT, Workbench
from stack import settings as ports

RATE = 200
"""Writes per second."""
LEAST_RATE = 0.9
"""Share of it that must have been reached."""


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    system.start_standin((ports.USERS,))
    system.start_nats()
    system.start_postgres()
    everywhere = workbench.cores.subject | workbench.cores.load
    servers = [
        system.start_service(name, cores=everywhere, database_url=system.database_url(name))
        for name in ("items", "notifications")
    ]
    servers.append(system.start_gateway(cores=everywhere))
    ours = _our_plan(workbench, system)
    theirs, configuration = _start_peer(workbench, system)
    yield [
        Party(
            "tollhouse", partial(_latencies, workbench, ours), "\n\n".join(s.configuration for s in servers)
        ),
        Party("send-text", partial(_latencies, workbench, theirs), configuration),
    ]


def _our_plan(workbench: Workbench, system: System) -> Plan:
    """Make the items; write to the service, listen through the gateway."""
    port = system.settings.port(ports.ITEMS)
    token = system.issuer.token(1, scope="items:write", expires_in=3600)
    items = []
    for _ in range(WRITERS):
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/items",
            json={"name": "Brass compass", "price": 1},
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
        )
        items.append(int(answer.raise_for_status().json()["id"]))
    socket_url = system.settings.gateway_url.replace("http", "ws", 1) + "/v1/ws"
    return Plan(port, socket_url, token, items, RATE, workbench.seconds)


def _start_peer(workbench: Workbench, system: System) -> tuple[Plan, str]:
    port = workbench.port()
    argv = [
        *(sys.executable, "-m", "uvicorn", "bench.peers.commit_and_send:app", "--host", "127.0.0.1"),
        *("--port", str(port), "--no-access-log", "--loop", "uvloop", "--http", "httptools"),
    ]
    url = system.database_url("items").replace("postgresql://", "postgresql+psycopg://")
    workbench.start(
        "commit-and-send",
        argv,
        cores=workbench.cores.subject | workbench.cores.load,
        port=port,
        env={"DATABASE_URL": url},
    )
    plan = Plan(
        port, f"ws://127.0.0.1:{port}/v1/ws", "", list(range(1, WRITERS + 1)), RATE, workbench.seconds
    )
    source = (ROOT / "bench/peers/commit_and_send.py").read_text()
    versions = ", ".join(f"{package} {version(package)}" for package in ("fastapi", "sqlalchemy", "psycopg"))
    return plan, f"{versions}\n{' '.join(argv)}\n{source}"


def _latencies(workbench: Workbench, plan: Plan) -> Mapping[str, float]:
    argv = [sys.executable, "-m", "bench.commits"]
    report = json.loads(workbench.run(argv, timeout=plan.seconds + 60, text=plan.text()))
    if report["rate"] < RATE * LEAST_RATE:
        raise BenchError(f"only {report['rate']:.0f} of {RATE} writes per second were made")
    latencies = sorted(report["latencies"])
    percentiles = statistics.quantiles(latencies, n=100)
    return {"commit_to_socket_p50": percentiles[49], "commit_to_socket_p99": percentiles[98]}


BENCHMARKS = (
    Benchmark(
        "commit_to_socket",
        f"from an event's own time, before its commit, to its arrival on a socket; {RATE} writes/s, everything on all cores",
        (
            Figure(
                "commit_to_socket_p50",
                "ms",
                "lower",
                "from a write, its commit included, to its event on a socket",
            ),
            Figure("commit_to_socket_p99", "ms", "lower", "the same, 99th percentile"),
        ),
        _parties,
    ),
)
