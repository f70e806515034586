"""The promises of `make run`, on real PostgreSQL and NATS with stand-ins for the services."""

import json
import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

pytestmark = pytest.mark.integration

Stack = Any  # the class lives in conftest.py, which tests do not import
SERVICES = ("gateway", "users", "items", "notifications")
NAMES = (*SERVICES, "nats", "postgres")


def events(stack: Stack) -> list[str]:
    """What was said, in order."""
    return [json.loads(line)["event"] for line in stack.lines if line.startswith("{")]


def test_it_starts_in_dependency_order_and_stops_in_the_opposite_one(stack: Stack) -> None:
    stack.start().ready()
    pids = {name: stack.pid(name) for name in NAMES}
    assert all(psutil.pid_exists(pid) for pid in pids.values())
    assert stack.stop() == 0
    said = events(stack)
    positions = [said.index(f"{name} ready on port {port + stack.offset}") for name, port in STARTING]
    assert positions[:1] + positions[2:] == sorted(positions[:1] + positions[2:])
    assert all(said.index(f"{name} migrate done") < said.index(f"{name} serves") for name in SERVICES[1:])
    assert said.index("streams declare done") < said.index("users serves")
    drained = [said.index(f"{name} drained") for name in ("gateway", "items", "users")]
    assert drained == sorted(drained)
    assert stack.leaves_nothing()


STARTING = (("postgres", 15432), ("nats", 14222), ("users", 8001), ("items", 8002), ("gateway", 8000))


def test_a_second_start_finds_the_data_and_the_same_passwords(stack: Stack) -> None:
    stack.start().ready()
    dsn = stack.knows("items")["environ"]["ITEMS_DATABASE_URL"]
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    assert stack.stop() == 0
    stack.start().ready()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
    assert stack.stop(signal.SIGINT) == 0


def test_a_service_knows_its_own_secrets_only(stack: Stack) -> None:
    stack.start(
        ITEMS_COLOUR="red", USERS_ADMIN_PASSWORD="of the admin", DATABASE_URL="postgresql://elsewhere"
    ).ready()
    items, users = stack.knows("items")["environ"], stack.knows("users")["environ"]
    assert users["USERS_ADMIN_PASSWORD"] == "of the admin"
    assert not [name for name in items if name.startswith(("USERS_", "NOTIFICATIONS_", "GATEWAY_"))]
    assert users["USERS_DATABASE_URL"] not in items.values()
    assert items["ITEMS_COLOUR"] == "red"
    assert items["TOKEN_ISSUER"] == f"http://127.0.0.1:{8000 + stack.offset}"
    for name in ("credentials.json", "nats.conf"):
        assert (stack.data_dir / name).stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="concerns root")
def test_root_runs_postgres_as_an_unprivileged_account(stack: Stack) -> None:
    stack.start().ready()
    assert psutil.Process(stack.pid("postgres")).uids().effective != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="concerns root")
def test_root_may_keep_its_clone_where_nobody_else_can_look(stack: Stack) -> None:
    stack.data_dir.parent.chmod(0o700)
    stack.start().ready()
    home = stack.data_dir / "postgres"
    assert home.is_symlink()
    target = home.resolve()
    assert stack.stop() == 0
    assert stack.start("clean").ends() == 0
    assert not target.exists()
    assert not stack.data_dir.exists()


@pytest.mark.parametrize("name", [*SERVICES, "nats", "postgres"])
def test_a_killed_process_is_reported_and_restarted(stack: Stack, name: str) -> None:
    stack.start().ready()
    first = stack.pid(name)
    os.kill(first, signal.SIGKILL)
    assert "SIGKILL" in stack.says(f"{name} was ended by")
    stack.says(f"{name} is back after")
    assert stack.pid(name) != first
    assert stack.stop() == 0
    assert stack.leaves_nothing()


def test_the_report_of_a_death_ends_with_the_last_lines(stack: Stack) -> None:
    stack.start().ready()
    os.kill(stack.pid("items"), signal.SIGKILL)
    assert "items serves" in stack.says("items was ended by SIGKILL")


