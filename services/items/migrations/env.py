"""Alembic environment of the items service."""

from items.models import Base
from shared import idempotency, outbox
from shared.migrations import run_env

run_env(Base.metadata, outbox.metadata, idempotency.metadata)
