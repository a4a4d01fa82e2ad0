"""Logs of any height in seconds: leaves by the thousand in one transaction, no fsync.

Tests of formats and benchmarks of reading need the bytes, not the durability; whoever tests
durability uses tests/paper_log.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ledger import merkle
from ledger.checkpoint import Checkpoint
from ledger.note import Signer, sign_note
from ledger.store import SqliteStore
from ledger.tiles import WIDTH, Edge, Tile

_TIME = "2026-01-02T03:04:05.678Z"
_LEAF = (
    '{"actor":{"id":"radseal","kind":"system"},"body":{"digest":"%064x"},'
    '"id":"00000000-0000-7000-8000-%012x","idem":"key/%d","node":"node-1",'
    '"time":"' + _TIME + '","type":"config.changed","v":1}'
)


def config_leaf(number: int) -> bytes:
    """The bytes of a config.changed with this number in its id and key."""
    return (_LEAF % (number, number, number)).encode()


@contextmanager
def unsynced() -> Iterator[None]:
    """No fsync inside: for logs that are thrown away."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


def pour(store: SqliteStore, start: int, count: int) -> list[bytes]:
    """Append the leaves start … start + count - 1 in one transaction; their hashes."""
    rows = []
    for number in range(start, start + count):
        data = config_leaf(number)
        hashed = merkle.leaf_hash(data)
        rows.append((f"key/{number}", hashed, data, "config.changed", _TIME, None, None))
    return [one.leaf_hash for one in store._append(rows)]


def raise_to(site: Any, size: int) -> list[bytes]:
    """Grow a published paper site to `size` leaves; the hashes of the new ones."""
    hashes: list[bytes] = []
    with unsynced():
        while (missing := size - site.number) > 0:
            hashes += pour(site.store, site.number, min(missing, 50_000))
            site.number += min(missing, 50_000)
        site.publish()
    return hashes


def linked(source: Path, target: Path) -> Path:
    """A copy of a log folder by hard links: published files are replaced, never changed."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def write_tiles(
    folder: Path, entries: Iterator[bytes], size: int, origin: str, signers: Sequence[Signer]
) -> Iterator[int]:
    """A log folder straight from entries, no database, no fsync; yields the size so far."""
    edge = Edge()
    while edge.size < size:
        batch = [next(entries) for _ in range(min(16_384, size - edge.size))]
        for tile, data in edge.grow(batch).items():
            if tile.width == WIDTH or edge.size == size:
                _put(folder, tile, data)
        yield edge.size
    # `grow` gives a rightmost tile only when it changed; a reader of this size needs them all.
    for level, hashes in enumerate(edge.levels):
        if hashes:
            tile = Tile(level, edge.size >> 8 * (level + 1), len(hashes))
            _put(folder, tile, b"".join(hashes))
    point = Checkpoint(origin, edge.size, edge.root())
    (folder / "checkpoint").write_text(sign_note(str(point), signers, 1_700_000_000))


def _put(folder: Path, tile: Tile, data: bytes) -> None:
    path = folder / tile.path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
