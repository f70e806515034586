"""Mails made from templates, with an HTML part."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("mail_jobs", sa.Column("html", sa.Text))
    op.add_column("mail_jobs", sa.Column("template", sa.Text))


def downgrade() -> None:
    op.drop_column("mail_jobs", "template")
    op.drop_column("mail_jobs", "html")
