"""What the gateway itself owns: health, readiness, one document and one catalogue of all services, docs, its own command."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, ClassVar

import httpx
import orjson
import psutil
import pytest
from pydantic import ValidationError

from gateway import directory
from gateway.accesslog import FLUSH_LINES, AccessLog
from gateway.routes import OWN_PATHS
from gateway.settings import GatewaySettings
from gateway.testing import Gateway, GatewayFactory, Peer
from shared.broker import Broker
from shared.events import Event, encode
from shared.settings import Settings
from shared.testing import TokenIssuer, eventually, free_port
from shared.testing_wire import raw_connection
from stack.testing import NATSServer


class UsersSettings(Settings):
    service: ClassVar[str] = "users"

    port: int = 1


class SessionRevoked(Event):
    """As users publishes it (contracts/)."""

    type: ClassVar[str] = "users.session.revoked.v1"

    session_id: str
    tokens_expire_at: int

    def aggregate_id(self) -> str:
        return self.session_id

    def aggregate_version(self) -> int:
        return 1


DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {
        "/open/things": {
            "get": {
                "operationId": "list_things",
                "tags": ["things"],
                "responses": {
                    "200": {
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}
                    }
                },
            }
        },
        "/internal": {"get": {"operationId": "internal", "responses": {}}},
    },
    "components": {"schemas": {"Thing": {"type": "object"}}},
}
CATALOGUE = [
    {"code": "thing_broken", "title": "Broken", "status": 409, "description": "It is."},
    ["malformed"],
]


async def documents(peer: Peer) -> None:
    """A service as the directory sees it."""
    while True:
        received = await peer.request()
        body = {b"/openapi.json": DOCUMENT, b"/errors": CATALOGUE}.get(received.head.target, {})
        encoded = orjson.dumps(body)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(encoded), encoded))


@pytest.fixture
async def http(gateway: Gateway) -> Any:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        yield http


async def test_welcome_names_the_documents(http: httpx.AsyncClient) -> None:
    welcome = (await http.get("/")).json()
    assert welcome["status"] == "ok"
    assert welcome["framework"] == "FastAPI"
    for link in ("docs", "redoc", "openapi", "errors", "health"):
        assert (await http.get(welcome[link])).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/health", "/health/", "/docs", "/docs/", "/unknown", "/docs/assets/missing.js"]
)
async def test_g10_security_headers_are_on_every_response(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers={"X-Request-ID": "mine"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-request-id"] == "mine"
    assert "x-process-time-ms" in answer.headers
    assert "strict-transport-security" not in answer.headers


async def test_g10_hsts_where_tls_is_declared(start: GatewayFactory) -> None:
    gateway = await start(hsts=True)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        for path in ("/health", "/open"):
            assert "max-age" in (await http.get(path)).headers["strict-transport-security"]


async def test_documentation_needs_nobody_else(http: httpx.AsyncClient) -> None:
    for page in ("/docs", "/redoc"):
        text = (await http.get(page)).text
        assert "https://" not in text.replace("https://fastapi.tiangolo.com", "")
    assert (await http.get("/docs/oauth2-redirect")).status_code == 200
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png"):
        assert (await http.get(f"/docs/assets/{asset}")).status_code == 200


@pytest.mark.integration
async def test_ready_once_every_service_was_seen_and_degraded_when_one_is_away(
    start: GatewayFactory, monkeypatch: pytest.MonkeyPatch, nats_server: NATSServer
) -> None:
    monkeypatch.setattr(directory, "POLL_SECONDS", 0.05)
    gateway = await start(control=documents, **nats_server.settings("gateway"))
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:

        async def state() -> dict[str, Any]:
            answer: dict[str, Any] = (await http.get("/health/ready")).json()
            return answer

        async def becomes(expected: dict[str, Any]) -> bool:
            return await state() == expected

        expected = {"nats": "up", "upstreams": {"scripted": "up"}, "documents": {"scripted": "current"}}
        await eventually(lambda: becomes({"status": "ready", **expected}))
        await gateway.upstream.stop()
        expected = {"nats": "up", "upstreams": {"scripted": "down"}, "documents": {"scripted": "stale"}}
        await eventually(lambda: becomes({"status": "degraded", **expected}))
        gateway.app.state.draining.set()
        assert (await http.get("/health/ready")).status_code == 503


async def test_without_nats_it_serves_and_says_degraded(gateway: Gateway, http: httpx.AsyncClient) -> None:
    await eventually(lambda: gateway.app.state.directory.complete)
    assert (await http.get("/health/ready")).json()["status"] == "degraded"
    assert (await http.get("/open")).status_code == 200


@pytest.mark.integration
async def test_t6_token_of_a_revoked_session_is_refused_within_a_second(
    start: GatewayFactory, issuer: TokenIssuer, nats_server: NATSServer
) -> None:
    gateway = await start(**nats_server.settings("gateway"))
    await eventually(gateway.app.state.revocations.caught_up.is_set)
    fields = issuer.authorization(1, sid="ended")
    async with (
        httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http,
        Broker(UsersSettings(**nats_server.settings("users"))) as broker,
    ):
        assert (await http.get("/closed", headers=fields)).status_code == 200
        await broker.connected.wait()
        outgoing = encode(SessionRevoked(session_id="ended", tokens_expire_at=int(time()) + 600))
        await broker.js.publish(outgoing.subject, outgoing.payload)

        async def refused() -> bool:
            return (await http.get("/closed", headers=fields)).status_code == 401

        await eventually(refused, within=5.0)


async def test_not_ready_before_keys_and_services_were_seen(start: GatewayFactory) -> None:
    gateway = await start(routes_url="http://127.0.0.1:1")
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:
        answer = await http.get("/health/ready")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "scripted" in answer.json()["detail"]
        assert (await http.get("/health")).status_code == 200


async def test_documents_of_the_services_are_merged_and_outlive_them(
    start: GatewayFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "POLL_SECONDS", 0.05)
    gateway = await start(control=documents)
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as http:

        async def document() -> dict[str, Any]:
            found: dict[str, Any] = (await http.get("/openapi.json")).json()
            return found

        async def has_things() -> bool:
            return "/open/things" in (await document())["paths"]

        await eventually(has_things)
        assert "/internal" not in (await document())["paths"]
        assert "x-tollhouse-stale" not in await document()
        codes = {entry["code"]: entry for entry in (await http.get("/errors")).json()}
        assert codes["thing_broken"]["status"] == 409
        assert codes["path_ambiguous"]["status"] == 400
        await gateway.upstream.stop()
        await eventually(lambda: not gateway.app.state.directory.services[0].alive)
        assert await has_things()
        left = await document()
        assert left["x-tollhouse-stale"] == ["scripted"]
        assert left["paths"]["/open/things"]["get"]["x-tollhouse-stale"] is True
        assert "x-tollhouse-stale" not in left["paths"]["/"]["get"]


def test_g9_any_origin_with_credentials_refuses_to_start() -> None:
    with pytest.raises(ValidationError, match="CORS_ORIGINS"):
        GatewaySettings(cors_origins=("*",), cors_credentials=True)


# The process itself


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "gateway", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_no_route_may_take_what_the_gateway_answers_itself(http: httpx.AsyncClient) -> None:
    named = {value for value in (await http.get("/")).json().values() if value.startswith("/")}
    described = {path for path in (await http.get("/openapi.json")).json()["paths"] if path != "/"}
    assert {f"/{path.split('/')[1]}" for path in named | described} == OWN_PATHS


def test_check_prints_the_effective_table() -> None:
    done = run("check", GATEWAY_ITEMS_URL="http://items.example:8080")
    assert done.returncode == 0
    table = orjson.loads(done.stdout)
    assert table["upstreams"]["items"]["url"] == "http://items.example:8080"
    assert "/v1/users" in [route["prefix"] for route in table["routes"]]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_bad_table_is_one_clear_sentence_and_exit_code_2(tmp_path: Path, command: str) -> None:
    table = tmp_path / "routes.toml"
    table.write_text('[upstreams.a]\nurl = "http://a"\n[[routes]]\nprefix = "/a"\nupstream = "b"\n')
    done = run(command, GATEWAY_ROUTES=str(table))
    assert done.returncode == 2
    assert done.stderr == f"gateway: {table}, line 5: routes.0.upstream: there is no upstream 'b'.\n"


def test_process_without_a_database_carries_no_database_library() -> None:
    loaded = "import gateway.app, sys; print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout == "False\n"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_serve_answers_on_every_worker_and_ends_cleanly_on_sigterm(
    tmp_path: Path, issuer: TokenIssuer, workers: str
) -> None:
    port = free_port()
    table = tmp_path / "routes.toml"
    table.write_text(
        '[upstreams.a]\nurl = "http://127.0.0.1:1"\n[[routes]]\nprefix = "/a"\nupstream = "a"\nauth = "none"\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        env={
            **os.environ,
            "GATEWAY_ROUTES": str(table),
            "GATEWAY_PORT": str(port),
            "GATEWAY_WORKERS": workers,
            "JWKS_URL": issuer.jwks_url,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    try:

        async def answers() -> bool:
            async with raw_connection(url) as raw:
                await raw.send(b"GET /a?code=secret HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\n\r\n")
                code: str = (await raw.response()).json()["code"]
                return code == "upstream_unavailable"

        assert await eventually(answers, within=60)
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode in (0, -signal.SIGTERM)
    served = [orjson.loads(line) for line in output.splitlines() if b'"request.served"' in line]
    assert {"method": "GET", "path": "/a", "status": 503, "request_id": "mine"}.items() <= served[0].items()
    assert b"secret" not in output


def _workers(parent: int) -> list[psutil.Process]:
    """The processes that serve; beside them runs multiprocessing's resource tracker."""
    children = psutil.Process(parent).children()
    return [child for child in children if any("spawn_main" in part for part in child.cmdline())]


