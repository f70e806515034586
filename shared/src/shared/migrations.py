"""Runs a service's Alembic migrations, one migrator at a time, never holding a lock others queue behind for long."""

import importlib
import sys
import time
from pathlib import Path
from typing import Any, Literal

from alembic import command, context, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, create_engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError

from shared.settings import DatabaseSettings

LOCK_TIMEOUT = "2s"
_SESSION = (
    f"SET lock_timeout = '{LOCK_TIMEOUT}'",
    "SET statement_timeout = 0",
)
"""A long backfill is the migration's own business, a queue behind its locks is not."""
LOCK_POLL_INTERVAL = 0.1
"""Seconds between two tries to become the one migrator."""
SCHEMA_TIMEOUT = 600.0
"""Seconds that a process waits for its schema: somebody else's migration may be a long one."""
SCHEMA_POLL_INTERVAL = 1.0
_MIGRATION_LOCK = 7_305_811_001
"""Session advisory lock that makes concurrent migrators wait for each other."""


def alembic_config(settings: DatabaseSettings) -> Config:
    """Return the Alembic configuration of a service."""
    config = Config()
    config.set_main_option("script_location", str(migrations_dir(settings)))
    config.set_main_option("path_separator", "os")
    config.attributes["database_url"] = settings.database_url.get_secret_value()
    return config


def migrations_dir(settings: DatabaseSettings) -> Path:
    """Return `MIGRATIONS_DIR`, or the folder `migrations` beside the service's `src`."""
    if settings.migrations_dir is not None:
        return settings.migrations_dir
    package = importlib.import_module(settings.service)
    return Path(str(package.__file__)).resolve().parents[2] / "migrations"


def upgrade(settings: DatabaseSettings) -> None:
    """Bring the database to the newest revision, or end the process with one sentence when it cannot be worked with.

    A database that a newer version has migrated is left as it is: this version can run on it.
    """
    try:
        if _standing(settings) == "newer":
            print(f"{settings.service}: a newer version has migrated the database; nothing to do.")  # noqa: T201
            return
        command.upgrade(alembic_config(settings), "head")
    except OperationalError as error:
        sys.exit(f"{settings.service}: the database could not be migrated: {_reason(error)}")


def await_schema(settings: DatabaseSettings) -> None:
    """Return once the database is at least as new as this version, whoever migrates it.

    The process ends with one sentence if that takes longer than SCHEMA_TIMEOUT.
    """
    deadline = time.monotonic() + SCHEMA_TIMEOUT
    standing = ""
    while True:
        try:
            standing = _standing(settings)
        except OperationalError as error:
            standing = _reason(error)
        if standing in ("current", "newer"):
            return
        if time.monotonic() > deadline:
            sys.exit(f"{settings.service}: the database is not migrated: {standing}")
        time.sleep(SCHEMA_POLL_INTERVAL)


def _standing(settings: DatabaseSettings) -> Literal["empty", "older", "current", "newer"]:
    """Compare the database's revision with those that this version knows."""
    script = ScriptDirectory.from_config(alembic_config(settings))
    engine = _engine(settings.database_url.get_secret_value())
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return "empty"
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    finally:
        engine.dispose()
    if revision is None:
        return "empty"
    if revision == script.get_current_head():
        return "current"
    known = {entry.revision for entry in script.walk_revisions()}
    return "older" if revision in known else "newer"


def _engine(url: str) -> Engine:
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), connect_args={"connect_timeout": 10}
    )


def _reason(error: OperationalError) -> str:
    return str(error.orig).strip().partition("\n")[0]


def create_index_concurrently(name: str, table: str, columns: list[Any], **options: Any) -> None:
    """Make an index on a table that is in use, or make it anew, in nobody's way; for migrations.

    It commits what the migration did before. An index of this name goes first: an attempt that failed leaves one that
    is not valid. Transactions that are at work are waited for, as nobody queues behind that.
    """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.drop_index(name, table, postgresql_concurrently=True, if_exists=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **options)
        op.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")


def run_env(*metadata: MetaData) -> None:
    """Do the work of a service's Alembic `env.py`."""
    engine = context.config.attributes.get("connection")
    if engine is not None:  # a test's own database
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                target_metadata=list(metadata),
                compare_server_default=True,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations()
        return
    if context.is_offline_mode():  # `upgrade --sql`: the statements, for review
        context.configure(dialect_name="postgresql", literal_binds=True, transaction_per_migration=True)
        for setting in _SESSION:
            context.execute(setting)
        with context.begin_transaction():
            context.run_migrations()
        return
    engine = _engine(context.config.attributes["database_url"])
    try:
        with engine.connect() as connection:
            # Another migrator is waited for as long as it takes.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            # Asking again and again: making an index concurrently would wait for a statement that waits, and it for that.
            while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _MIGRATION_LOCK}):
                time.sleep(LOCK_POLL_INTERVAL)
            connection.commit()
            connection.execution_options(isolation_level="READ COMMITTED")
            for setting in _SESSION:
                connection.execute(text(setting))
            connection.commit()
            context.configure(
                connection=connection, target_metadata=list(metadata), transaction_per_migration=True
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()
