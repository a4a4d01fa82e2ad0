"""What must be true before the engine starts; each failure is a sentence that says what to do.

Sources: notes of the engine's measurements, the start-up code of dbos 3.4.0 and the release notes
of SQLite (RETURNING since 3.35, `unixepoch('subsec')` since 3.42).
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sqlite3
import sys
from importlib.metadata import version
from typing import Any

import sqlalchemy as sa
from dbos import _serialization
from dbos._utils import GlobalParams

from bridge import logs
from bridge.engine.errors import StartRefused

__all__ = [
    "APPLICATION",
    "DBOS_VERSION",
    "WORKFLOW_VERSION",
    "forbid_pickle",
    "installation",
    "is_sqlite",
    "quieten",
    "safe_name",
    "sqlite_matrix",
    "wal",
]

APPLICATION = "radseal"
"""The engine's name for us; it never changes, or every queued workflow would be stranded."""

WORKFLOW_VERSION = "1"
"""Constant on purpose: DBOS would hash our source and strand what runs at each upgrade."""

DBOS_VERSION = "3.4.0"
"""The one release whose MIT core was measured; a later one is a decision, not an upgrade."""

BUSY_MILLISECONDS = 30_000
"""How long a writer waits for SQLite's lock; DBOS sets the same on its own connections."""


def is_sqlite(url: str) -> bool:
    """Tell whether `url` names a SQLite file; anything but SQLite and PostgreSQL is refused."""
    backend = sa.make_url(url).get_backend_name()
    if backend not in {"sqlite", "postgresql"}:
        msg = f"database.url names {backend}; use sqlite:///file or postgresql+psycopg://…"
        raise StartRefused(msg)
    return backend == "sqlite"


def sqlite_matrix(python: tuple[int, int], library: tuple[int, int, int]) -> None:
    """Refuse a pair of Python and SQLite on which the engine's clock does not work.

    On Python 3.12 and later DBOS reads milliseconds with a function of SQLite 3.42; older
    libraries answer NULL and the first start crashes.
    """
    needed = (3, 42, 0) if python >= (3, 12) else (3, 35, 0)
    if library < needed:
        have = ".".join(map(str, library))
        want = ".".join(map(str, needed[:2]))
        msg = (
            f"SQLite {have} is too old for Python {python[0]}.{python[1]}: install SQLite {want} "
            "or newer, use Python 3.11, or set database.url to PostgreSQL"
        )
        raise StartRefused(msg)


def installation() -> None:
    """Refuse another DBOS than the measured one, its paid package, and its cloud."""
    found = version("dbos")
    if found != DBOS_VERSION:
        msg = f"dbos {found} is installed, radseal needs {DBOS_VERSION}: install requirements.lock"
        raise StartRefused(msg)
    if importlib.util.find_spec("dbos_enterprise") is not None:
        msg = "dbos-enterprise is installed; it is not free software: pip uninstall dbos-enterprise"
        raise StartRefused(msg)
    if GlobalParams.dbos_cloud:
        msg = "DBOS__CLOUD is set in the environment; unset it, radseal runs on its own machine"
        raise StartRefused(msg)


def wal(url: str) -> None:
    """Put the SQLite file of `url` into WAL mode, once and for every later connection.

    In the default mode readers block the writer and a commit costs eight times as much. Raises
    `StartRefused` where the file system cannot do it (a network share).
    """
    path = sa.make_url(url).database
    if not path or path == ":memory:":
        msg = "database.url must name a file; an in-memory database forgets the work it accepted"
        raise StartRefused(msg)
    try:
        connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000)
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        msg = f"the database file cannot be opened ({error}); check the folder and its rights"
        raise StartRefused(msg) from error
    if str(mode).lower() != "wal":
        msg = "the database file is not on a local disk (no WAL); move the site folder to one"
        raise StartRefused(msg)


def forbid_pickle() -> None:
    """Make DBOS unable to unpickle: a row written by somebody else must not become code.

    We write JSON only; DBOS would still obey a row that says it holds a pickle.
    """

    def refuse(_serializer: object, _data: str) -> Any:
        msg = "a pickled value in the engine's tables; radseal writes JSON only"
        raise TypeError(msg)

    setattr(_serialization.DefaultSerializer, "deserialize", refuse)  # noqa: B010  (a method)


class _Quiet(logging.Handler):
    """Hands on what DBOS says without the values in it, which may be a patient's."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log where it was said and the class of the error; its words are not ours."""
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        where = f"dbos {record.module}:{record.lineno}"
        say = logs.get().error if record.levelno >= logging.ERROR else logs.get().warning
        say("engine_dbos", where=where, error=error)


def quieten() -> None:
    """Keep DBOS's own console output away: no banner, and no values in a log line."""
    logger = logging.getLogger("dbos")
    if not any(isinstance(handler, _Quiet) for handler in logger.handlers):
        logger.handlers[:] = [_Quiet()]
    logger.propagate = False
    logger.setLevel(logging.WARNING)


def safe_name(node: str) -> str:
    """Make of a host's name what may stand in a file name: letters, digits, hyphens; at most 40."""
    return re.sub(r"[^A-Za-z0-9]+", "-", node).strip("-")[:40] or "node"


def python_and_sqlite() -> None:
    """Check the matrix for the interpreter that runs now."""
    sqlite_matrix(sys.version_info[:2], sqlite3.sqlite_version_info[:3])
