"""The images, built by the Dockerfile and run: what is in them, what is not, and the whole system made of them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deploy.image.tests.topology import LIMITS, RUN, Topology, podman, running

from stack.services import TOLLHOUSE

ROOT = Path(__file__).parents[3]
SERVICES = tuple(spec.name for spec in TOLLHOUSE.services)
OWN_SIZE = 77_000_000
"""Bytes that an image may add to its base: 200 MB in all, of which python:3.13-slim takes up to 123."""


def run(image: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a container as it will be run: without rights, on a read-only file system."""
    hardened = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")
    return podman(*RUN, "run", "--rm", *LIMITS, *hardened, *options, image, *arguments, check=False)


def python(image: str, code: str) -> Any:
    """Run Python code in the image; returns what it printed, as JSON."""
    result = run(image, "-c", code, options=("--entrypoint=python",))
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(params=SERVICES)
def image(request: pytest.FixtureRequest, images: str) -> str:
    """The image of each service."""
    return f"tollhouse/{request.param}:{images}"


def test_holds_exactly_the_locked_dependencies_of_its_service(image: str) -> None:
    service = image.removeprefix("tollhouse/").partition(":")[0]
    export = subprocess.run(
        [Path(sys.executable).with_name("uv"), "export", "--frozen", "--no-dev", "--no-hashes", "--no-annotate", "--no-header",
         "--no-emit-workspace", "--package", f"tollhouse-{service}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    locked = {
        line.partition(" ")[0].strip()
        for line in export.splitlines()
        if "win32" not in line.partition("sys_platform ==")[2]
    }

    found = python(
        image,
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps([f'{d.name}=={d.version}' for d in distributions(path=[__import__('sysconfig').get_path('purelib')])]))",
    )

    named = {entry.lower().replace("_", "-") for entry in found}
    ours = {entry for entry in named if entry.startswith("tollhouse-")}
    assert {entry.partition("==")[0] for entry in ours} == {"tollhouse-shared", f"tollhouse-{service}"}
    assert named - ours == locked


def test_has_nothing_to_build_or_install_with(image: str) -> None:
    tools = ("pip", "pip3", "uv", "gcc", "cc", "ld", "strip", "make")
    found = python(
        image,
        "import json, shutil, importlib.util as u; "
        f"print(json.dumps([t for t in {tools} if shutil.which(t)] + [m for m in ('pip', 'ensurepip', 'uv') if u.find_spec(m)]))",
    )
    assert found == []


def test_runs_as_nobody_who_could_write_anywhere(image: str) -> None:
    writable = (
        "import json, os; print(json.dumps([os.getuid(), [d for d, _, _ in os.walk('/') "
        "if not d.startswith(('/proc', '/dev', '/sys', '/tmp', '/run', '/var/tmp')) and os.access(d, os.W_OK)]]))"
    )
    assert python(image, writable) == [10001, []]


def test_adds_little_to_its_base(image: str) -> None:
    sizes = [
        int(podman("image", "inspect", "--format", "{{.Size}}", name).stdout)
        for name in (image, "localhost/tollhouse-standin-python")
    ]
    assert sizes[0] - sizes[1] <= OWN_SIZE


def test_says_what_it_is_and_how_it_is_stopped_and_asked(image: str) -> None:
    (found,) = json.loads(podman("image", "inspect", image).stdout)
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert found["Healthcheck"]["Test"] == ["CMD", "healthcheck"]
    for label in ("title", "description", "version", "revision", "licenses"):
        assert config["Labels"][f"org.opencontainers.image.{label}"]


def test_what_is_imported_is_compiled(image: str) -> None:
    """Nothing can be compiled at a start any more: the file system is read-only."""
    service = image.removeprefix("tollhouse/").partition(":")[0]
    code = (
        f"import json, sys, {service}.app, uvicorn.protocols.http.httptools_impl; from pathlib import Path; "
        "print(json.dumps([m.__file__ for m in list(sys.modules.values()) if (getattr(m, '__file__', None) or '').startswith('/app')"
        " and m.__file__.endswith('.py') and not Path(m.__cached__ or '').exists()]))"
    )
    assert python(image, code) == []


def test_a_missing_secret_stops_it_with_its_name(image: str) -> None:
    service = image.removeprefix("tollhouse/").partition(":")[0]
    if service == "gateway":
        pytest.skip("the gateway needs no secret to start")
    result = run(image)
    assert result.returncode == 2
    assert f"{service.upper()}_DATABASE_URL is not set" in result.stderr


