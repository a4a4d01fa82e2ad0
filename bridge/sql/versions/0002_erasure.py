"""Erasure by two people, and the settings that were in force last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bridge.store.tables import Instant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add two tables; nothing that is there changes."""
    op.create_table(
        "erasures",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("subject_ref", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("requested_as", sa.Text(), nullable=False),
        sa.Column("requested_at", Instant(length=32), nullable=False),
        sa.Column("expires_at", Instant(length=32), nullable=False),
        sa.Column("confirmed_by", sa.Text(), nullable=True),
        sa.Column("confirmed_as", sa.Text(), nullable=True),
        sa.Column("confirmed_at", Instant(length=32), nullable=True),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("done_at", Instant(length=32), nullable=True),
        sa.Column("leaf", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasures")),
    )
    with op.batch_alter_table("erasures", schema=None) as batch_op:
        batch_op.create_index("ix_erasures_state", ["state"], unique=False)
    op.create_table(
        "settings",
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_settings")),
    )
