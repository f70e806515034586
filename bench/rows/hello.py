"""For orientation: what a JSON greeting costs in the frameworks of this world, beside a request through the gateway."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from bench import checks, standin, wrk
from bench.model import Benchmark, Figure, Party
from bench.peers import node
from bench.system import Server, System
from bench.tools import GO, NGINX, NODE, NPM, WRK, missing
from bench.workbench import ROOT, Workbench

CONNECTIONS = 64
_PATH = "/hello"
_BUILD_TIMEOUT = 300.0


def _uvicorn(workbench: Workbench, name: str) -> Server:
    port = workbench.port()
    options = ["--port", str(port), "--no-access-log", "--loop", "uvloop", "--http", "httptools"]
    argv = [sys.executable, "-m", "uvicorn", f"bench.peers.hello_{name}:app", *options]
    return _python(workbench, name, port, argv, f"{name} {version(name)}, uvicorn {version('uvicorn')}")


def _gunicorn(workbench: Workbench, name: str) -> Server:
    port, framework = workbench.port(), name.removesuffix("-gunicorn")
    options = [
        "--bind",
        f"127.0.0.1:{port}",
        "--worker-class",
        "gthread",
        "--threads",
        "8",
        "--keep-alive",
        "75",
    ]
    argv = [sys.executable, "-m", "gunicorn", f"bench.peers.hello_{framework}:app", *options]
    about = f"{framework} {version(framework)}, gunicorn {version('gunicorn')}, one worker"
    return _python(workbench, name, port, argv, about)


def _python(workbench: Workbench, name: str, port: int, argv: Sequence[str], about: str) -> Server:
    process = workbench.start(name, argv, cores=workbench.cores.subject, port=port)
    return Server(name, f"http://127.0.0.1:{port}", process, f"{about}\n{' '.join(argv)}")


def _express(workbench: Workbench, name: str) -> Server:
    port = workbench.port()
    env = {"UPSTREAM": "http://127.0.0.1", "PUBLIC_KEY": "/dev/null", "ISSUER": "-", "AUDIENCE": "-"}
    process = node.start(workbench, name, port, env)
    return Server(name, f"http://127.0.0.1:{port}", process, node.describe(workbench, name))


def _go(workbench: Workbench, name: str) -> Server:
    port, program, source = workbench.port(), workbench.folder / "hello", ROOT / "bench/peers/go/main.go"
    go = str(GO.path())
    env = {"GOCACHE": str(workbench.folder / "go-cache"), "GO111MODULE": "off"}
    workbench.run([go, "build", "-o", str(program), str(source)], timeout=_BUILD_TIMEOUT, env=env)
    process = workbench.start(
        name, [str(program), str(port)], cores=workbench.cores.subject, port=port, env={"GOMAXPROCS": "1"}
    )
    about = f"{workbench.run([go, 'version'], timeout=10).strip()}, GOMAXPROCS=1\n{source.read_text()}"
    return Server(name, f"http://127.0.0.1:{port}", process, about)


START: Mapping[str, Callable[[Workbench, str], Server]] = {
    "fastapi": _uvicorn,
    "starlette": _uvicorn,
    "flask-gunicorn": _gunicorn,
    "django-gunicorn": _gunicorn,
    "express": _express,
    "go-net-http": _go,
}


@contextmanager
def _parties(workbench: Workbench) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    upstream = system.start_standin()
    system.start_nats()
    gateway = system.start_gateway()
    tokens = system.tokens()
    checks.same_answer(gateway, standin.SMALL, tokens[0], standin.ITEM.encode())
    peers = dict(START)
    if lacking := missing([GO]):
        print(f"Without Go's net/http: {lacking}")
        del peers["go-net-http"]
    through = wrk.script(workbench, "get", tokens=tokens, paths=[standin.SMALL])
    greeting = wrk.script(workbench, "hello", tokens=tokens[:1], paths=[_PATH])
    parties = [Party("gateway", partial(_measure, workbench, gateway, through), gateway.configuration)]
    for name, start in peers.items():
        server = start(workbench, name)
        parties.append(Party(name, partial(_measure, workbench, server, greeting), server.configuration))
    yield parties
    checks.gateway_is_strict(gateway, system, upstream)


def _measure(workbench: Workbench, server: Server, client: Path) -> Mapping[str, float]:
    answered = wrk.run(workbench, server, client, connections=CONNECTIONS, may_time_out=True)
    return {
        "hello_json": answered.rate,
        "hello_json_p50": answered.p50,
        "hello_json_p99": answered.p99,
        "hello_json_rss": server.process.usage().rss,
    }


BENCHMARKS = (
    Benchmark(
        "hello_json",
        "orientation: GET of 140 bytes with a token through the gateway, beside a JSON greeting that each framework makes itself",
        (
            Figure(
                "hello_json",
                "requests/s",
                "higher",
                "through our gateway, and what the framework itself answers",
            ),
            Figure("hello_json_p50", "ms", "lower", "median latency of the same, 64 connections"),
            Figure("hello_json_p99", "ms", "lower", "99th percentile of the same"),
            Figure("hello_json_rss", "MiB", "lower", "memory resident under that load"),
        ),
        _parties,
        needs=(WRK, NGINX, NODE, NPM),
        rounds=3,
    ),
)