async def test_workers_heal_metrics_never_go_back_and_sigterm_ends_all(
    tmp_path: Path, issuer: TokenIssuer
) -> None:
    port, metrics_port = free_port(), free_port()
    table = tmp_path / "routes.toml"
    table.write_text(
        '[upstreams.a]\nurl = "http://127.0.0.1:1"\n[[routes]]\nprefix = "/a"\nupstream = "a"\nauth = "none"\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "serve",
        env={
            **os.environ,
            "GATEWAY_ROUTES": str(table),
            "GATEWAY_PORT": str(port),
            "GATEWAY_WORKERS": "2",
            "GATEWAY_METRICS_PORT": str(metrics_port),
            "JWKS_URL": issuer.jwks_url,
            "LOG_LEVEL": "warning",
        },
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    async def numbers() -> dict[str, float]:
        async with httpx.AsyncClient(trust_env=False) as http:
            page = (await http.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
        lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def serving() -> bool:
        with suppress(httpx.HTTPError):
            async with httpx.AsyncClient(trust_env=False) as http:
                await http.get(f"{url}/health")  # a process counts itself a moment before it listens
            return (await numbers()).get("gateway_processes") == 2
        return False

    async def ask(times: int) -> None:
        for _ in range(times):
            async with raw_connection(url) as raw:
                await raw.send(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await raw.response()).status == 503

    async def counted() -> tuple[float, float]:
        found = await numbers()
        return (
            found['gateway_requests_total{route="/a",method="GET",status="503"}'],
            found['gateway_request_seconds_count{route="/a"}'],
        )

    try:
        await eventually(serving, within=60)
        await ask(10)
        assert await counted() == (10, 10)
        victim, survivor = _workers(process.pid)
        victim.kill()
        await eventually(lambda: not victim.is_running() and len(_workers(process.pid)) == 2, within=60)
        assert await counted() == (10, 10)
        await eventually(serving, within=60)
        await ask(10)
        assert await counted() == (20, 20)
        workers = _workers(process.pid)
        assert survivor in workers
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)
    assert process.returncode == 0
    assert not any(worker.is_running() for worker in workers)


def test_access_log_waits_a_little_and_never_long(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.BytesIO()

    async def note() -> None:
        log = AccessLog(GatewaySettings(log_format="json"), out)
        for number in range(FLUSH_LINES + 1):
            log.note("request.served", path="/x", number=number)
        assert out.getvalue().count(b"\n") == FLUSH_LINES
        await eventually(lambda: out.getvalue().count(b"\n") == FLUSH_LINES + 1)
        AccessLog(GatewaySettings(log_format="json", log_level="warning"), out).note("request.served")
        AccessLog(GatewaySettings(log_format="console")).note("request.served", path="/y")

    asyncio.run(note())
    lines = [orjson.loads(line) for line in out.getvalue().splitlines()]
    assert [line["number"] for line in lines] == list(range(FLUSH_LINES + 1))
    assert {line["event"] for line in lines} == {"request.served"}
    assert "/y" in capsys.readouterr().out
