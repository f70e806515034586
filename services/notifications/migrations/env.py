"""Alembic environment of the notifications service."""

from notifications.models import Base
from shared import idempotency, outbox
from shared.migrations import run_env

run_env(Base.metadata, outbox.metadata, idempotency.metadata)
