"""Alembic's entry: migrations run inside the caller's connection and transaction."""

from __future__ import annotations

from alembic import context

from bridge.store.tables import METADATA

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=METADATA, render_as_batch=True,
    version_table="schema_version",
)  # fmt: skip
context.run_migrations()
