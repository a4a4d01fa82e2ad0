"""The log: append from anywhere, sequence and publish from one place.

    append      validated bytes → pending row, durable            (any process, any thread)
    sequence    pending → index → tiles → read back → sign → swap → publish   (one holder)

Read `Sequencer._publish` from top to bottom: after each commit point it says what a crash
there means. Recovery is not a mode: a `Sequencer` starts by comparing what is published
with what was signed, and then goes on.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ledger import durable, leaf, merkle, note
from ledger.checkpoint import Checkpoint, valid_origin
from ledger.errors import (
    BadKey,
    Damaged,
    Gap,
    LeafError,
    LogError,
    MalformedTile,
    NotCovered,
    RolledBack,
    SecondSequencer,
    SignatureInvalid,
    StorageFailed,
    UnknownLeaf,
    WrongOrigin,
)
from ledger.proof import Proof
from ledger.store import Appended, Facts, Head, Row, SqliteStore, Store
from ledger.tiles import ENTRIES, WIDTH, Edge, Hashes, Tile, parse_path, unpack

__all__ = [
    "Appended",
    "Facts",
    "Head",
    "Log",
    "Row",
    "Sequencer",
    "SqliteStore",
    "Store",
    "open_log",
    "read_tile",
]

BATCH = 4096
"""Entries per checkpoint at most: bounds memory, not speed."""


def open_log(folder: Path, store: Store, origin: str, signers: Sequence[note.Signer] = ()) -> Log:
    """Return the log in `folder` (made if absent), bound to `origin` and to `store`.

    `signers` may be empty where only `append` and reading are wanted; their names must be
    the origin. Raises WrongOrigin, BadKey, or RolledBack where files are published that
    the store has never heard of.
    """
    if not valid_origin(origin):
        raise WrongOrigin(f"{origin!r} is no origin: no space, no '+', no scheme")
    for signer in signers:
        if signer.name != origin:
            raise BadKey(f"a key of {signer.name} cannot sign for {origin}")
    head = store.head()
    if head.size == 0 and (folder / "checkpoint").exists():
        raise RolledBack
    durable.make_folder(folder)
    store.pin(origin)
    return Log(folder, store, origin, signers)


class Log:
    """One site's log. Safe for many threads; only a `Sequencer` changes the files."""

    def __init__(
        self, folder: Path, store: Store, origin: str, signers: Sequence[note.Signer]
    ) -> None:
        self.folder = folder
        self.store = store
        self.origin = origin
        self.signers = tuple(signers)
        self.sequencer: Sequencer | None = None

    def append(self, idem: str, data: bytes) -> bytes:
        """Make a leaf durable; its hash. With a known `idem`: the hash of what is stored.

        Raises LeafError for bytes that are no leaf or bear another idem, StorageFailed
        when nothing is certain: then call again with the same key.
        """
        record = leaf.parse(data)
        if record["idem"] != idem:
            raise LeafError(f"the leaf bears the key {record['idem']!r}, not {idem!r}")
        facts = Facts(record["type"], record["time"], record.get("subject"), record.get("study"))
        return self.store.append(idem, data, merkle.leaf_hash(data), facts).leaf_hash

    def sequence(self, now: datetime) -> int:
        """Publish everything pending; how many leaves that were.

        Uses the Sequencer that holds this log, or is one for the length of the call.
        """
        if self.sequencer is not None:
            return self.sequencer.sequence(now)
        with Sequencer(self) as sequencer:
            return sequencer.sequence(now)

    def covered(self, leaf_hash: bytes) -> int | None:
        """Return the leaf's index once a *published* checkpoint covers it, else None."""
        row = self.store.find(leaf_hash=leaf_hash)
        point = self.checkpoint()
        if row is None or row.index is None or point is None or row.index >= point.size:
            return None
        return row.index

    def leaf(self, leaf_hash: bytes) -> bytes:
        """Return the bytes of a leaf, published or not; raises UnknownLeaf, Damaged."""
        row = self.store.find(leaf_hash=leaf_hash)
        if row is None:
            raise UnknownLeaf
        data = row.data
        if data is None and row.index is not None:
            number, place = divmod(row.index, WIDTH)
            bundle = read_tile(self.folder, Tile(ENTRIES, number))
            data = unpack(bundle, WIDTH)[place]
        if data is None or merkle.leaf_hash(data) != leaf_hash:
            raise Damaged(f"the bytes of leaf {row.index} are not what was appended")
        return data

    def find(self, idem: str) -> bytes | None:
        """Return the hash of the leaf with this key."""
        row = self.store.find(idem=idem)
        return None if row is None else row.leaf_hash

    def select(
        self, *, type: str | None = None, subject: str | None = None, study: str | None = None
    ) -> list[tuple[bytes, int | None]]:
        """(hash, index or None) of the leaves with these facts, in order of arrival."""
        rows = self.store.select(type=type, subject=subject, study=study)
        return [(row.leaf_hash, row.index) for row in rows]

    def proof(self, leaf_hash: bytes) -> str:
        """Return a tlog-proof with the leaf's bytes in `extra`; raises NotCovered, UnknownLeaf."""
        data = self.leaf(leaf_hash)
        index = self.covered(leaf_hash)
        published = self._read_published()
        if index is None or published is None:
            raise NotCovered
        point, text = published
        hashes = Hashes(point.size, lambda tile: read_tile(self.folder, tile))
        path = merkle.inclusion_proof(index, point.size, hashes.perfect)
        merkle.verify_inclusion(leaf_hash, index, point.size, path, point.root)
        return str(Proof(data, index, tuple(path), text))

    def size(self) -> int:
        """Entries under the published checkpoint."""
        point = self.checkpoint()
        return 0 if point is None else point.size

    def checkpoint(self) -> Checkpoint | None:
        """Return the published checkpoint; None before the first."""
        published = self._read_published()
        return None if published is None else published[0]

    def checkpoint_text(self) -> str:
        """Return the published checkpoint with its signatures; "" before the first."""
        published = self._read_published()
        return "" if published is None else published[1]

    def _read_published(self) -> tuple[Checkpoint, str] | None:
        path = self.folder / "checkpoint"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        point = Checkpoint.parse(note.parse(text)[0])
        if point.origin != self.origin:
            raise WrongOrigin(f"{path} belongs to {point.origin}")
        return point, text


