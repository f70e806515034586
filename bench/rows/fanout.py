"""One event to many sockets: ours, a Node server on ws (plain, and coalescing as we do), and a tutorial's send_text."""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from bench import fanout
from bench.fanout import Plan
from bench.model import BenchError, Benchmark, Figure, Parties, Party
from bench.peers import node
from bench.system import System
from bench.tools import NODE, NPM
from bench.workbench import ROOT, Process, Workbench
from stack import settings as ports

BURST, BURST_TO_MANY = 50, 20
"""Events published at once, to 1 000 sockets and to 10 000: there the slowest peer takes seconds for each."""
IDLE = 2000
"""Sockets whose memory is measured."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """A server and the sockets that listen to it."""

    name: str
    server: Process
    control_port: int
    configuration: str

    def round(self, workbench: Workbench, *, burst: int, stalled: int = 0) -> dict[str, Any]:
        """Measure one round."""
        return fanout.ask(self.control_port, seconds=workbench.seconds, burst=burst, stalled=stalled)


def gather(workbench: Workbench, name: str, server: Process, plan: Plan, configuration: str) -> Crowd:
    """Connect a crowd of sockets to a server."""
    control_port = workbench.port()
    plan_file = plan.save(workbench.folder / f"{name}.json")
    workbench.start(
        f"{name}-sockets",
        [sys.executable, "-m", "bench.fanout", str(plan_file), str(control_port)],
        cores=workbench.cores.load,
        port=control_port,
    )
    return Crowd(name, server, control_port, configuration)


def our_crowd(system: System, sockets: int) -> Crowd:
    """Start the notifications service as it is shipped, fed by NATS, and a crowd that has authenticated."""
    workbench = system.workbench
    caps = ("PER_USER", "PER_ADDRESS")
    server = system.start_service(
        "notifications",
        cores=workbench.cores.subject,
        database_url=system.database_url("notifications"),
        more={f"NOTIFICATIONS_MAX_CONNECTIONS_{cap}": str(10 * sockets) for cap in caps},
    )
    plan = Plan(
        port=system.settings.port(ports.NOTIFICATIONS),
        path="/v1/ws",
        sockets=sockets,
        tokens=system.tokens(),
        source_port=system.settings.port(ports.NATS),
        nats=("items", system.credentials["nats.items"]),
    )
    return gather(workbench, "tollhouse", server.process, plan, server.configuration)


def node_crowd(workbench: Workbench, sockets: int, *, coalesced: bool) -> Crowd:
    """Start a Node server on ws and a crowd."""
    name = "node-ws-coalesced" if coalesced else "node-ws"
    port, source_port = workbench.port(), workbench.port()
    server = node.start(
        workbench,
        "node-ws",
        port,
        {"SOURCE_PORT": str(source_port), "COALESCED": str(int(coalesced))},
        title=name,
    )
    plan = Plan(port, "/", sockets, (), source_port)
    return gather(workbench, name, server, plan, node.describe(workbench, "node-ws"))


def send_text_crowd(workbench: Workbench, sockets: int) -> Crowd:
    """Start the tutorial's server, with uvicorn's fast parts, and a crowd."""
    port, source_port = workbench.port(), workbench.port()
    argv = [
        *(sys.executable, "-m", "uvicorn", "bench.peers.send_text:app", "--host", "127.0.0.1"),
        *("--port", str(port), "--no-access-log", "--loop", "uvloop", "--ws", "websockets-sansio"),
        *("--ws-per-message-deflate", "false"),
    ]
    server = workbench.start(
        "send-text", argv, cores=workbench.cores.subject, port=port, env={"SOURCE_PORT": str(source_port)}
    )
    plan = Plan(port, "/", sockets, (), source_port)
    source = (ROOT / "bench/peers/send_text.py").read_text()
    versions = ", ".join(f"{package} {version(package)}" for package in ("fastapi", "uvicorn", "websockets"))
    return gather(workbench, "send-text", server, plan, f"{versions}\n{' '.join(argv)}\n{source}")


@contextmanager
def _parties(workbench: Workbench, *, sockets: int, burst: int) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    system.start_standin((ports.USERS,))
    system.start_nats()
    system.start_postgres()
    crowds = [
        our_crowd(system, sockets),
        node_crowd(workbench, sockets, coalesced=False),
        node_crowd(workbench, sockets, coalesced=True),
        send_text_crowd(workbench, sockets),
    ]
    yield [
        Party(
            crowd.name,
            partial(_rate, workbench, crowd, f"fanout_{sockets}", burst=burst),
            crowd.configuration,
        )
        for crowd in crowds
    ]


def _rate(workbench: Workbench, crowd: Crowd, figure: str, *, burst: int) -> Mapping[str, float]:
    report = crowd.round(workbench, burst=burst)
    if not report["messages"]:
        raise BenchError(f"no messages came from {crowd.name}")
    return {figure: report["messages"] / report["seconds"]}


def _fanout(sockets: int, *, burst: int, rounds: int) -> Benchmark:
    def parties(workbench: Workbench) -> Parties:
        return _parties(workbench, sockets=sockets, burst=burst)

    return Benchmark(
        f"fanout_{sockets}",
        f"one event of {fanout.PAYLOAD_BYTES} bytes to {sockets} sockets, in bursts of {burst}",
        (
            Figure(
                f"fanout_{sockets}",
                "messages/s",
                "higher",
                f"events written to {sockets} sockets, from one core; ours come through JetStream",
                goals={"node-ws": 4.0} if sockets == 1000 else {},
            ),
        ),
        parties,
        needs=(NODE, NPM),
        rounds=rounds,
    )


@contextmanager
def _stalled_parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    system.start_standin((ports.USERS,))
    system.start_nats()
    system.start_postgres()
    crowd = our_crowd(system, 1000)
    yield [
        Party("tollhouse", partial(_p99, workbench, crowd, stalled=1), crowd.configuration),
        Party("nobody-stalled", partial(_p99, workbench, crowd, stalled=0), "the same"),
    ]


def _p99(workbench: Workbench, crowd: Crowd, *, stalled: int) -> Mapping[str, float]:
    latencies = crowd.round(workbench, burst=5, stalled=stalled)["latencies"]
    return {"fanout_beside_stalled_p99": statistics.quantiles(latencies, n=100)[98] * 1000}


@contextmanager
def _idle_parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    system.start_standin((ports.USERS, ports.ITEMS))
    system.start_nats()
    system.start_postgres()
    caps = {f"NOTIFICATIONS_MAX_CONNECTIONS_PER_{cap}": str(2 * IDLE) for cap in ("USER", "ADDRESS")}
    service = system.start_service(
        "notifications",
        cores=workbench.cores.subject,
        database_url=system.database_url("notifications"),
        more=caps,
    )
    gateway = system.start_gateway()
    chain = (gateway.process, service.process)
    peer_port, source_port = workbench.port(), workbench.port()
    peer = node.start(workbench, "node-ws", peer_port, {"SOURCE_PORT": str(source_port)})
    before, peer_before = _resident(chain), _resident((peer,))
    plan = Plan(
        port=system.settings.port(ports.GATEWAY),
        path="/v1/ws",
        sockets=IDLE,
        tokens=system.tokens(),
        source_port=system.settings.port(ports.NATS),
        nats=("items", system.credentials["nats.items"]),
    )
    gather(workbench, "tollhouse", service.process, plan, "")
    gather(workbench, "node-ws", peer, Plan(peer_port, "/", IDLE, (), source_port), "")
    yield [
        Party(
            "tollhouse",
            lambda: {"socket_memory": (_resident(chain) - before) / IDLE},
            f"{gateway.configuration}\n\n{service.configuration}",
        ),
        Party(
            "node-ws",
            lambda: {"socket_memory": (_resident((peer,)) - peer_before) / IDLE},
            node.describe(workbench, "node-ws"),
        ),
    ]


def _resident(processes: Sequence[Process]) -> float:
    """Return KiB."""
    return sum(process.usage().rss for process in processes) * 1024


IDLE_SOCKETS = Benchmark(
    "socket_memory",
    f"{IDLE} idle sockets: ours authenticated, subscribed and through the gateway, Node's plain",
    (
        Figure(
            "socket_memory",
            "KiB",
            "lower",
            "resident memory for each idle socket, in gateway and notifications together",
        ),
    ),
    _idle_parties,
    needs=(NODE, NPM),
    rounds=3,
)

STALLED = Benchmark(
    "fanout_beside_stalled_p99",
    "bursts of 5 events to 1000 sockets, beside one that reads nothing",
    (
        Figure(
            "fanout_beside_stalled_p99",
            "ms",
            "lower",
            "from the publishing of a burst to its last event on the last of the sockets that read, 99th percentile",
        ),
    ),
    _stalled_parties,
)

BENCHMARKS = (
    STALLED,
    IDLE_SOCKETS,
    _fanout(1000, burst=BURST, rounds=5),
    _fanout(10_000, burst=BURST_TO_MANY, rounds=3),
)
