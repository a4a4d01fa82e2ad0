"""The log: append from anywhere, read and prove what is published.

append      validated bytes → pending row, durable            (any process, any thread)
sequence    pending → published, by the one holder of `ledger.sequencer`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from ledger import durable, leaf, merkle, note
from ledger.checkpoint import Checkpoint, valid_origin
from ledger.errors import (
    BadKey,
    Damaged,
    LeafError,
    Malformed,
    NotCovered,
    RolledBack,
    SignatureInvalid,
    StorageFailed,
    UnknownLeaf,
    WrongOrigin,
)
from ledger.proof import Proof
from ledger.store import Appended, Facts, Head, Last, Row, SqliteStore, Store
from ledger.tiles import ENTRIES, WIDTH, Hashes, Tile, unpack

__all__ = [
    "OPENING",
    "WITNESSED",
    "Appended",
    "Facts",
    "Head",
    "Log",
    "Row",
    "SqliteStore",
    "Store",
    "open_log",
    "read_tile",
]


WITNESSED = "checkpoint.witnessed"
"""The newest checkpoint that a quorum of witnesses has cosigned, beside `checkpoint`."""

OPENING = ("log.opened", "log.continued")
"""The types of a log's first leaf."""


def open_log(folder: Path, store: Store, origin: str, signers: Sequence[note.Signer] = ()) -> Log:
    """Return the log in `folder` (made if absent), bound to `origin` and to `store`.

    `signers` may be empty where only `append` and reading are wanted; their names must be
    the origin. Raises WrongOrigin, BadKey, StorageFailed, or RolledBack where files are
    published that the store has never heard of.
    """
    if not valid_origin(origin):
        raise WrongOrigin(f"{origin!r} is no origin: no space, no '+', no scheme")
    for signer in signers:
        if signer.name != origin:
            raise BadKey(f"a key of {signer.name} cannot sign for {origin}")
    head = store.head()
    if head.size == 0 and (folder / "checkpoint").exists():
        raise RolledBack
    try:
        durable.make_folder(folder)
    except OSError as error:
        raise StorageFailed(f"the log's folder cannot be made: {error.strerror}") from error
    store.pin(origin)
    return Log(folder, store, origin, signers)


class Log:
    """One site's log. Safe for many threads; only a sequencer changes the files."""

    def __init__(
        self, folder: Path, store: Store, origin: str, signers: Sequence[note.Signer]
    ) -> None:
        self.folder = folder
        self.store = store
        self.origin = origin
        self.signers = tuple(signers)
        self.holder: Callable[[datetime], int] | None = None
        """How the sequencer that holds this log, if one of this process does, publishes."""

    def append(self, idem: str, data: bytes) -> bytes:
        """Make a leaf durable; its hash. With a known `idem`: the hash of what is stored.

        Raises LeafError for bytes that are no leaf or bear another idem, StorageFailed
        when nothing is certain: then call again with the same key.
        """
        return self.store.append(idem, data, merkle.leaf_hash(data), _facts(idem, data)).leaf_hash

    def began(self) -> bool:
        """Whether the log has the leaf that opens it; without it nothing can be published."""
        return any(self.select(type=kind) for kind in OPENING)

    def shut(self, idem: str = "", data: bytes | None = None) -> None:
        """End the log, with `data` as its last leaf where it can still be signed; see `Store`.

        A log that never began ends without one: no log begins with its end.
        """
        if data is None or not self.began():
            self.store.shut(None)
        else:
            self.store.shut(Last(idem, data, merkle.leaf_hash(data), _facts(idem, data)))

    def unpublished(self) -> Iterator[bytes]:
        """Give the hashes of the leaves that a shut log took and no checkpoint covers."""
        start = self.store.head().size
        while rows := self.store.assigned(start, WIDTH):
            yield from (row.leaf_hash for row in rows)
            start += len(rows)

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
        return self.proofs([leaf_hash])[0]

    def proofs(self, leaf_hashes: Sequence[bytes], under: str | None = None) -> list[str]:
        """Return the tlog-proof of each of these leaves, all under one checkpoint.

        The published checkpoint is read once; `under` is another signed text of this log, not
        newer than it. Raises NotCovered where it does not cover every leaf, UnknownLeaf.
        """
        leaves = {leaf_hash: self.leaf(leaf_hash) for leaf_hash in leaf_hashes}
        published = self._read_published()
        if published is not None and under is not None:
            published = Checkpoint.parse(note.parse(under)[0]), under
        if published is None:
            raise NotCovered
        point, text = published
        hashes = Hashes(point.size, lambda tile: read_tile(self.folder, tile))
        made = []
        for leaf_hash in leaf_hashes:
            row = self.store.find(leaf_hash=leaf_hash)
            if row is None or row.index is None or row.index >= point.size:
                raise NotCovered
            path = merkle.inclusion_proof(row.index, point.size, hashes.perfect)
            merkle.verify_inclusion(leaf_hash, row.index, point.size, path, point.root)
            made.append(str(Proof(leaves[leaf_hash], row.index, tuple(path), text)))
        return made

    def consistency(self, old: int, new: int) -> list[bytes]:
        """Return the proof that the tree of `old` leaves is the beginning of that of `new`.

        Both sizes are at most that of the published checkpoint; raises Damaged, ProofInvalid.
        """
        hashes = Hashes(new, lambda tile: read_tile(self.folder, tile))
        return merkle.consistency_proof(old, new, hashes.perfect)

    def root(self, size: int) -> bytes:
        """Return the root over the first `size` published leaves; raises Damaged."""
        # From the tiles of what is published now: of another size there need not be any.
        hashes = Hashes(self.size(), lambda tile: read_tile(self.folder, tile))
        return merkle.range_hash(0, size, hashes.perfect)

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

    def witnessed(self) -> Checkpoint | None:
        """Return what a quorum of witnesses cosigned, as far as our own keys signed it too.

        Also by keys that were retired since. None where there is none, or none that can be read:
        it is made anew from witnesses.
        """
        try:
            text = (self.folder / WITNESSED).read_text(encoding="utf-8")
            body, lines = note.parse(text)
            keys = [note.Verifier(s.name, s.algorithm, s.public) for s in self.signers]
            if not {(k.name, k.key_id) for k in keys} & {(s.name, s.key_id) for s in lines}:
                keys = self._announced()
            note.open_note(text, keys)
            return Checkpoint.parse(body)
        except (FileNotFoundError, UnicodeDecodeError, Malformed, SignatureInvalid):
            return None

    def _announced(self) -> list[note.Verifier]:
        """Return the keys that this log's own leaves name in full: each pair's Ed25519 key."""
        found = []
        for kind in (*OPENING, "key.rotated"):
            for leaf_hash, _ in self.select(type=kind):
                body = leaf.parse(self.leaf(leaf_hash))["body"]
                proofs = [one for one in body.get("proof", ()) if isinstance(one, Mapping)]
                for key in map(str, [*body.get("vkeys", ()), *(one.get("key") for one in proofs)]):
                    with suppress(BadKey):  # of a longer key the leaf has the SHA-256
                        found.append(note.Verifier.from_vkey(key))
        return found

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


def _facts(idem: str, data: bytes) -> Facts:
    record = leaf.parse(data)
    if record["idem"] != idem:
        raise LeafError(f"the leaf bears the key {record['idem']!r}, not {idem!r}")
    return Facts(record["type"], record["time"], record.get("subject"), record.get("study"))


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
