"""How many mails an address got lately is counted at each new one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_mail_jobs_recipient",
            "mail_jobs",
            [sa.text("lower(recipient)"), "created_at"],
            postgresql_concurrently=True,
            if_not_exists=True,
        )


def downgrade() -> None:
    op.drop_index("ix_mail_jobs_recipient", "mail_jobs")
