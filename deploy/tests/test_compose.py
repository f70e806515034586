"""docker-compose.yml: valid, complete, hardened, and in step with the services' settings."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.generate import nats_authorization
from deploy.image.tests.topology import COMPOSE, read_compose
from deploy.settings_page import is_secret, settings_classes

from shared.settings import DatabaseSettings, Settings
from stack import nats, postgres
from stack.services import TOLLHOUSE

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SERVICES = {spec.name: spec for spec in TOLLHOUSE.services}
DATABASES = {spec.name for spec in TOLLHOUSE.services if spec.database}
COMPOSED = read_compose({})
SETTINGS = settings_classes()
IN_EVERY_IMAGE = {"BIND_HOST": "0.0.0.0", "PORT": "8000", "LOG_FORMAT": "json"}


def environment_of(container: str) -> dict[str, str]:
    environment: dict[str, str] = COMPOSED["services"][container].get("environment", {})
    return environment


def program_of(container: str) -> str:
    return "streams" if container == "streams" else container.removeprefix("migrate-")


OURS = [name for name in COMPOSED["services"] if program_of(name) in SETTINGS]


def variables_of(settings: type[Settings]) -> Iterator[tuple[str, str]]:
    """The variables that a settings class reads, with the field of each."""
    for field in settings.model_fields:
        names = [f"{settings.service}_{field}"] + ([field] if field in Settings.model_fields else [])
        for name in names:
            yield name.upper(), field
            yield f"{name}_FILE".upper(), field


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder of secrets, made by the script in a clone of its own."""
    script = tmp_path / "deploy/compose/secrets.sh"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "deploy/compose/secrets.sh").read_bytes())
    subprocess.run(["sh", script], check=True)
    return tmp_path / ".secrets"


def test_is_a_valid_compose_file() -> None:
    check = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_every_service_is_there_with_its_migration() -> None:
    named = set(COMPOSED["services"])
    assert set(SERVICES) <= named
    assert {f"migrate-{one}" for one in DATABASES} == {one for one in named if one.startswith("migrate-")}
    for service in SERVICES:
        assert COMPOSED["services"][service]["build"]["args"] == {"SERVICE": service}


@pytest.mark.parametrize("container", OURS)
def test_every_variable_is_a_setting(container: str) -> None:
    assert set(environment_of(container)) <= dict(variables_of(SETTINGS[program_of(container)])).keys()


@pytest.mark.parametrize("container", OURS)
def test_every_required_setting_is_given_and_secrets_by_file_only(container: str) -> None:
    settings = SETTINGS[program_of(container)]
    known = dict(variables_of(settings))
    given = {known[variable] for variable in {**environment_of(container), **IN_EVERY_IMAGE}}
    assert {field for field, info in settings.model_fields.items() if info.is_required()} <= given
    if not container.startswith("migrate-"):
        assert "nats_password" in given
    for variable, value in environment_of(container).items():
        if is_secret(settings.model_fields[known[variable]]) and value:
            assert variable.endswith("_FILE"), f"{variable} would be shown by `docker inspect`"
            assert value.removeprefix("/run/secrets/") in COMPOSED["services"][container]["secrets"]


@pytest.mark.parametrize("container", OURS)
def test_the_settings_are_accepted(container: str, monkeypatch: pytest.MonkeyPatch, secrets: Path) -> None:
    for variable, value in {**IN_EVERY_IMAGE, **environment_of(container)}.items():
        monkeypatch.setenv(variable, value.replace("/run/secrets", str(secrets)))

    settings = SETTINGS[program_of(container)].load()

    if isinstance(settings, DatabaseSettings):
        url = settings.database_url.get_secret_value()
        assert re.fullmatch(
            rf"postgresql://{settings.service}:\w{{32}}@postgres:5432/{settings.service}", url
        )


def test_the_script_makes_every_secret_once(secrets: Path) -> None:
    made = {path.name: path.read_text() for path in secrets.iterdir()}
    assert {f"./.secrets/{name}" for name in made} == {one["file"] for one in COMPOSED["secrets"].values()}
    assert len(set(made.values())) == len(made)
    assert all(made.values())
    assert secrets.stat().st_mode & 0o777 == 0o700

    (secrets / "postgres_password").unlink()
    subprocess.run(["sh", secrets.parent / "deploy/compose/secrets.sh"], check=True)

    again = {path.name: path.read_text() for path in secrets.iterdir()}
    assert again.pop("postgres_password") != made.pop("postgres_password")
    assert again == made


