"""Where leaves wait and checkpoints are compared and swapped: the port, and sqlite3 behind it.

One store holds one log. A leaf is first *pending* (durable, no index), then *assigned*
(has the next index, durable before any tile is written, so that a crash cannot reorder
it), then *published* (below the size of the checkpoint). Index, type, time and aliases
stay here as a query index; the bytes of published full bundles live in the tiles alone.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ledger.errors import LostRace, StorageFailed, WrongOrigin
from ledger.merkle import EMPTY
from ledger.together import Together

__all__ = ["Appended", "Facts", "Head", "Last", "Row", "SqliteStore", "Store"]


@dataclass(frozen=True, slots=True)
class Head:
    """The newest signed state: size, root, and the signed checkpoint ("" while size is 0)."""

    size: int = 0
    root: bytes = EMPTY
    text: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be asked for later: columns of a leaf."""

    type: str
    time: str
    subject: str | None = None
    study: str | None = None


@dataclass(frozen=True, slots=True)
class Last:
    """The leaf that ends a log."""

    idem: str
    data: bytes
    leaf_hash: bytes
    facts: Facts


@dataclass(frozen=True, slots=True)
class Appended:
    """The stored leaf of a key. `data` is None once it lives in a published full bundle."""

    leaf_hash: bytes
    data: bytes | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One stored leaf; `index` is None while it is pending."""

    leaf_hash: bytes
    index: int | None
    data: bytes | None


class Store(Protocol):
    """What a log asks of a database. Every write is durable when the call returns."""

    def pin(self, origin: str) -> Head | None:
        """Bind an empty store to `origin`: None the first time, afterwards the head.

        While it holds no leaf it can be bound anew; after that, WrongOrigin for another one.
        """

    def append(self, idem: str, data: bytes, leaf_hash: bytes, facts: Facts) -> Appended:
        """Store a leaf under its key; with a key that is known, return what was stored first."""

    def assign(self, limit: int) -> int:
        """Give the next indexes to at most `limit` pending leaves, in order of arrival."""

    def assigned(self, start: int, limit: int) -> Sequence[Row]:
        """Leaves with index >= start, in order, at most `limit`."""

    def head(self) -> Head:
        """Return the newest signed state."""

    def advance(self, old: Head, new: Head) -> None:
        """Swap the head if size and root are still those of `old`; else raise LostRace."""

    def find(self, *, leaf_hash: bytes | None = None, idem: str | None = None) -> Row | None:
        """Return the leaf of this hash or key."""

    def select(
        self, *, type: str | None = None, subject: str | None = None, study: str | None = None
    ) -> Sequence[Row]:
        """Leaves with these facts, in order of arrival."""

    def discard(self, below: int) -> None:
        """Forget the bytes (not the rows) of leaves with an index below `below`."""

    def shut(self, last: Last | None) -> None:
        """Append `last`, index whatever waits, and take no leaf more, for ever; safe to repeat.

        One transaction: nothing can be appended after `last`. Later appends raise StorageFailed.
        """

    def claim(self) -> bool:
        """Become the only sequencer as far as the database can say; False if one exists."""

    def release(self) -> None:
        """Give up the claim."""

    def close(self) -> None:
        """Close the connections."""


_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  origin TEXT NOT NULL, size INTEGER NOT NULL, root BLOB NOT NULL, checkpoint TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS leaves (
  seq INTEGER PRIMARY KEY, idem TEXT NOT NULL UNIQUE, leaf_hash BLOB NOT NULL UNIQUE,
  idx INTEGER UNIQUE, data BLOB,
  type TEXT NOT NULL, time TEXT NOT NULL, subject TEXT, study TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS leaves_pending ON leaves (seq) WHERE idx IS NULL;
CREATE INDEX IF NOT EXISTS leaves_bytes ON leaves (idx) WHERE data IS NOT NULL;
CREATE INDEX IF NOT EXISTS leaves_study ON leaves (study) WHERE study IS NOT NULL;
CREATE INDEX IF NOT EXISTS leaves_subject ON leaves (subject) WHERE subject IS NOT NULL;
"""


_SHUT = (
    "CREATE TRIGGER leaves_shut BEFORE INSERT ON leaves"
    " BEGIN SELECT RAISE(ABORT, 'the log is closed'); END"
)


_SETTLE_SECONDS = 2

_Leaf = tuple[str, bytes, bytes, str, str, str | None, str | None]
"""idem, hash, data, then the facts: a row of leaves without seq and idx."""


