"""One who cosigns: remembers each log's largest tree, and never signs beside or below it.

    check and store are one transaction, durable before the cosignature leaves

The record is the witness: who loses it, or puts an older copy in its place, has a witness that
signs two histories. So it is made once (`create`), and `Cosigner` refuses to open without it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ledger import durable, note, witness
from ledger.checkpoint import Checkpoint
from ledger.errors import Malformed, SignatureInvalid, StorageFailed
from ledger.witness import Reply, Request, Seen

__all__ = ["Cosigner", "Kept", "Known", "create"]

Known = Mapping[str, Sequence[note.Verifier]]
"""Origin → the keys by which a witness knows that log."""

_SCHEMA = """
CREATE TABLE seen (
  address TEXT PRIMARY KEY, origin TEXT NOT NULL UNIQUE,
  size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL
) STRICT;
CREATE TABLE split (origin TEXT PRIMARY KEY, first TEXT NOT NULL, second TEXT NOT NULL) STRICT;
"""
_UNKNOWN = "this witness does not know the log: ask its operator to trust the log's vkey\n"
_UNSIGNED = "no key by which this witness knows the log has signed the checkpoint\n"
_STORE = (
    "INSERT INTO seen VALUES (?, ?, ?, ?, ?) ON CONFLICT (address) DO UPDATE"
    " SET size = excluded.size, root = excluded.root, note = excluded.note"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a witness holds of a log: size, its cosigned checkpoint, and proof of a split view.

    `split` are two checkpoints of one size, both signed by the log, or None.
    """

    origin: str
    size: int
    note: str
    split: tuple[str, str] | None


def create(path: Path) -> None:
    """Make an empty record, durable, for its owner only; raises StorageFailed if it is there."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        db.close()
        durable.sync_folder(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"the witness's record cannot be made: {error}") from error


class Cosigner:
    """A witness: answers add-checkpoint for the logs it knows. Safe for threads and processes."""

    def __init__(
        self, path: Path, signers: Sequence[note.Signer], known: Callable[[], Known]
    ) -> None:
        """Open the record at `path`; `known` is asked anew for each request.

        Raises StorageFailed where the record is missing: it is never made anew in silence.
        """
        self._signers = tuple(signers)
        self._known = known
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(
                f"file:{path}?mode=rw", uri=True, timeout=30, isolation_level=None,
                check_same_thread=False,
            )  # fmt: skip
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA fullfsync = ON")
            self._db.execute("SELECT 1 FROM seen").fetchone()
        except sqlite3.Error as error:
            raise StorageFailed(
                f"the witness's record {path.name} does not open ({error}); without it this key "
                "must not cosign again: make a new witness"
            ) from error

    def close(self) -> None:
        """Close the record."""
        with self._lock:
            self._db.close()

    def add_checkpoint(self, body: bytes, time: int) -> Reply:
        """Answer a request at `time` (POSIX seconds); raises StorageFailed, then nothing is said.

        After StorageFailed the record may have advanced or not; either way the next request is
        answered by what it holds.
        """
        try:
            request = Request.parse(body)
            text, _ = note.parse(request.note)
        except Malformed as error:
            return Reply(400, f"{error}\n")
        trusted = self._known().get(text.partition("\n")[0])
        if not trusted:
            return Reply(404, _UNKNOWN)
        point = witness.readable(text)
        if isinstance(point, Reply):
            return point
        try:
            own = witness.authentic(request.note, trusted)
        except (SignatureInvalid, Malformed):
            return Reply(403, _UNSIGNED)
        return self._check_and_store(request, point, own, time)

    def checkpoint(self, address: str) -> str | None:
        """Return the cosigned checkpoint of the log with this address, None if there is none."""
        with self._transaction() as db:
            found = db.execute("SELECT note FROM seen WHERE address = ?", (address,)).fetchone()
        return None if found is None else str(found[0])

    def kept(self) -> list[Kept]:
        """List what is held of each log."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT origin, size, note, first, second FROM seen LEFT JOIN split"
                " USING (origin) ORDER BY origin"
            ).fetchall()
        return [Kept(o, s, n, None if a is None else (a, b)) for o, s, n, a, b in rows]

    def _check_and_store(self, request: Request, point: Checkpoint, own: str, time: int) -> Reply:
        with self._transaction() as db:
            row = db.execute(
                "SELECT size, root, note FROM seen WHERE origin = ?", (point.origin,)
            ).fetchone()
            seen = Seen() if row is None else Seen(row[0], row[1])
            reply = witness.judge(request, point, seen)
            if reply is None:
                reply = Reply(200, self._sign(point, time))
                address = witness.address(point.origin)
                note_ = own + reply.body
                db.execute(_STORE, (address, point.origin, point.size, point.root, note_))
            elif row is not None and point.size == seen.size and point.root != seen.root:
                # Both are signed by the log: whoever sees the two knows that it shows two faces.
                db.execute(
                    "INSERT INTO split VALUES (?, ?, ?) ON CONFLICT (origin) DO NOTHING",
                    (point.origin, row[2], own),
                )
        return reply

    def _sign(self, point: Checkpoint, time: int) -> str:
        text = str(point).encode()
        lines = [note.Line(s.name, s.key_id, s.sign(text, time)) for s in self._signers]
        return "".join(map(str, lines))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                finally:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise StorageFailed(f"the witness's record did not take it: {error}") from error
