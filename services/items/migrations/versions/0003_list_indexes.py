"""Indexes for every list: each sort, an owner's items, and the search."""

import sqlalchemy as sa
from alembic import op

from shared.migrations import create_index_concurrently

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_DOCUMENT = "to_tsvector('simple'::regconfig, (name || ' '::text) || COALESCE(description, ''::text))"


def upgrade() -> None:
    create_index_concurrently("ix_items_created_at", "items", ["created_at", "id", "in_stock"])
    create_index_concurrently("ix_items_price", "items", ["price", "id", "in_stock"])
    create_index_concurrently("ix_items_name", "items", ["name", "id", "in_stock"])
    create_index_concurrently("ix_items_owner_id", "items", ["owner_id", "created_at", "id"])
    create_index_concurrently("ix_items_document", "items", [sa.text(_DOCUMENT)], postgresql_using="gin")


def downgrade() -> None:
    for name in ("created_at", "price", "name", "document", "owner_id"):
        op.drop_index(f"ix_items_{name}", "items")
    op.create_index("ix_items_owner_id", "items", ["owner_id"])
