"""Requests for codes wait in a table; what is deleted by age and what is searched for has indexes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "code_requests",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("address", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
    )
    # A trusted extension: the owner of a database may create it.
    op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    with op.get_context().autocommit_block():
        for table, column in (("sessions", "expires_at"), ("mailed_codes", "expires_at")):
            op.create_index(
                f"ix_{table}_{column}",
                table,
                [column],
                postgresql_concurrently=True,
                if_not_exists=True,
            )
        op.create_index(
            "ix_users_search",
            "users",
            ["email", "full_name"],
            postgresql_using="gin",
            postgresql_ops={"email": "gin_trgm_ops", "full_name": "gin_trgm_ops"},
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def downgrade() -> None:
    op.drop_index("ix_users_search", "users")
    op.drop_index("ix_mailed_codes_expires_at", "mailed_codes")
    op.drop_index("ix_sessions_expires_at", "sessions")
    op.execute("DROP EXTENSION pg_trgm")
    op.drop_table("code_requests")
