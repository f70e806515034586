"""The embedded PostgreSQL server and the roles of the services, on a server of the module's own."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from shared.testing import free_port
from stack import command, postgres
from stack.errors import StackError

pytestmark = pytest.mark.integration

Server = tuple[postgres.Cluster, int]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="cluster-"))
    made.chmod(0o755)
    yield made
    postgres.discard(made)
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    cluster, port = postgres.prepare(folder, "it's a secret", durable=False), free_port()
    process = command.spawn(postgres.command(cluster, port, postgres.VOLATILE), stderr=subprocess.DEVNULL)
    postgres.wait_ready(cluster.dsn(port), alive=lambda: process.poll() is None)
    yield cluster, port
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_a_service_owns_its_database_and_can_enter_no_other(server: Server) -> None:
    cluster, port = server
    red = postgres.create_service_database(cluster.dsn(port), "red", "p/w'd@%")
    postgres.create_service_database(cluster.dsn(port), "blue", "other")
    with psycopg.connect(red) as connection:
        connection.execute("CREATE SCHEMA own; CREATE TABLE own.things (id int)")
    for database in ("blue", "postgres", "template1"):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(postgres.dsn("red", "p/w'd@%", port, database))


def test_a_service_role_has_timeouts(server: Server) -> None:
    cluster, port = server
    with psycopg.connect(postgres.create_service_database(cluster.dsn(port), "timed", "x")) as connection:
        for setting, value in postgres.ROLE_SETTINGS.items():
            assert connection.execute(f"SHOW {setting}".encode()).fetchone() == (value,)


def test_creating_again_keeps_the_data_and_replaces_the_password(server: Server) -> None:
    cluster, port = server
    old = postgres.create_service_database(cluster.dsn(port), "again", "old")
    with psycopg.connect(old) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    new = postgres.create_service_database(cluster.dsn(port), "again", "new")
    with psycopg.connect(new) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(old)


def test_passwords_are_kept_as_scram_and_nobody_is_trusted(server: Server, folder: Path) -> None:
    cluster, port = server
    postgres.create_service_database(cluster.dsn(port), "scram", "x")
    with psycopg.connect(cluster.dsn(port)) as admin:
        stored = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolcanlogin").fetchall()
        methods = admin.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert all(verifier.startswith("SCRAM-SHA-256$") for (verifier,) in stored)
    assert methods == [("scram-sha-256",)]
    assert (folder / "postgres").stat().st_mode & 0o077 == 0


def test_a_password_that_does_not_fit_is_said_plainly(server: Server) -> None:
    _, port = server
    with pytest.raises(StackError, match="password does not fit"):
        postgres.is_ready(postgres.dsn("postgres", "wrong", port))


def test_preparing_again_changes_nothing(server: Server, folder: Path) -> None:
    assert postgres.prepare(folder, "it's a secret") == server[0]
    assert postgres.serves(
        int((folder / "postgres" / "postmaster.pid").read_text().split("\n")[0]), folder / "postgres"
    )


def test_a_server_that_dies_is_not_waited_for() -> None:
    with pytest.raises(StackError, match="ended before it was ready"):
        postgres.wait_ready(postgres.dsn("postgres", "x", free_port()), alive=lambda: False)
    with pytest.raises(StackError, match="not ready within 0 s"):
        postgres.wait_ready(postgres.dsn("postgres", "x", free_port()), alive=lambda: True, timeout=0)


def test_a_foreign_process_with_the_old_number_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    pid_file = tmp_path / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{tmp_path}\n")
    postgres.clear_stale_pid_file(tmp_path)
    assert not pid_file.exists()
    postgres.clear_stale_pid_file(tmp_path)  # none there: fine


def test_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(StackError, match=r"made by PostgreSQL 9\.6 and this is 18"):
        postgres.prepare(tmp_path, "x")


def test_an_interrupted_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Path(tempfile.mkdtemp(dir=tmp_path))
    monkeypatch.setattr(postgres, "_binaries", lambda _account: wrong)
    (wrong / "initdb").write_text(
        "#!/bin/sh\necho 'initdb: error: no space left'\necho 'initdb: removing'\nexit 1\n"
    )
    (wrong / "initdb").chmod(0o755)
    for folder in (wrong, *wrong.parents):
        if folder.is_relative_to(tempfile.gettempdir()) and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    with pytest.raises(StackError, match="could not create its data folder: initdb: error: no space left"):
        postgres.prepare(tmp_path, "x")
    assert list(tmp_path.iterdir()) == [wrong]