def test_a_worker_of_a_killed_service_does_not_stay(stack: Stack) -> None:
    stack.start(STANDIN_ITEMS="fork").ready()
    worker = psutil.Process(stack.knows("items")["worker"])
    os.kill(stack.pid("items"), signal.SIGKILL)
    stack.says("items is back after")
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_next_start_after_the_supervisor_was_killed_is_clean(stack: Stack) -> None:
    stack.start(STANDIN_ITEMS="fork").ready()
    worker = psutil.Process(stack.knows("items")["worker"])
    with psycopg.connect(stack.knows("items")["environ"]["ITEMS_DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    stack.stop(signal.SIGKILL)
    stack.start(STANDIN_ITEMS="fork").ready()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert "that a killed run had left" in stack.output
    with psycopg.connect(stack.knows("items")["environ"]["ITEMS_DATABASE_URL"]) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
    assert stack.stop() == 0
    assert stack.leaves_nothing()


def test_everything_killed_at_once_starts_again(stack: Stack) -> None:
    stack.start().ready()
    for pid in [stack.process.pid, *(stack.pid(name) for name in NAMES)]:
        with suppress(ProcessLookupError):  # they end with the supervisor, if the kernel is faster
            os.kill(pid, signal.SIGKILL)
    stack.ends()
    stack.start().ready()
    assert stack.stop() == 0


def test_a_service_that_cannot_start_ends_everything_with_its_last_lines(stack: Stack) -> None:
    stack.start(STANDIN_ITEMS="crash")
    assert stack.ends() == 1
    assert "items ended with exit code 7 3 times in a row before it was ready" in stack.output
    assert stack.lines[-1].strip() == "items cannot go on"
    assert stack.leaves_nothing()


def test_refused_settings_end_everything_at_once(stack: Stack) -> None:
    stack.start(STANDIN_ITEMS="refuse")
    assert stack.ends() == 1
    assert "items migrate ended with exit code 2" in stack.output
    assert "ITEMS_COLOUR is not set" in stack.lines[-1]
    assert stack.leaves_nothing()


def test_a_deaf_service_is_killed_after_its_deadline(stack: Stack) -> None:
    stack.start(STANDIN_USERS="deaf", SHUTDOWN_TIMEOUT="1").ready()
    assert stack.stop() == 0
    assert "users did not stop within 6 s: killing it." in stack.output
    assert stack.leaves_nothing()


def test_a_second_ctrl_c_waits_for_nobody(stack: Stack) -> None:
    stack.start(STANDIN_USERS="deaf", SHUTDOWN_TIMEOUT="600").ready()
    stack.process.send_signal(signal.SIGINT)
    stack.says("stopping;")
    assert stack.stop(signal.SIGINT) == 0
    assert stack.leaves_nothing()


def test_ctrl_c_during_the_start_stops_what_there_is(stack: Stack) -> None:
    stack.start()
    stack.says("nats ready")
    assert stack.stop(signal.SIGINT) == 0
    assert "ready." not in events(stack)
    assert stack.leaves_nothing()


def test_a_busy_port_names_the_port_its_owner_and_the_way_out(stack: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 8002 + stack.offset))
        taken.listen()
        stack.start()
        assert stack.ends() == 2
    assert f"Port {8002 + stack.offset} (items) is in use" in stack.lines[-1]
    assert f"(pid {os.getpid()})" in stack.lines[-1]
    assert "PORT_OFFSET" in stack.lines[-1]


def test_two_stacks_run_side_by_side(stack: Stack, tmp_path: Path) -> None:
    stack.start().ready()
    other = type(stack)(stack.data_dir.with_name("other"), tmp_path)
    try:
        other.start().ready()
        assert psutil.pid_exists(stack.pid("postgres"))
        assert other.stop() == 0
        assert all(psutil.pid_exists(stack.pid(name)) for name in NAMES)
    finally:
        other.process.kill()


def test_one_data_dir_serves_one_stack(stack: Stack) -> None:
    stack.start().ready()
    second = type(stack)(stack.data_dir, stack.folder)
    assert second.start().ends() == 2
    assert len(second.lines) == 1
    assert f"(pid {stack.process.pid})" in second.lines[0]
    assert stack.stop() == 0


def test_gateway_port_moves_with_the_offset(stack: Stack) -> None:
    stack.start(GATEWAY_PORT="8050").ready()
    assert stack.knows("gateway")["environ"]["GATEWAY_PORT"] == str(8050 + stack.offset)
    assert f"http://127.0.0.1:{8050 + stack.offset}" in stack.lines[-1]


def test_people_get_urls_and_three_commands(stack: Stack) -> None:
    stack.start(LOG_FORMAT="console")
    stack.says("Ctrl-C stops everything")
    url = f"http://127.0.0.1:{8000 + stack.offset}"
    assert [line.split()[0] for line in stack.lines if f"{url}/v1/" in line] == [
        "curl",
        "TOKEN=$(curl",
        "curl",
    ]
    assert any(line.split() == ["gateway", url] for line in stack.lines)


def test_dev_restarts_the_service_whose_sources_change(stack: Stack) -> None:
    for source in ("services/items/src", "services/users/src", "shared/src"):
        (stack.folder / source).mkdir(parents=True)
    stack.start("dev")
    stack.says("watching 3 folders")
    before = {name: stack.pid(name) for name in NAMES}
    (stack.folder / "services/items/src/routes.py").write_text("# changed")
    stack.says("services/items/src/routes.py changed: restarting items.")
    stack.says("items is back after")
    assert stack.pid("items") != before["items"]
    assert stack.pid("users") == before["users"]
    (stack.folder / "shared/src/app.py").write_text("# changed")
    for name in ("users", "notifications", "gateway"):
        stack.says(f"{name} is back after")
    assert stack.stop() == 0
    assert stack.leaves_nothing()


def test_dev_survives_what_does_not_run_until_it_is_mended(stack: Stack) -> None:
    migrations = stack.folder / "services/items/migrations"
    migrations.mkdir(parents=True)
    stack.start("dev")
    stack.says("watching 1 folders")
    first = stack.pid("items")
    broken = stack.folder / "items.broken"
    broken.touch()
    (migrations / "0002.py").write_text("# not yet right")
    stack.says("items migrate ended with exit code 1")
    assert stack.pid("items") == first
    os.kill(first, signal.SIGKILL)
    stack.says("items ended with exit code 1; starting it again")
    broken.unlink()
    stack.says("items is back after")
    (migrations / "0002.py").write_text("# right")
    stack.says("0002.py changed: restarting items.")
    assert stack.stop() == 0
    assert stack.leaves_nothing()
