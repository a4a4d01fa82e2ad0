"""Who is alive: one lock per started process, which the system drops when the process dies.

DBOS writes the id of the process that runs a workflow beside it, and never asks whether that
process still lives. A lock does: a record lock on a file (SQLite: one machine), or a session
advisory lock of PostgreSQL. Both vanish with a killed process and neither needs a clock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from bridge.engine.checks import is_sqlite
from bridge.engine.errors import StartRefused

__all__ = ["AdvisoryLease", "FileLease", "Lease", "lease", "new_executor"]

_SUFFIX = ".lock"
_EXECUTOR = re.compile(r"[A-Za-z0-9_-]{1,120}")
_KEEPALIVE = {
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "connect_timeout": 5,
    "options": "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}


class Lease(Protocol):
    """The lock of this process, and the question whether another's is still held."""

    executor: str
    grace: float
    """Seconds for which a lock must be seen free before its holder counts as dead."""

    def acquire(self) -> None:
        """Take the lock; raises `StartRefused` if that cannot be done."""

    def renew(self) -> bool:
        """Tell whether the lock is still held; take it again if the connection was lost."""

    def dead(self, executor: str) -> bool:
        """Tell whether nobody holds the lock of `executor`."""

    def release(self) -> None:
        """Give the lock back; never raises."""


def lease(url: str, folder: Path, node: str) -> Lease:
    """Give this start of the process an id of its own and the lock that goes with it, held."""
    executor = new_executor(folder, node)
    path = folder / f"{executor}{_SUFFIX}"
    if is_sqlite(url):
        held: Lease = FileLease(folder, executor)
    else:
        path.unlink()
        held = AdvisoryLease(url, executor)
    held.acquire()
    return held


def new_executor(folder: Path, node: str) -> str:
    """Make an id for this start of the process that no other start has, nor had: a new file."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{node}-{os.getpid()}-"
    handle, path = tempfile.mkstemp(prefix=prefix, suffix=_SUFFIX, dir=folder)
    os.close(handle)
    return Path(path).name.removesuffix(_SUFFIX)


class FileLease:
    """A POSIX record lock on `<folder>/<executor>.lock`.

    Record locks, not flock: a forked child does not inherit them, so a listener that outlives
    its parent cannot keep the parent alive in the others' eyes.
    """

    grace = 0.0

    def __init__(self, folder: Path, executor: str) -> None:
        self.executor = executor
        self._folder = folder
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock, waiting for somebody who is just looking at it."""
        path = self._folder / f"{self.executor}{_SUFFIX}"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._handle, fcntl.LOCK_EX)

    def renew(self) -> bool:
        """Held as long as the process lives: the system sees to it."""
        return self._handle is not None

    def dead(self, executor: str) -> bool:
        """Try the other's lock; a file that is gone is a process that closed in order."""
        if executor == self.executor:
            return False
        if not _EXECUTOR.fullmatch(executor):
            return True
        path = self._folder / f"{executor}{_SUFFIX}"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    def release(self) -> None:
        """Remove the file, then the lock."""
        if self._handle is not None:
            (self._folder / f"{self.executor}{_SUFFIX}").unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def sweep(self, living: set[str]) -> None:
        """Remove the files of dead processes that are named nowhere any more."""
        for path in self._folder.glob(f"*{_SUFFIX}"):
            executor = path.name.removesuffix(_SUFFIX)
            if executor not in living and self.dead(executor):
                path.unlink(missing_ok=True)


class AdvisoryLease:
    """A session advisory lock of PostgreSQL on a connection of its own."""

    grace = 5.0

    def __init__(self, url: str, executor: str) -> None:
        self.executor = executor
        self._engine = sa.create_engine(
            sa.make_url(url).set(drivername="postgresql+psycopg"),
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args=_KEEPALIVE,
            hide_parameters=True,
        )
        self._connection: sa.Connection | None = None

    def acquire(self) -> None:
        """Take the lock, and refuse a pooler that hands each statement to another session."""
        try:
            if not self._take():
                msg = "the engine's own lock is held by somebody else; start again"
                raise StartRefused(msg)
            assert self._connection is not None  # noqa: S101  (just taken)
            pids = {self._connection.scalar(sa.text("SELECT pg_backend_pid()")) for _ in range(3)}
        except SQLAlchemyError as error:
            msg = "PostgreSQL does not answer; check database.url and that the server runs"
            raise StartRefused(msg) from error
        if len(pids) != 1:
            msg = "a transaction pooler stands before PostgreSQL; connect directly or per session"
            raise StartRefused(msg)

    def renew(self) -> bool:
        """Ask the session whether it lives; after a restart of the server take the lock anew."""
        try:
            if self._connection is not None:
                self._connection.execute(sa.text("SELECT 1"))
                return True
        except SQLAlchemyError:
            self._drop()
        try:
            return self._take()
        except SQLAlchemyError:
            self._drop()
            return False

    def dead(self, executor: str) -> bool:
        """Try the other's lock within a transaction that ends at once."""
        if executor == self.executor or self._connection is None:
            return False
        free = self._connection.scalar(
            sa.text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _key(executor)}
        )
        return bool(free)

    def release(self) -> None:
        """Close the session, which drops the lock."""
        self._drop()
        self._engine.dispose()

    def _take(self) -> bool:
        self._connection = self._engine.connect()
        taken = self._connection.scalar(
            sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": _key(self.executor)}
        )
        if not taken:
            self._drop()
        return bool(taken)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()


def _key(executor: str) -> int:
    """Give the lock's number: 64 signed bits of a hash in our own name space."""
    digest = hashlib.sha256(b"radseal/executor/" + executor.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
