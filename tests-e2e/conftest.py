"""The running system: the embedded stack, started once, or any other that BASE_URL names."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

import httpx
import orjson
import pytest
from journey import ADMIN_EMAIL, ADMIN_PASSWORD, PASSWORD, Person, System, unique_email
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from shared.testing import TokenIssuer, eventually, free_offset

HERE = Path(__file__).parent
ACCESS_TOKEN_TTL = 40
"""Seconds: short enough to see a token expire, long enough for any journey."""
START_TIMEOUT = 240
PORTS = (8000, 8001, 8002, 8003, 8090, 8091, 8092, 8093, 14222, 15432)


SYSTEMS = {"test_drills": "drilled", "test_conformance": "patient", "test_naughty_strings": "patient"}
"""The system that a file's journeys share, where it is not the ordinary one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(180))


class OneWorkerForEachSystem(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """Hands out tests one by one, but all journeys of one system to one worker, so that it starts once.

    pytest-xdist's own way, the mark `xdist_group`, does nothing under pytest 9.2 (pytest-xdist#1386).
    """

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0])
        return SYSTEMS.get(path.stem, "ordinary") if path.parts[0] == HERE.name else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    return OneWorkerForEachSystem(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Fail where another worker runs journeys of the same system: both would start it, at twice the cost."""

    def claim(name: str) -> None:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            return
        try:
            (tmp_path_factory.getbasetemp().parent / f"system-{name}").mkdir()
        except FileExistsError:
            pytest.fail(f"another worker has journeys of the {name} system, or has crashed in them")

    return claim


@pytest.fixture(scope="session")
def system(external_issuer: TokenIssuer, alone: Callable[[str], None]) -> Iterator[System]:
    """The system that the journeys use."""
    alone("ordinary")
    if (url := os.environ.get("BASE_URL")) is not None:
        yield System(url.rstrip("/"))
        return
    trusted = {
        "issuer": external_issuer.issuer,
        "audience": external_issuer.audience,
        "jwks_url": external_issuer.jwks_url,
        "token_types": ["JWT"],
    }
    with running_system(
        USERS_ACCESS_TOKEN_TTL=str(ACCESS_TOKEN_TTL),
        USERS_ADMIN_EMAIL=ADMIN_EMAIL,
        USERS_ADMIN_PASSWORD=ADMIN_PASSWORD,
        TRUSTED_ISSUERS=json.dumps([trusted]),
        NOTIFICATIONS_MAILS_PER_HOUR="1000",
    ) as running:
        yield running


@pytest.fixture(scope="module")
def drilled(alone: Callable[[str], None]) -> Iterator[System]:
    """A system of the drills' own: tokens outlive a drill, two replicas of notifications, no limits in the way."""
    alone("drilled")
    with running_system(
        # Its supervisor is stopped now and then, and what is logged waits for it.
        LOG_LEVEL="error",
        USERS_ACCESS_TOKEN_TTL="3600",
        NOTIFICATIONS_WORKERS="2",
        NOTIFICATIONS_MAX_CONNECTIONS_PER_ADDRESS="5000",
        NOTIFICATIONS_MAX_CONNECTIONS_PER_USER="5000",
    ) as running:
        yield running


@pytest.fixture
def hoarding() -> Iterator[System]:
    """A system for one test, which leaves much behind."""
    with running_system(LOG_LEVEL="error", USERS_ACCESS_TOKEN_TTL="3600") as running:
        yield running


@pytest.fixture(scope="session")
def patient_system(alone: Callable[[str], None]) -> Iterator[System]:
    """A system that takes any number of requests, of wrong passwords and of mails; passwords cost next to nothing."""
    alone("patient")
    plenty = "1000000"
    if "BASE_URL" in os.environ:
        pytest.skip("needs limits out of the way: BASE_URL names another system")
    with running_system(
        USERS_ADMIN_EMAIL=ADMIN_EMAIL,
        USERS_ADMIN_PASSWORD=ADMIN_PASSWORD,
        USERS_ACCESS_TOKEN_TTL="3600",
        USERS_ARGON2_MEMORY_KIB="64",
        USERS_ARGON2_ITERATIONS="1",
        USERS_THROTTLE_PAIR_FAILURES=plenty,
        USERS_THROTTLE_ACCOUNT_FAILURES=plenty,
        USERS_THROTTLE_ADDRESS_FAILURES=plenty,
        NOTIFICATIONS_MAILS_PER_HOUR=plenty,
        GATEWAY_LIMITS=json.dumps({name: {"quota": int(plenty)} for name in ("default", "registration")}),
    ) as running:
        yield running


@contextmanager
def running_system(**settings: str) -> Iterator[System]:
    """Run the embedded stack on ports and in a folder of its own."""
    offset = free_offset(PORTS)
    with tempfile.TemporaryDirectory(prefix="tollhouse-e2e-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another account when the tests run as root
        data_dir, log = Path(folder) / "data", Path(folder) / "log"
        environment = {
            "DATA_DIR": str(data_dir),
            "PORT_OFFSET": str(offset),
            "LOG_FORMAT": "json",
            "GATEWAY_LIMITS": json.dumps({"registration": {"quota": 10_000}, "default": {"quota": 10_000}}),
            **settings,
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stack", "run"],
                env={**os.environ, **environment},
                stdout=output,
                stderr=output,
            )
        try:
            url = f"http://127.0.0.1:{8000 + offset}"
            _wait_until_ready(url, process, log)
            yield System(url, data_dir, process.pid, environment)
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            if code != 0:
                pytest.fail(f"the system ended with code {code}:\n{log.read_text()[-4000:]}")


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, f"the system did not start:\n{log.read_text()[-4000:]}"
        try:
            return bool(httpx.get(f"{url}/health/ready", trust_env=False).json().get("status") == "ready")
        except (httpx.HTTPError, json.JSONDecodeError):
            return False

    asyncio.run(eventually(is_ready, within=START_TIMEOUT))


@pytest.fixture(scope="session")
def external_issuer() -> Iterator[TokenIssuer]:
    """An OpenID Connect issuer beside Tollhouse, which trusts it; its keys are served from a thread."""
    issuer = TokenIssuer("https://login.example.com", "tollhouse")
    document = orjson.dumps({"keys": [issuer.jwk()]})

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            self.send_response(200)
            self.send_header("Content-Length", str(len(document)))
            self.end_headers()
            self.wfile.write(document)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        issuer.jwks_url = f"http://127.0.0.1:{server.server_port}/keys"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield issuer
        server.shutdown()


Newcomer = Callable[..., Awaitable[Person]]


@pytest.fixture
async def newcomer(system: System) -> AsyncIterator[Newcomer]:
    """Make people: `await newcomer()` registers one and logs in."""
    async with AsyncExitStack() as stack:

        async def make(email: str | None = None, password: str = PASSWORD) -> Person:
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=15)
            )
            person = Person(system, http, email=email or unique_email(), password=password)
            await person.register()
            await person.log_in()
            return person

        yield make


@pytest.fixture
async def ada(newcomer: Newcomer) -> Person:
    """A person."""
    return await newcomer()


@pytest.fixture
async def bob(newcomer: Newcomer) -> Person:
    """Another person."""
    return await newcomer()


@pytest.fixture
async def admin(system: System) -> AsyncIterator[Person]:
    """The first admin."""
    async with httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=15) as http:
        person = Person(system, http, email=ADMIN_EMAIL, password=ADMIN_PASSWORD)
        await person.log_in()
        yield person


@pytest.fixture
def embedded(system: System) -> System:
    """The system, where the test may kill its processes."""
    if system.data_dir is None:
        pytest.skip("needs the embedded stack: BASE_URL names another system")
    return system