def read_tile(folder: Path, tile: Tile) -> bytes:
    """Return a tile, or as much as it needs of the full one that replaced it; raises Damaged."""
    with suppress(FileNotFoundError):
        return (folder / tile.path()).read_bytes()
    try:
        whole = (folder / tile.whole().path()).read_bytes()
    except FileNotFoundError:
        raise Damaged(f"{tile.path()} is missing: restore it from a copy") from None
    if tile.level != ENTRIES:
        return whole[: tile.width * merkle.HASH_SIZE]
    return whole[: sum(2 + len(entry) for entry in unpack(whole, WIDTH)[: tile.width])]


class Sequencer:
    """The only one that changes a log's files, while it is entered.

    Entering takes the lock (SecondSequencer if somebody has it), proves that files and
    store agree, and publishes a checkpoint that was signed but not published. A failed
    write leaves it broken: it refuses to sign anything after; make a new one.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._store = log.store
        self._folder = log.folder
        self._busy = threading.Lock()
        self._lock: int | None = None
        self._claimed = False
        self._broken = False
        self._edge = Edge()

    def __enter__(self) -> Self:
        durable.make_folder(self._folder)
        self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        entered = False
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._claimed = self._store.claim()
            if not self._claimed:
                raise SecondSequencer
            self._start()
            entered = True
        except BlockingIOError:
            raise SecondSequencer from None
        except OSError as error:
            raise StorageFailed(f"the log's files cannot be read: {error.strerror}") from error
        finally:
            if not entered:
                self._leave()
        self._log.sequencer = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.sequencer = None
        self._leave()

    def sequence(self, now: datetime) -> int:
        """Publish everything pending, in checkpoints of at most BATCH; how many leaves."""
        with self._busy:
            if self._lock is None or self._broken:
                raise StorageFailed("this sequencer has stopped: make a new one")
            if not self._log.signers:
                raise BadKey("a log without signing keys cannot be sequenced")
            self._broken = True  # until the end proves otherwise
            done = 0
            try:
                while count := self._publish(now):
                    done += count
            except OSError as error:
                raise StorageFailed(f"the log's files cannot be read: {error.strerror}") from error
            self._broken = False
            return done

    def _publish(self, now: datetime) -> int:
        self._store.assign(BATCH)
        # Crash here: the order is decided and durable, nothing else happened. The next
        # sequencer finds the same leaves at the same indexes.
        head = self._store.head()
        rows = self._store.assigned(head.size, BATCH)
        if not rows:
            return 0
        entries = self._entries(head.size, rows)
        edge = self._edge.copy()
        files = {self._folder / t.path(): data for t, data in edge.grow(entries).items()}
        durable.write(files, self._folder / ".tmp")
        # Crash here or before: tiles nobody has signed for. The same leaves give the same
        # bytes again; where more have joined them, wider tiles.
        self._read_back(files, edge)
        point = Checkpoint(self._log.origin, edge.size, edge.root())
        text = note.sign_note(str(point), self._log.signers, int(now.timestamp()))
        new = Head(point.size, point.root, text)
        self._store.advance(head, new)
        # Crash here: signed and committed to, not yet visible. `_start` publishes it.
        self._replace_checkpoint(new)
        # Crash here: published. What follows only tidies.
        self._edge = edge
        self._tidy(head.size, new.size)
        return len(rows)

    def _entries(self, start: int, rows: Sequence[Row]) -> list[bytes]:
        entries = []
        for number, row in enumerate(rows):
            if row.index != start + number or row.data is None:
                raise Gap(f"the database lacks entry {start + number}: restore it from a copy")
            if merkle.leaf_hash(row.data) != row.leaf_hash:
                raise Damaged(f"the database holds other bytes for entry {row.index}")
            entries.append(row.data)
        if start == 0:
            self._check_first(entries[0])
        return entries

    def _check_first(self, data: bytes) -> None:
        record = leaf.parse(data)
        if record["type"] != "log.opened" or record["body"]["origin"] != self._log.origin:
            raise LogError("the first leaf of a log is log.opened and names its origin")

    def _read_back(self, files: dict[Path, bytes], edge: Edge) -> None:
        # One flipped bit in a tile can never be repaired once it is signed for.
        for path, data in files.items():
            if path.read_bytes() != data:
                raise Damaged(f"{path} was read back with other bytes than were written")
        again = Edge.load(edge.size, lambda tile: read_tile(self._folder, tile))
        if again.root() != edge.root():
            raise Damaged("the tiles just written do not lead to their root")

    def _replace_checkpoint(self, head: Head) -> None:
        path = self._folder / "checkpoint"
        durable.write({path: head.text.encode()}, self._folder / ".tmp")

    def _tidy(self, before: int, size: int) -> None:
        level = 0
        while before >> 8 * level != size >> 8 * level:
            first, end = before >> 8 * (level + 1), size >> 8 * (level + 1)
            for number in range(first, end):
                tiles = [Tile(level, number)] + [Tile(ENTRIES, number)] * (level == 0)
                for tile in tiles:
                    self._remove_partials(tile)
            level += 1
        if before // WIDTH != size // WIDTH:
            self._store.discard(size // WIDTH * WIDTH)

    def _remove_partials(self, tile: Tile) -> None:
        folder = self._folder / f"{tile.path()}.p"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            durable.remove(path)

    def _start(self) -> None:
        head, point = self._store.head(), self._log.checkpoint()
        self._check_keys(head)
        published = Head() if point is None else Head(point.size, point.root)
        if published.size > head.size:
            raise RolledBack
        for folder, _, _ in os.walk(self._folder):
            durable.sync_folder(Path(folder))  # whatever a predecessor left half made
        self._edge = self._load(head.size, head.root)
        hashes = Hashes(head.size, lambda tile: read_tile(self._folder, tile))
        if merkle.range_hash(0, published.size, hashes.perfect) != published.root:
            raise Damaged("the published checkpoint is of another history than the database")
        if head.size and self._log.checkpoint_text() != head.text:
            self._replace_checkpoint(head)
        self._sweep(head.size)
        self._tidy(max(0, head.size - BATCH), head.size)

    def _sweep(self, size: int) -> None:
        """Remove tiles that nobody has signed for; the next batch writes them again.

        Indexes are durable before tiles, so tiles with entries that the database has not
        assigned show that it was rolled back.
        """
        end = size + len(self._store.assigned(size, BATCH))
        for top, _, names in os.walk(self._folder / "tile"):
            for name in names:
                path = Path(top) / name
                with suppress(MalformedTile):
                    tile = parse_path(path.relative_to(self._folder).as_posix())
                    shift, extent = 8 * max(tile.level, 0), tile.index * WIDTH + tile.width
                    if extent > end >> shift:
                        raise RolledBack
                    if extent > size >> shift:
                        durable.remove(path)

    def _check_keys(self, head: Head) -> None:
        if head.size and self._log.signers:
            keys = [note.Verifier(s.name, s.algorithm, s.public) for s in self._log.signers]
            try:
                note.open_note(head.text, keys)
            except SignatureInvalid:
                raise BadKey("the log was signed by other keys: restore them") from None

    def _load(self, size: int, root: bytes) -> Edge:
        try:
            edge = Edge.load(size, lambda tile: read_tile(self._folder, tile))
        except MalformedTile as error:
            raise Damaged(f"the log's last tiles are damaged: {error}") from error
        if edge.root() != root:
            raise Damaged
        return edge

    def _leave(self) -> None:
        if self._claimed:
            self._store.release()
            self._claimed = False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
