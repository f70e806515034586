"""Items: the whole way through gateway and service, beside the usual FastAPI service that is called directly."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import psycopg

from bench import standin, wrk
from bench.model import BenchError, Benchmark, Figure, Party
from bench.probe import get
from bench.system import Server, System
from bench.tools import NGINX, WRK
from bench.workbench import ROOT, Workbench
from shared.testing import TokenIssuer
from stack import settings as ports
from stack.products import product

PRODUCTS = 10_000
READ = 500
"""How many of them are read, in turn."""
CONNECTIONS = 32
SCOPE = "items:write"
BODY = json.dumps({**product(1), "name": "Brass compass"})


@contextmanager
def _parties(
    workbench: Workbench, name: str, paths: Sequence[str], body: str | None
) -> Iterator[Sequence[Party]]:
    system = System(workbench)
    keys = json.dumps({"keys": [system.issuer.jwk()]})
    standin.start(workbench, keys, tuple(map(system.settings.port, (ports.USERS, ports.NOTIFICATIONS))))
    system.start_nats()
    system.start_postgres()
    url = system.database_url("items")
    _fill(url)
    # Each party's service has the measured core to itself; the gateway shares the other with PostgreSQL, NATS and wrk.
    service = system.start_service("items", cores=workbench.cores.subject, database_url=url)
    gateway = system.start_gateway(cores=workbench.cores.load)
    usual = _start_usual(workbench, url)
    tokens = [
        system.issuer.token(user, scope=SCOPE, expires_in=6 * 3600)
        for user in range(1, 1 + (64 if body else 4))
    ]
    servers = [
        Server(
            "gateway + items",
            gateway.url,
            service.process,
            f"{gateway.configuration}\n\n{service.configuration}",
        ),
        usual,
    ]
    client = wrk.script(workbench, name, tokens=tokens, paths=paths, body=body)
    yield [
        Party(server.name, partial(_measure, workbench, name, server, client), server.configuration)
        for server in servers
    ]
    _is_whole(gateway, url, tokens[0])


def _start_usual(workbench: Workbench, url: str) -> Server:
    port = workbench.port()
    argv = [
        *(sys.executable, "-m", "uvicorn", "bench.peers.fastapi_sqlalchemy:app", "--host", "127.0.0.1"),
        *("--port", str(port), "--no-access-log", "--loop", "uvloop", "--http", "httptools"),
    ]
    env = {"DATABASE_URL": url.replace("postgresql://", "postgresql+psycopg://")}
    process = workbench.start("fastapi-sqlalchemy", argv, cores=workbench.cores.subject, port=port, env=env)
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "sqlalchemy", "psycopg")
    )
    source = (ROOT / "bench/peers/fastapi_sqlalchemy.py").read_text()
    configuration = f"{versions}\n{' '.join(argv)}\n{source}"
    return Server("fastapi-sqlalchemy", f"http://127.0.0.1:{port}", process, configuration)


def _fill(url: str) -> None:
    with psycopg.connect(url) as connection:
        columns = "name, description, price, in_stock, owner_id"
        with connection.cursor().copy(f"COPY items ({columns}) FROM STDIN".encode()) as copy:
            for number in range(1, PRODUCTS + 1):
                copy.write_row((*product(number).values(), number % 64 + 1))
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE items")


def _measure(workbench: Workbench, name: str, server: Server, client: Path) -> Mapping[str, float]:
    return {name: wrk.run(workbench, server, client, connections=CONNECTIONS).rate}


def _is_whole(gateway: Server, url: str, token: str) -> None:
    """Ask whether what was measured still does its whole work.

    Raises:
        BenchError: it does not.
    """
    if get(f"{gateway.url}/v1/items/1", TokenIssuer().token()).status != 401:
        raise BenchError("a foreign token was accepted")
    if b"etag" not in get(f"{gateway.url}/v1/items/1", token).head.encode().lower():
        raise BenchError("an item came without its ETag")
    with psycopg.connect(url) as connection:
        # The usual service's items have no owner.
        offered = connection.execute("SELECT count(*) FROM items WHERE id > %s AND owner_id > 0", [PRODUCTS])
        events = connection.execute("SELECT count(*) FROM outbox").fetchone()
        if offered.fetchone() != events:
            raise BenchError("an item was offered without its event, or an event written without its item")


def _benchmark(
    name: str, about: str, paths: Sequence[str], body: str | None = None, *, goal: float
) -> Benchmark:
    return Benchmark(
        name,
        about,
        (Figure(name, "requests/s", "higher", "requests answered", goals={"fastapi-sqlalchemy": goal}),),
        lambda workbench: _parties(workbench, name, paths, body),
        needs=(WRK, NGINX),
    )


BENCHMARKS = (
    _benchmark(
        "read_item",
        "GET of an item, through the gateway, and of the usual service directly; 32 connections",
        [f"/v1/items/{number * (PRODUCTS // READ)}" for number in range(1, READ + 1)],
        goal=1.3,
    ),
    _benchmark(
        "list_items",
        "GET of 20 items, through the gateway, and of the usual service directly; 32 connections",
        ["/v1/items?limit=20"],
        goal=1.3,
    ),
    _benchmark(
        "create_item",
        "POST of an item with its event, through the gateway, and to the usual service without one; 32 connections",
        ["/v1/items"],
        BODY,
        goal=1.0,
    ),
)
