"""A log's tree, built again from its entries and compared with every file of it.

The tree grows with the function that the sequencer grows it with. Each tile that this makes is
compared with the file; other files under tile/ must be earlier, shorter editions of these, or
lie ahead of the checkpoint and agree with each other. Each leaf is read strictly and shown to
the trace.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ledger import leaf, merkle
from ledger.checkpoint import Checkpoint
from ledger.errors import LeafError, MalformedTile, VerifyError
from ledger.source import Source, read_tile
from ledger.tiles import ENTRIES, WIDTH, Edge, Hashes, Tile, parse_path, split_hashes, unpack
from ledger.trace import Trace
from ledger.trace_memory import Places

__all__ = ["Progress", "Rebuilt"]

_KEY = (1 << 48) - 1

Progress = Callable[[int, int], None]
"""Told how many leaves of how many were read."""


class Rebuilt:
    """One reading of a log from its first leaf to its last.

    After `read`: `made` are the paths of the files that the tree needs, `roots` the roots it had
    at the sizes that were asked for, `met` the wanted leaves that it has, `trace` what its leaves
    tell.
    """

    def __init__(
        self,
        source: Source,
        point: Checkpoint,
        trace: Trace,
        sizes: Collection[int] = (),
        progress: Progress | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        self.source = source
        self.point = point
        self.made: set[str] = set()
        self.roots = {0: merkle.EMPTY}
        self.met: set[bytes] = set()
        self.trace = trace
        self.trace.recall_by(self._recall)
        self._sizes = sorted(sizes)
        self._places, self._idems = Places(), Places()
        self._progress = progress
        self._wanted = frozenset(map(leaf.unref, wanted))
        self._entries = functools.lru_cache(4)(self._read_entries)

    def read(self) -> None:
        """Grow the tree from the bundles, compare each tile and the root, judge each leaf."""
        edge, point = Edge(), self.point
        while edge.size < point.size:
            start, count = edge.size, min(WIDTH, point.size - edge.size)
            bundle = Tile(ENTRIES, start // WIDTH, count)
            path, entries = self._bundle(bundle)
            self._mark(bundle, path)
            self._early_roots(edge, entries)
            grown = edge.grow(entries)
            last = edge.size == point.size
            # On the way the rightmost tiles are narrower than the final ones and need not exist.
            for tile, data in {**grown, **(dict(_last_tiles(edge)) if last else {})}.items():
                if tile.level != ENTRIES and (tile.width == WIDTH or last):
                    self._compare(tile, data)
            whole = grown.get(Tile(0, start // WIDTH))
            hashes = split_hashes(whole, WIDTH) if whole is not None else list(edge.levels[0])
            self._judge(start, hashes, entries)
            if self._progress is not None:
                self._progress(edge.size, point.size)
        if edge.root() != point.root:
            raise VerifyError("checkpoint", "the entries do not lead to the signed root")
        self._each_once()

    def _compare(self, tile: Tile, derived: bytes) -> None:
        path, data = read_tile(self.source, tile)
        if data != derived:
            raise VerifyError(self._culprit(tile, path, derived), "was changed")
        self._mark(tile, path)

    def _mark(self, tile: Tile, path: str) -> None:
        """Note a file that was read in full; of a longer one the rest is looked at in `others`."""
        if path == tile.path():
            self.made.add(path)

    def _judge(self, start: int, hashes: Sequence[bytes], entries: Sequence[bytes]) -> None:
        self._places.add(hashes)
        idems: list[int] = []
        for number, (value, entry) in enumerate(zip(hashes, entries, strict=True), start):
            try:
                record = leaf.parse(entry)
            except LeafError as error:
                self.trace.blame(number, "", "R0", str(error))
                idems.append(number)
            else:
                idems.append(hash(record["idem"]) & _KEY)
                self.trace.see(number, value, record)
        self._idems.put(idems)
        if self._wanted:
            self.met |= self._wanted.intersection(hashes)

    def _each_once(self) -> None:
        """Blame the leaves that say a fact (`idem`) again; the second reading must be as the first.

        So a leaf that is there twice is found wherever the two stand, for eight bytes a leaf.
        """
        for key, indexes in self._idems.twins():
            first: dict[str, tuple[int, bytes]] = {}
            for index in indexes:
                entry = self._entries(index // WIDTH)[index % WIDTH]
                try:
                    record = leaf.parse(entry)
                except LeafError:
                    continue
                if hash(record["idem"]) & _KEY != key:
                    name = Tile(ENTRIES, index // WIDTH, self._width(index // WIDTH)).path()
                    raise VerifyError(name, "was something else when it was read before")
                earlier, same = first.setdefault(record["idem"], (index, entry))
                if earlier != index:
                    self.trace.again(index, record["type"], earlier, same=entry == same)

    def _early_roots(self, edge: Edge, entries: Sequence[bytes]) -> None:
        """Note the roots of smaller trees now: read again, a server could say something else."""
        for size in self._sizes:
            if edge.size < size <= edge.size + len(entries):
                early = edge.copy()
                early.grow(entries[: size - edge.size])
                self.roots[size] = early.root()

    def others(self) -> list[str]:
        """Verify the files that the final tree does not need; the ones ahead of the checkpoint."""
        ahead = []
        for path in self.source.tiles():
            if path in self.made:
                continue
            try:
                tile = parse_path(path)
            except MalformedTile:
                raise VerifyError(path, "is not a file of this log") from None
            if self._is_ahead(tile):
                ahead.append(path)
        return sorted(ahead)

    def _fetch(self, tile: Tile) -> bytes:
        return read_tile(self.source, tile)[1]

    def _recall(self, ref: str) -> tuple[int, Mapping[str, Any]] | None:
        try:
            value = leaf.unref(ref)
        except LeafError:
            return None
        for index in self._places.candidates(value):
            entry = self._entries(index // WIDTH)[index % WIDTH]
            if merkle.leaf_hash(entry) == value:
                try:
                    return index, leaf.parse(entry)
                except LeafError:
                    return None
        return None

    def _read_entries(self, number: int) -> list[bytes]:
        return self._bundle(Tile(ENTRIES, number, self._width(number)))[1]

    def _width(self, number: int) -> int:
        return min(WIDTH, self.point.size - number * WIDTH)

    def _bundle(self, tile: Tile) -> tuple[str, list[bytes]]:
        path, data = read_tile(self.source, tile)
        try:
            return path, unpack(data, tile.width)
        except MalformedTile as error:
            raise VerifyError(path, str(error)) from error

    def _culprit(self, tile: Tile, path: str, derived: bytes) -> str:
        """Name the changed file: the tile itself, or the bundle that it was compared with.

        Where entries and their hashes disagree, the tile above or the signed root says who
        is right; a tile further up was derived from files that agree with each other.
        """
        if tile.level != 0:
            return path
        point = self.point
        try:
            if tile.width == WIDTH:
                above = Hashes(point.size, self._fetch).perfect(8, tile.index)
                honest = merkle.root(split_hashes(derived, WIDTH)) == above
            else:
                levels = Edge.read_levels(point.size, self._fetch)
                levels[0] = split_hashes(derived, tile.width)
                honest = Edge(point.size, levels=levels).root() == point.root
        except MalformedTile:
            honest = True
        return path if honest else Tile(ENTRIES, tile.index, tile.width).path()

    def _is_ahead(self, tile: Tile) -> bool:
        """Whether a tile holds more than the checkpoint covers; what it covers must be equal."""
        data = self._fetch(tile)
        level = max(tile.level, 0)
        covered = min(WIDTH, max(0, (self.point.size >> 8 * level) - tile.index * WIDTH))
        beginning = self._fetch(Tile(tile.level, tile.index, covered)) if covered else b""
        shorter, longer = sorted((data, beginning), key=len)
        try:
            entries = unpack(data, tile.width) if tile.level == ENTRIES else []
        except MalformedTile as error:
            raise VerifyError(tile.path(), str(error)) from error
        if tile.level != ENTRIES and len(data) != tile.width * merkle.HASH_SIZE:
            raise VerifyError(tile.path(), "has the wrong length")
        if not longer.startswith(shorter):
            raise VerifyError(tile.path(), "differs from the tile that replaced it")
        if tile.level == ENTRIES and tile.width > covered:
            self._match_hashes(tile, entries)
        return tile.width > covered

    def _match_hashes(self, tile: Tile, entries: Sequence[bytes]) -> None:
        hashes = b"".join(map(merkle.leaf_hash, entries))
        try:
            found = self.source.read(Tile(0, tile.index, tile.width).path(), len(hashes))
        except FileNotFoundError:
            return
        if found != hashes:
            raise VerifyError(tile.path(), "does not match its hash tile")


def _last_tiles(edge: Edge) -> Iterator[tuple[Tile, bytes]]:
    for level, hashes in enumerate(edge.levels):
        if hashes:
            yield Tile(level, edge.size >> 8 * (level + 1), len(hashes)), b"".join(hashes)