@pytest.fixture(scope="module")
def topology(images: str) -> Iterator[Topology]:
    """docker-compose.yml, up."""
    subprocess.run(["sh", ROOT / "deploy/compose/secrets.sh"], check=True)
    environment = {
        "TOLLHOUSE_TAG": images,
        "POSTGRES_IMAGE": "localhost/tollhouse-standin-postgres",
        "NATS_IMAGE": "localhost/tollhouse-standin-nats",
        "GATEWAY_PUBLISHED": "127.0.0.1:",
        "TOKEN_ISSUER": "http://127.0.0.1:8000",
        "GATEWAY_LIMITS": '{"registration": {"quota": 10000}}',
        "MAILS_PER_HOUR": "1000",
    }
    with running(environment, name=f"tollhouse-test-{os.getpid()}") as up:
        yield up


@pytest.mark.parametrize(
    "journeys",
    [
        "tests-e2e/test_journey.py",
        pytest.param("tests-e2e", marks=[pytest.mark.soak, pytest.mark.timeout(900)]),
    ],
)
def test_the_journeys_pass_on_compose(topology: Topology, journeys: str) -> None:
    """From inside the gateway's network, so that nothing of this machine's own network stands between."""
    pid = topology.inspect("gateway")["State"]["Pid"]
    environment = {
        **os.environ,
        "BASE_URL": "http://127.0.0.1:8000",
        "ADMIN_PASSWORD": (ROOT / ".secrets/users_admin_password").read_text(encoding="utf-8"),
    }
    result = subprocess.run(
        ["nsenter", "--net", "--target", str(pid), sys.executable, "-m", "pytest", "-q", "-m", "e2e and not soak", journeys],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:]


def _as_helm_test(topology: Topology, check: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a check of `helm test`, which is a pod of the gateway's image, in the gateway's container."""
    script = (ROOT / f"deploy/helm/files/test_{check}.py").read_text(encoding="utf-8")
    assignments = (f"{name}={value}" for name, value in environment.items())
    return topology.exec("gateway", "env", *assignments, "python", "-c", script)


def test_helm_test_finds_the_system_ready(topology: Topology) -> None:
    result = _as_helm_test(topology, "ready", GATEWAY="http://127.0.0.1:8000")
    assert (result.returncode, "ready: " in result.stdout) == (0, True), result.stderr
    assert _as_helm_test(topology, "ready", GATEWAY="http://127.0.0.1:8001").returncode != 0


def test_helm_test_sees_whether_services_can_be_reached(topology: Topology) -> None:
    items = f"{topology.address('items', 'services')}:8000"
    result = _as_helm_test(topology, "denied", OTHERS=items)
    assert (result.returncode, f"{items} can be reached" in result.stderr) == (1, True), result.stdout
    assert _as_helm_test(topology, "denied", OTHERS="127.0.0.1:8001").returncode == 0


@pytest.mark.parametrize("service", SERVICES)
def test_nats_is_reached_and_its_monitoring_is_not(topology: Topology, service: str) -> None:
    def reaches(host: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
        return topology.exec(service, "python", "-c", code).returncode == 0

    # podman's bridges, unlike Docker's, are not kept apart: which networks a container is in is judged in deploy/tests.
    assert reaches(topology.address("nats", "events"), 4222)
    # The monitoring port of NATS is for its own container.
    assert not reaches(topology.address("nats", "events"), 8222)


@pytest.mark.parametrize("service", SERVICES)
def test_a_role_enters_its_own_database_only(topology: Topology, service: str) -> None:
    if service == "gateway":
        pytest.skip("the gateway has no database")
    others = [spec.name for spec in TOLLHOUSE.services if spec.database and spec.name != service]
    code = (
        "import psycopg; from pathlib import Path\n"
        f"url = Path('/run/secrets/{service}_database_url').read_text()\n"
        "psycopg.connect(url).close()\n"
        f"for other in {[*others, 'postgres']!r}:\n"
        "    try: psycopg.connect(url.rpartition('/')[0] + '/' + other).close()\n"
        "    except psycopg.OperationalError as error: assert 'permission denied' in str(error), error\n"
        "    else: raise SystemExit(other)"
    )
    result = topology.exec(service, "python", "-c", code)
    assert result.returncode == 0, result.stdout + result.stderr


def test_stopping_drains_and_ends_well(topology: Topology) -> None:
    for service in ("gateway", "notifications", "items", "users"):
        assert topology.stop(service) == 0, topology.logs(service)[-2000:]
