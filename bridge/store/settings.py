"""Rows of the settings that config.changed last spoke of."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select

from bridge.store.tables import settings

__all__ = ["keep", "kept"]


def kept(connection: Connection) -> dict[str, str]:
    """Give the settings by name, as canonical JSON."""
    return {row.name: row.value for row in connection.execute(select(settings))}


def keep(connection: Connection, values: Mapping[str, str]) -> None:
    """Put these in the place of all others."""
    connection.execute(delete(settings))
    if values:
        rows = [{"name": name, "value": value} for name, value in values.items()]
        connection.execute(insert(settings), rows)