def test_each_secret_is_mounted_where_it_is_needed_only() -> None:
    for secret in COMPOSED["secrets"]:
        users = {name for name, spec in COMPOSED["services"].items() if secret in spec.get("secrets", ())}
        owner = secret.partition("_")[0]
        if owner == "operator":
            allowed = {"streams"}
        elif secret.endswith("_database_password"):
            allowed = {"postgres"}
        else:
            allowed = {owner, f"migrate-{owner}"}
        assert users, secret
        assert users <= allowed, secret


def test_nothing_secret_is_committed_or_built_in() -> None:
    assert ".secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule for rule in rules if rule.startswith("!")}
    assert let_in == {"!pyproject.toml", "!uv.lock", "!gateway", "!services", "!shared", "!deploy/image"}


def test_only_the_gateway_is_published() -> None:
    published = {name: spec for name, spec in COMPOSED["services"].items() if "ports" in spec}
    assert [name for name, spec in published.items() if "profiles" not in spec] == ["gateway"]
    for spec in published.values():
        assert all(port.startswith("127.0.0.1:") for port in spec["ports"])


@pytest.mark.parametrize("container", COMPOSED["services"])
def test_has_no_right_it_does_not_need_and_a_limit(container: str) -> None:
    spec = COMPOSED["services"][container]
    assert spec["init"] is True
    assert spec["read_only"] is True
    assert spec["cap_drop"] == ["ALL"]
    assert spec["security_opt"] == ["no-new-privileges:true"]
    assert spec["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert spec["logging"]["options"]["max-size"]
    assert "cap_add" not in spec or container == "postgres"
    assert "privileged" not in spec


def test_starts_in_the_order_of_need() -> None:
    def needs(container: str) -> dict[str, str]:
        named = COMPOSED["services"][container]["depends_on"]
        return {name: how["condition"] for name, how in named.items()}

    healthy, done = "service_healthy", "service_completed_successfully"
    assert needs("streams") == {"nats": healthy}
    for service, spec in SERVICES.items():
        migrated = {f"migrate-{service}": done} if spec.database else {}
        assert needs(service) == {"streams": done, **migrated, **dict.fromkeys(spec.after, healthy)}
        if spec.database:
            assert needs(f"migrate-{service}") == {"postgres": healthy}


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_outlives_its_drain(service: str) -> None:
    drain = int(environment_of(service)["SHUTDOWN_TIMEOUT"])
    assert int(COMPOSED["services"][service]["stop_grace_period"].removesuffix("s")) >= drain + 5


def test_databases_are_reached_by_their_services_only() -> None:
    inside = {name for name, spec in COMPOSED["services"].items() if "databases" in spec["networks"]}
    assert inside == {"postgres", *DATABASES, *(f"migrate-{service}" for service in DATABASES)}
    for network in ("services", "events", "databases"):
        assert COMPOSED["networks"][network]["internal"] is True


def test_roles_have_the_time_outs_of_every_deployment() -> None:
    script = (ROOT / "deploy/compose/databases.sh").read_text()
    found = dict(re.findall(r"ALTER ROLE :\"name\" SET (\w+) = '(\w+)';", script))
    assert found == dict(postgres.ROLE_SETTINGS)


def test_the_server_of_nats_takes_its_configuration(tmp_path: Path, secrets: Path) -> None:
    config = (ROOT / "deploy/compose/nats.conf").read_text()
    assert nats_authorization() in config
    place = tmp_path / "etc/nats/nats.conf"
    place.parent.mkdir(parents=True)
    place.write_text(config)
    (tmp_path / "run").mkdir()
    secrets.rename(tmp_path / "run/secrets")
    binary = nats.command(nats.Server(place, 0, "")).argv[0]
    result = subprocess.run([binary, "-t", "--config", place], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_has_metrics_is_scraped() -> None:
    config = (ROOT / "deploy/compose/prometheus.yml").read_text()
    expected = set()
    for service in SERVICES:
        if "metrics_port" in SETTINGS[service].model_fields:
            environment = {
                name.removeprefix(f"{service.upper()}_"): value
                for name, value in environment_of(service).items()
            }
            expected.add((service, environment["METRICS_PORT"]))
            assert environment["METRICS_BIND_HOST"] == "0.0.0.0"
    assert set(re.findall(r'"([\w-]+):(\d+)"', config)) == expected
