"""Models on trial: how a route runs, who may sign for an act, which self-test passed where."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from bridge.store.tables import Instant

revision = "0003_lifecycle"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a column and two tables; every route so far was one whose results are delivered."""
    op.add_column(
        "routes", sa.Column("mode", sa.String(length=8), nullable=False, server_default="active")
    )
    op.create_table(
        "signers",
        sa.Column("person", sa.String(length=120), nullable=False),
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("added_at", Instant(length=32), nullable=False),
        sa.PrimaryKeyConstraint("person", "key_sha256", name=op.f("pk_signers")),
    )
    op.create_table(
        "selftests",
        sa.Column("model_digest", sa.String(length=64), nullable=False),
        sa.Column("machine", sa.String(length=64), nullable=False),
        sa.Column("passed_at", Instant(length=32), nullable=False),
        sa.PrimaryKeyConstraint("model_digest", "machine", name=op.f("pk_selftests")),
    )
