"""Copies of databases while others use them, and back.

SQLite: its backup interface, one read transaction, writers go on. PostgreSQL: COPY of every table
of ours in one transaction that sees one moment. Indexes, constraints and the tables themselves
are not copied: our migrations make them, of the release that wrote the rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bridge.errors import Refused, StorageFull
from bridge.store.database import writing

__all__ = ["copy_sqlite", "dump", "is_filled", "is_sound", "load", "one_moment", "version_of"]

VAULT = ("vault_fact", "vault_subject", "vault_suppression")
_VERSIONS = {"public.schema_version", "dbos.dbos_migrations"}


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment; raises StorageFull."""
    try:
        with (
            closing(sqlite3.connect(source, timeout=30)) as one,
            closing(sqlite3.connect(target)) as other,
        ):
            one.backup(other)
    except sqlite3.Error as error:
        raise StorageFull(f"{source.name} could not be copied ({error}); free space") from None


def is_sound(path: Path) -> bool:
    """Whether SQLite finds a database in order."""
    try:
        with closing(sqlite3.connect(path)) as one:
            return bool(one.execute("PRAGMA quick_check").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


@contextmanager
def one_moment(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Give a connection that sees one moment, however long it reads."""
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        yield connection


def dump(connection: sa.Connection, folder: Path) -> list[Path]:
    """Write `SCHEMA.TABLE.copy` for each table: a line of JSON with its columns, then its rows."""
    written = []
    for table in _tables(connection):
        columns = [column["name"] for column in _columns(connection, table)]
        path = folder / f"{table}.copy"
        with path.open("wb") as file:
            file.write(json.dumps(columns).encode() + b"\n")
            statement = f"COPY {table} ({', '.join(map(_quoted, columns))}) TO STDOUT"
            with _cursor(connection).copy(statement) as rows:
                for data in rows:
                    file.write(data)
        written.append(path)
    return written


def is_filled(engine: sa.Engine) -> bool:
    """Whether a site lives in this database."""
    with engine.connect() as connection:
        inspector = sa.inspect(connection)
        for schema, table in (("public", "studies"), ("public", "models"), ("ledger", "leaves")):
            if inspector.has_table(table, schema):
                found = connection.execute(sa.text(f"SELECT 1 FROM {schema}.{table} LIMIT 1"))  # noqa: S608 - constants
                if found.first() is not None:
                    return True
    return False


def load(engine: sa.Engine, paths: list[Path]) -> None:
    """Fill the tables that `dump` wrote; the tables are there, what is in them goes.

    Raises Refused where the engine's tables are of another version than the backup's.
    """
    given = {path.name.removesuffix(".copy"): path for path in paths}
    with writing(engine) as connection:
        tables = [name for name in _tables(connection) if name in given]
        for name in _VERSIONS & set(tables):
            if _rows(connection, name) != given[name].read_bytes().split(b"\n", 1)[1]:
                raise Refused(f"the backup's {name} is another than this release makes")
        tables = [name for name in tables if name not in _VERSIONS]
        connection.execute(sa.text(f"TRUNCATE {', '.join(tables)} CASCADE"))
        for name in tables:
            _fill(connection, name, given[name])


def _fill(connection: sa.Connection, table: str, path: Path) -> None:
    with path.open("rb") as file:
        columns = [_quoted(name) for name in json.loads(file.readline())]
        with _cursor(connection).copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN") as rows:
            while chunk := file.read(1 << 20):
                rows.write(chunk)
    for column in columns:
        sequence = connection.execute(
            sa.text("SELECT pg_get_serial_sequence(:table, :column)"),
            {"table": table, "column": column.strip('"')},
        ).scalar_one()
        if sequence is not None:
            connection.execute(sa.text(
                f"SELECT setval('{sequence}', coalesce(max({column}), 0) + 1, false) FROM {table}"  # noqa: S608 - names that the database gave
            ))  # fmt: skip


def _rows(connection: sa.Connection, table: str) -> bytes:
    columns = ", ".join(_quoted(column["name"]) for column in _columns(connection, table))
    with _cursor(connection).copy(f"COPY {table} ({columns}) TO STDOUT") as rows:
        return b"".join(bytes(data) for data in rows)


def version_of(paths: list[Path]) -> str | None:
    """Read the revision of our tables in a dump."""
    for path in paths:
        if path.name == "public.schema_version.copy":
            return path.read_text().split("\n")[1]
    return None


def _tables(connection: sa.Connection) -> list[str]:
    """List all tables of ours, those that others refer to first."""
    inspector, found = sa.inspect(connection), []
    for schema in sorted(inspector.get_schema_names()):
        if schema in ("public", "dbos") or schema.startswith("ledger"):
            ordered = inspector.get_sorted_table_and_fkc_names(schema)
            found += [f"{schema}.{name}" for name, _ in ordered if name is not None]
    return found


def _columns(connection: sa.Connection, table: str) -> list[Any]:
    schema, name = table.split(".")
    return [c for c in sa.inspect(connection).get_columns(name, schema) if "computed" not in c]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _cursor(connection: sa.Connection) -> Any:
    return connection.connection.cursor()
