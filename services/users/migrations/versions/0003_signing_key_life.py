"""Signing keys are published before they sign."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Keys of before have signed ever since they were made; `now()` keeps their order, there being only one.
    op.add_column(
        "signing_keys",
        sa.Column("signs_from", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
    )


def downgrade() -> None:
    op.drop_column("signing_keys", "signs_from")
