"""Alembic environment of the items service."""

from shared import outbox
from shared.migrations import run_env

from items.models import Base

run_env(Base.metadata, outbox.metadata)