class SqliteStore:
    """`Store` in one SQLite file: WAL, synchronous=FULL, for many threads and processes.

    Appends that arrive together are committed together. A crash before COMMIT loses only
    leaves whose callers were never answered; they retry with the same key.
    """

    def __init__(self, path: Path, busy_seconds: float = 30.0) -> None:
        self._turn = threading.Lock()
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._appends = Together[_Leaf, Appended](self._append)
        try:
            self._writer = _connect(path, busy_seconds)
            self._writer.executescript(_SCHEMA)
            self._reader = _connect(path, busy_seconds)
        except sqlite3.Error as error:
            raise StorageFailed(f"the ledger's database does not open: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    def settle(self) -> None:
        """Write all into the one file, leave nothing beside it, and close: it may be moved then.

        Raises StorageFailed while anybody else has the file open. He would go on writing beside
        it under its old name, into whatever lies there then.
        """
        with self._write_lock, self._read_lock:
            try:
                self._reader.close()
                self._writer.execute(f"PRAGMA busy_timeout = {_SETTLE_SECONDS * 1000}")
                self._writer.execute("PRAGMA journal_mode = DELETE")
                self._writer.close()
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                    raise StorageFailed(f"the ledger's database did not take it: {error}") from None
                raise StorageFailed(
                    "the ledger's database is open in another process: end that, then type this "
                    "again"
                ) from None

    def pin(self, origin: str) -> Head | None:
        """See `Store`."""
        with self._transaction() as db:
            found = db.execute("SELECT origin FROM log").fetchone()
            if found is None:
                db.execute("INSERT INTO log VALUES (1, ?, 0, ?, '')", (origin, EMPTY))
            rebound = db.execute(
                "UPDATE log SET origin = ? WHERE NOT EXISTS (SELECT 1 FROM leaves)", (origin,)
            ).rowcount
        if found is None:
            return None
        if found[0] != origin and not rebound:
            raise WrongOrigin(f"the log belongs to {found[0]}, not to {origin}")
        return self.head()

    def append(self, idem: str, data: bytes, leaf_hash: bytes, facts: Facts) -> Appended:
        """See `Store`."""
        return self._appends.ask(
            (idem, leaf_hash, data, facts.type, facts.time, facts.subject, facts.study)
        )

    def _append(self, leaves: Sequence[_Leaf]) -> list[Appended]:
        with self._transaction() as db:
            return [_insert(db, leaf) for leaf in leaves]

    def assign(self, limit: int) -> int:
        """See `Store`."""
        with self._transaction() as db:
            return _assign(db, limit)

    def assigned(self, start: int, limit: int) -> Sequence[Row]:
        """See `Store`."""
        return self._rows("idx >= ? ORDER BY idx LIMIT ?", (start, limit))

    def head(self) -> Head:
        """See `Store`."""
        with self._reading() as db:
            found = db.execute("SELECT size, root, checkpoint FROM log").fetchone()
        return Head(*found) if found else Head()

    def advance(self, old: Head, new: Head) -> None:
        """See `Store`."""
        with self._transaction() as db:
            changed = db.execute(
                "UPDATE log SET size = ?, root = ?, checkpoint = ? WHERE size = ? AND root = ?",
                (new.size, new.root, new.text, old.size, old.root),
            ).rowcount
        if changed != 1:
            raise LostRace

    def find(self, *, leaf_hash: bytes | None = None, idem: str | None = None) -> Row | None:
        """See `Store`."""
        if leaf_hash is not None:
            rows = self._rows("leaf_hash = ?", (leaf_hash,))
        else:
            rows = self._rows("idem = ?", (idem,))
        return rows[0] if rows else None

    def select(
        self, *, type: str | None = None, subject: str | None = None, study: str | None = None
    ) -> Sequence[Row]:
        """See `Store`."""
        asked = {"study = ?": study, "subject = ?": subject, "type = ?": type}
        asked = {clause: value for clause, value in asked.items() if value is not None}
        return self._rows(" AND ".join(["1", *asked]) + " ORDER BY seq", tuple(asked.values()))

    def discard(self, below: int) -> None:
        """See `Store`."""
        with self._transaction() as db:
            db.execute("UPDATE leaves SET data = NULL WHERE data IS NOT NULL AND idx < ?", (below,))

    def shut(self, last: Last | None) -> None:
        """See `Store`."""
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'leaves_shut'").fetchone():
                return
            if last is not None:
                facts = last.facts
                _insert(db, (last.idem, last.leaf_hash, last.data, facts.type, facts.time,
                             facts.subject, facts.study))  # fmt: skip
            _assign(db, -1)
            db.execute(_SHUT)

    def claim(self) -> bool:
        """Return True: one file lives on one machine, where the log's file lock decides."""
        return True

    def release(self) -> None:
        """Nothing to give up."""

    def _rows(self, condition: str, values: tuple[object, ...]) -> list[Row]:
        with self._reading() as db:
            found = db.execute(
                f"SELECT leaf_hash, idx, data FROM leaves WHERE {condition}",  # noqa: S608  constants
                values,
            ).fetchall()
        return [Row(*one) for one in found]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise StorageFailed(f"the ledger's database does not answer: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._turn:  # whoever waits is next: else busy appends keep the sequencer out
            self._write_lock.acquire()
        try:
            db = self._writer
            try:
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise StorageFailed(f"the ledger's database did not take it: {error}") from error
        finally:
            self._write_lock.release()


def _connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")
    return db


def _assign(db: sqlite3.Connection, limit: int) -> int:
    rows = db.execute(
        "SELECT seq FROM leaves WHERE idx IS NULL ORDER BY seq LIMIT ?", (limit,)
    ).fetchall()
    (last,) = db.execute("SELECT max(idx) FROM leaves").fetchone()
    start = 0 if last is None else last + 1
    db.executemany(
        "UPDATE leaves SET idx = ? WHERE seq = ?",
        [(start + number, seq) for number, (seq,) in enumerate(rows)],
    )
    return len(rows)


def _insert(db: sqlite3.Connection, leaf: _Leaf) -> Appended:
    idem, leaf_hash, data = leaf[:3]
    fresh = db.execute(
        "INSERT INTO leaves (idem, leaf_hash, data, type, time, subject, study)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (idem) DO NOTHING",
        leaf,
    ).rowcount
    if fresh:
        return Appended(leaf_hash, data, fresh=True)
    stored = db.execute("SELECT leaf_hash, data FROM leaves WHERE idem = ?", (idem,)).fetchone()
    return Appended(stored[0], stored[1], fresh=False)
