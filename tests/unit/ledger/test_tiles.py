"""Paths, bundles and the growing right edge of tlog-tiles."""

from __future__ import annotations

import pytest

from ledger import merkle
from ledger.errors import MalformedTile
from ledger.tiles import ENTRIES, Edge, Hashes, Tile, pack, parse_path, split_hashes, unpack

SIZES = (1, 2, 3, 255, 256, 257, 511, 512, 513, 65535, 65536, 65537, 65792)


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 5), "tile/0/005"),
        (Tile(0, 273, 112), "tile/0/273.p/112"),
        (Tile(1, 1234067), "tile/1/x001/x234/067"),
        (Tile(63, 1000, 1), "tile/63/x001/000.p/1"),
        (Tile(ENTRIES, 999, 255), "tile/entries/999.p/255"),
    ],
)
def test_paths(tile, path):
    assert tile.path() == path
    assert parse_path(path) == tile


@pytest.mark.parametrize(
    "path",
    [
        "tile/00/000", "tile/64/000", "tile/0/00", "tile/0/0000", "tile/0/000.p/0",
        "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/x000/000", "tile/0/001/000",
        "tile/0/x001/x000", "/tile/0/000", "tile/0/000/", "tile/0/000.p", "tile/entries/1",
        "tile/0/٠٠٠", "checkpoint", "", "tile/0/000\n",
    ],
)  # fmt: skip
def test_other_spellings_are_refused(path):
    with pytest.raises(MalformedTile):
        parse_path(path)


def test_bundles():
    entries = [b"", b"a", b"x" * 65_535]
    data = pack(entries)
    assert data[:5] == b"\0\0\0\1a"
    assert unpack(data, 3) == entries
    for wrong, width in ((data, 2), (data, 4), (data[:-1], 3), (data + b"\0", 3), (b"\0", 1)):
        with pytest.raises(MalformedTile):
            unpack(wrong, width)
    with pytest.raises(MalformedTile):
        pack([b"x" * 65_536])
    with pytest.raises(MalformedTile):
        split_hashes(b"x" * 33, 1)


def test_growing_writes_exactly_the_tiles_a_reader_needs():
    entries = [number.to_bytes(4, "big") for number in range(max(SIZES))]
    hashes = [merkle.leaf_hash(entry) for entry in entries]
    edge, files = Edge(), {}
    for size in SIZES:
        before = edge.copy()
        files.update(edge.grow(entries[edge.size : size]))
        assert before.size < edge.size == size
        assert edge.root() == merkle.root(hashes[:size])
        again = Edge.load(size, files.__getitem__)
        assert (again.root(), again.bundle) == (edge.root(), edge.bundle)
        assert all(len(level) < 256 for level in edge.levels)
        reader = Hashes(size, files.__getitem__)
        for index in {0, size // 2, size - 1, max(0, size - 256)}:
            path = merkle.inclusion_proof(index, size, reader.perfect)
            merkle.verify_inclusion(hashes[index], index, size, path, edge.root())
        for old in (1, size // 2, size):
            merkle.verify_consistency(
                old, size, merkle.root(hashes[:old]), edge.root(),
                merkle.consistency_proof(old, size, reader.perfect),
            )  # fmt: skip


def test_the_layout_of_seventy_thousand_leaves():
    files = Edge().grow([b""] * 70_000)
    full = [tile for tile in files if tile.width == 256]
    assert sum(tile.level == ENTRIES for tile in full) == 273
    assert sum(tile.level == 0 for tile in full) == 273
    assert sorted(tile for tile in files if tile.width < 256) == [
        Tile(ENTRIES, 273, 112), Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1),
    ]  # fmt: skip


def test_256_leaves_have_a_full_tile_and_one_hash_above_it():
    files = Edge().grow([b""] * 256)
    assert sorted(files) == [Tile(ENTRIES, 0), Tile(0, 0), Tile(1, 0, 1)]


def test_a_bundle_that_does_not_match_its_hashes_is_no_edge():
    edge = Edge()
    files = edge.grow([b"a", b"b"])
    files[Tile(ENTRIES, 0, 2)] = pack([b"a", b"c"])
    with pytest.raises(MalformedTile):
        Edge.load(2, files.__getitem__)


def test_growing_by_nothing_writes_nothing():
    edge = Edge()
    assert edge.grow([]) == {}
    assert edge.root() == merkle.EMPTY
