"""Runs a service's Alembic migrations, one migrator at a time, never holding a lock others queue behind for long."""

import importlib
from pathlib import Path

from alembic import command, context
from alembic.config import Config
from sqlalchemy import MetaData, create_engine, make_url, text

from shared.settings import DatabaseSettings

LOCK_TIMEOUT = "2s"
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
    """Bring the database to the newest revision."""
    command.upgrade(alembic_config(settings), "head")


def run_env(*metadata: MetaData) -> None:
    """Do the work of a service's Alembic `env.py`."""
    connection = context.config.attributes.get("connection")
    if connection is not None:  # a test's own connection
        context.configure(connection=connection, target_metadata=list(metadata), compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    url = make_url(context.config.attributes["database_url"]).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"connect_timeout": 10})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
            connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
            # A long backfill is the migration's own business, a queue behind its locks is not.
            connection.execute(text("SET statement_timeout = 0"))
            connection.commit()
            context.configure(
                connection=connection, target_metadata=list(metadata), transaction_per_migration=True
            )
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()
