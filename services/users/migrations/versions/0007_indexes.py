"""Indexes for what is deleted by its age, and for the search of accounts."""

from alembic import op

from shared.migrations import create_index_concurrently

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A trusted extension: the owner of a database may create it.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    for table in ("sessions", "mailed_codes"):
        create_index_concurrently(f"ix_{table}_expires_at", table, ["expires_at"])
    create_index_concurrently(
        "ix_users_search",
        "users",
        ["email", "full_name"],
        postgresql_using="gin",
        postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
    )


def downgrade() -> None:
    op.drop_index("ix_users_search", "users")
    op.drop_index("ix_mailed_codes_expires_at", "mailed_codes")
    op.drop_index("ix_sessions_expires_at", "sessions")
    op.execute("DROP EXTENSION pg_trgm")
