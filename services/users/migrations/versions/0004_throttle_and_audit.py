"""Failed logins are counted, sensitive acts are on record."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")


def upgrade() -> None:
    op.create_table(
        "login_failures",
        sa.Column("account", sa.LargeBinary, primary_key=True),
        sa.Column("address", sa.Text, primary_key=True),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
    )
    op.create_index("ix_login_failures_last_at", "login_failures", ["last_at"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("actor_id", sa.BigInteger),
        sa.Column("subject_user_id", sa.BigInteger),
        sa.Column("address", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("detail", JSONB, nullable=False, server_default="{}"),
    )
    op.create_index("ix_audit_at", "audit", ["at"])
    op.create_index("ix_audit_subject_user_id", "audit", ["subject_user_id", "at"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_table("login_failures")
