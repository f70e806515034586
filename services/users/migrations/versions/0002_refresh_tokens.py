"""Sessions that last, and their refresh tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")


def upgrade() -> None:
    # Sessions of before have no refresh token: for them `expires_at` is when this ran, and nothing asks.
    op.add_column("sessions", sa.Column("scopes", sa.ARRAY(sa.Text), nullable=False, server_default="{}"))
    op.add_column("sessions", sa.Column("label", sa.Text))
    op.add_column("sessions", sa.Column("address", sa.Text))
    for name in ("last_used_at", "expires_at"):
        op.add_column(
            "sessions", sa.Column(name, sa.DateTime(timezone=True), nullable=False, server_default=_NOW)
        )
    op.add_column("sessions", sa.Column("revoked_at", sa.DateTime(timezone=True)))
    op.create_table(
        "refresh_tokens",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("session_id", sa.Text, sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=_NOW),
        sa.Column("used_at", sa.DateTime(timezone=True)),
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])


def downgrade() -> None:
    op.drop_table("refresh_tokens")
    for name in ("revoked_at", "expires_at", "last_used_at", "address", "label", "scopes"):
        op.drop_column("sessions", name)
