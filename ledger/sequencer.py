"""One place publishes: the holder of the lock turns pending leaves into a signed checkpoint.

    pending → index → tiles → read back → sign → swap → publish

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
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    BadKey,
    Damaged,
    Gap,
    LogError,
    MalformedTile,
    RolledBack,
    SecondSequencer,
    SignatureInvalid,
    StorageFailed,
)
from ledger.log import OPENING, Log, read_tile
from ledger.store import Head, Row
from ledger.tiles import ENTRIES, WIDTH, Edge, Hashes, Tile, parse_path

__all__ = ["BATCH", "Sequencer", "sequence"]

BATCH = 4096
"""Entries per checkpoint at most: bounds memory, not speed."""


def sequence(log: Log, now: datetime) -> int:
    """Publish everything pending; how many leaves that were.

    Uses the Sequencer that holds this log in this process, or is one for the length of the
    call. Raises SecondSequencer where another process holds it.
    """
    holder = log.holder  # read once: a service that stops takes it away
    if holder is not None:
        return holder(now)
    with Sequencer(log) as sequencer:
        return sequencer.sequence(now)


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
        entered = False
        try:
            durable.make_folder(self._folder)
            self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
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
        self._log.holder = self.sequence
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.holder = None
        with self._busy:  # a thread that publishes now must end before another sequencer begins
            self._leave()

    def sequence(self, now: datetime) -> int:
        """Publish what is pending now, in checkpoints of at most BATCH; how many leaves."""
        with self._busy:
            if self._lock is None or self._broken:
                raise StorageFailed("this sequencer has stopped: make a new one")
            if not self._log.signers:
                raise BadKey("a log without signing keys cannot be sequenced")
            self._broken = True  # until the end proves otherwise
            done = 0
            try:
                # Not "until nothing is pending": busy writers would keep this from ever ending.
                while (count := self._publish(now)) == BATCH:
                    done += count
                done += count
            except OSError as error:
                raise StorageFailed(f"the log's files cannot be read: {error.strerror}") from error
            self._broken = False
            return done

    def _publish(self, now: datetime) -> int:
        self._assign()
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

    def _assign(self) -> None:
        # In steps: while a database gives indexes, nobody appends.
        for start in range(0, BATCH, WIDTH):
            step = min(WIDTH, BATCH - start)
            if self._store.assign(step) < step:
                return

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
        opens = record["type"] in OPENING
        if not opens or record["body"]["origin"] != self._log.origin:
            raise LogError("the first leaf is log.opened or log.continued, and names its origin")

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
        for full in range(before // WIDTH, size // WIDTH):
            self._store.discard((full + 1) * WIDTH)

    def _remove_partials(self, tile: Tile) -> None:
        folder = self._folder / f"{tile.path()}.p"
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            durable.remove(path)

    def _start(self) -> None:
        head, point = self._store.head(), self._log.checkpoint()
        self._check_keys(head)
        published = Head() if point is None else Head(point.size, point.root)
        witnessed = self._log.witnessed()
        if max(published.size, 0 if witnessed is None else witnessed.size) > head.size:
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
                raise BadKey(
                    "the log was signed by other keys: restore them, or begin a new log with "
                    "`radseal ledger continue`"
                ) from None

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
