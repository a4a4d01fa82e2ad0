"""Opening the database: SQLite in WAL mode with immediate writes, or PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from bridge.turns import Busy

__all__ = [
    "AWAY",
    "hold",
    "insert_once",
    "migrate",
    "open_engine",
    "reading",
    "vacuum",
    "writing",
]

_BUSY_MS = 30_000

AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""Errors that say: the database does not answer, is busy or has no room; it helps to wait."""


def open_engine(url: str) -> Engine:
    """Open the database at `url`; on SQLite every connection is in WAL mode and fsyncs commits.

    The texts of its errors hold no parameters: those are patients' names.
    """
    if not url.startswith("sqlite"):
        return create_engine(
            url, pool_pre_ping=True, pool_size=5, max_overflow=10, hide_parameters=True
        )
    engine = create_engine(url, connect_args={"timeout": _BUSY_MS / 1000}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute("PRAGMA secure_delete=ON")  # a row that goes is overwritten (bridge.erasure)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection inside one write transaction: committed at the end, or nothing."""
    with engine.execution_options(writes=True).begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection for reading a consistent state."""
    with engine.connect() as connection:
        yield connection


def insert_once(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert unless a unique key says that it was said before; returns whether it was new."""
    insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    # Not by rowcount: SQLAlchemy does not keep it for an INSERT on every driver.
    said = (
        insert(table)
        .values(**values)
        .on_conflict_do_nothing()
        .returning(*table.primary_key.columns)
    )
    return connection.execute(said).first() is not None


def hold(connection: Connection, what: str) -> None:
    """Let nobody else hold `what` until this transaction ends (on SQLite the writer holds all)."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"radseal/{what}"))))


def migrate(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to this release's state, or an earlier one's; safe to repeat."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "sql"))
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, revision)


def vacuum(engine: Engine, tables: Sequence[str], *, whole: bool = True) -> None:
    """Rewrite these tables without what was deleted; on SQLite the whole file and its log.

    Not `whole`: on SQLite the log only, which is enough where little was overwritten in place.
    Raises Busy when somebody reads for longer than a writer waits: repeat it.
    """
    if engine.dialect.name == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text(f"VACUUM (FULL, ANALYZE) {', '.join(tables)}"))
        return
    raw = engine.raw_connection()  # a VACUUM stands outside of any transaction
    try:
        cursor = raw.cursor()
        if whole:
            cursor.execute("VACUUM")
        # Its pages are in the log now; the file gets them, and the log ends up empty.
        busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        raw.close()
    if busy:
        raise Busy("the database is read by somebody; what was deleted is still in its log")
