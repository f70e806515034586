"""The migrations of every service: they lead to the models, back again, and hold no lock that others queue behind."""

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from pytest_alembic.tests import (
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Engine, create_engine, make_url

from items.settings import ItemsSettings
from notifications.settings import NotificationsSettings
from shared import migrations
from shared.ids import new_id
from shared.settings import DatabaseSettings
from shared.testing import eventually
from stack import postgres
from stack.testing import ANY_KEY
from users.settings import UsersSettings

__all__ = [
    "test_model_definitions_match_ddl",
    "test_single_head_revision",
    "test_up_down_consistency",
    "test_upgrade",
]

pytestmark = pytest.mark.integration

TOLERATED = (
    "prefer-bigint-over-int",  # versions of one row: nothing is changed two thousand million times
    "prefer-text-field",  # Alembic's own table of revisions
    "prefer-robust-stmts",  # each migration is one transaction: there is no half of one to run again
)


@pytest.fixture(
    params=[ItemsSettings, NotificationsSettings, UsersSettings], ids=lambda kind: str(kind.service)
)
def service(request: pytest.FixtureRequest) -> type[DatabaseSettings]:
    """The settings of the service whose migrations are tested."""
    kind: type[DatabaseSettings] = request.param
    return kind


@pytest.fixture
def database_url(postgres_dsn: str) -> Iterator[str]:
    """An empty database with the role of the service."""
    name = f"migrated_{new_id().replace('-', '')}"
    yield postgres.create_service_database(postgres_dsn, name, "tests")
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        admin.execute(f'DROP ROLE "{name}"')


@pytest.fixture
def alembic_config(service: type[DatabaseSettings], database_url: str) -> Config:
    """What pytest-alembic asks for by this name."""
    settings = service.model_construct(database_url=SecretStr(database_url), migrations_dir=None)
    return migrations.alembic_config(settings)


@pytest.fixture
def alembic_engine(database_url: str) -> Iterator[Engine]:
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


async def _migrate(service: str, database_url: str, verb: str = "migrate") -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        service,
        verb,
        env={
            **os.environ,
            f"{service.upper()}_DATABASE_URL": database_url,
            "USERS_KEY_ENCRYPTION_KEY": ANY_KEY,
            "ITEMS_CURSOR_KEY": ANY_KEY,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_two_migrators_at_once_both_succeed(service: type[DatabaseSettings], database_url: str) -> None:
    outcomes = await asyncio.gather(
        _migrate(service.service, database_url), _migrate(service.service, database_url)
    )

    assert [code for code, _ in outcomes] == [0, 0], outcomes
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


async def test_migrator_waits_for_another_one_longer_than_its_role_may_wait_for_locks(
    service: type[DatabaseSettings], database_url: str
) -> None:
    impatient = f"{database_url}?options=-clock_timeout%3D50ms%20-cstatement_timeout%3D50ms"
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations._MIGRATION_LOCK])
        migrating = asyncio.create_task(_migrate(service.service, impatient))
        waited = 0
        while waited < 5:  # five looks of 50 ms, all of them after the migrator has come to wait
            await asyncio.to_thread(other.execute, "SELECT pg_sleep(0.05)")
            waited += bool(
                other.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
                    "AND pid <> pg_backend_pid() AND query LIKE '%pg_try_advisory_lock%'"
                ).fetchone()
            )
            assert not migrating.done(), migrating.result()
        other.execute("SELECT pg_advisory_unlock(%s)", [migrations._MIGRATION_LOCK])

        assert await migrating == (0, "")


async def test_whoever_waits_for_the_schema_goes_on_once_it_is_there(
    service: type[DatabaseSettings], database_url: str
) -> None:
    waiting = asyncio.create_task(_migrate(service.service, database_url, "await-schema"))
    looked = "SELECT 1 FROM pg_stat_database WHERE datname = current_database() AND sessions > 1"
    with psycopg.connect(database_url, autocommit=True) as other:
        await eventually(lambda: other.execute(looked).fetchone(), within=30)
        assert not waiting.done(), waiting.result()

    assert (await _migrate(service.service, database_url))[0] == 0
    assert await waiting == (0, "")


async def test_an_earlier_version_leaves_a_newer_schema_alone(
    service: type[DatabaseSettings], database_url: str
) -> None:
    assert (await _migrate(service.service, database_url))[0] == 0
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of-next-year'")

    assert await _migrate(service.service, database_url) == (0, "")
    assert await _migrate(service.service, database_url, "await-schema") == (0, "")

    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("of-next-year",)


def test_a_schema_that_does_not_come_ends_the_wait_with_a_sentence(
    service: type[DatabaseSettings], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "SCHEMA_TIMEOUT", 0.0)
    settings = service.model_construct(database_url=SecretStr(database_url), migrations_dir=None)
    with pytest.raises(SystemExit, match=f"{service.service}: the database is not migrated: empty"):
        migrations.await_schema(settings)


async def test_database_that_cannot_be_reached_is_one_sentence(service: type[DatabaseSettings]) -> None:
    code, errors = await _migrate(service.service, "postgresql://nobody:hidden@127.0.0.1:1/nothing")

    assert code == 1
    assert errors.startswith(f"{service.service}: the database could not be migrated: ")
    assert errors.count("\n") == 1
    assert "hidden" not in errors


def test_statements_are_safe_on_a_live_database(alembic_config: Config, tmp_path: Path) -> None:
    statements = io.StringIO()
    alembic_config.output_buffer = statements
    command.upgrade(alembic_config, "head", sql=True)
    script = tmp_path / "upgrade.sql"
    script.write_text(statements.getvalue(), encoding="utf-8")

    squawk = Path(sys.executable).with_name("squawk")
    judged = subprocess.run(  # noqa: S603  # our own tool on our own file
        [squawk, "--pg-version=18", f"--exclude={','.join(TOLERATED)}", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )

    assert "CREATE TABLE outbox" in statements.getvalue()
    assert judged.returncode == 0, judged.stdout
