"""Alembic environment of the users service."""

from shared import outbox
from shared.migrations import run_env
from users.models import Base

run_env(Base.metadata, outbox.metadata)
