r"""The files of a log: tlog-tiles (C2SP), height 8, 256 hashes wide. Pure.

    tile/<L>/<N>[.p/<W>]          W hashes of 32 bytes at tile level L
    tile/entries/<N>[.p/<W>]      W entries, each: big-endian uint16 length ‖ bytes

    N = groups of three digits, all but the last after an x:  1234067 → x001/x234/067
    W = 1..255 and only when the tile is partial; a partial tile is never hashed upward.

Item i of tile N at level L is the hash over the 256^L leaves from (256·N + i)·256^L.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ledger import merkle
from ledger.errors import MalformedTile

__all__ = [
    "ENTRIES",
    "MAX_ENTRY",
    "WIDTH",
    "Edge",
    "Hashes",
    "Tile",
    "pack",
    "parse_path",
    "split_hashes",
    "unpack",
]

WIDTH = 256
MAX_ENTRY = 65_535
ENTRIES = -1
"""The level of an entry bundle: it lies below the hashes."""

_PATH = re.compile(
    r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """The name of one tile: level (ENTRIES or 0..63), index, width 1..256."""

    level: int
    index: int
    width: int = WIDTH

    def path(self) -> str:
        """Its path below the log's prefix."""
        digits = f"{self.index % 1000:03d}"
        rest = self.index // 1000
        while rest:
            digits = f"x{rest % 1000:03d}/{digits}"
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        partial = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{level}/{digits}{partial}"

    def whole(self) -> Tile:
        """Return the full tile that replaces this partial one."""
        return Tile(self.level, self.index)


def parse_path(path: str) -> Tile:
    """Return the tile that a path names; raises MalformedTile unless it is spelled exactly so."""
    match = _PATH.fullmatch(path)
    if match is None:
        raise MalformedTile(f"{path!r} names no tile")
    level = ENTRIES if match[1] == "entries" else int(match[1])
    index = int(match[2].replace("/", "").replace("x", ""))
    tile = Tile(level, index, WIDTH if match[3] is None else int(match[3]))
    if tile.width > WIDTH or tile.path() != path:
        raise MalformedTile(f"{path!r} names no tile")
    return tile


def pack(entries: Iterable[bytes]) -> bytes:
    """Return an entry bundle."""
    parts = []
    for entry in entries:
        if len(entry) > MAX_ENTRY:
            raise MalformedTile(f"an entry of {len(entry)} bytes exceeds {MAX_ENTRY}")
        parts += [len(entry).to_bytes(2, "big"), entry]
    return b"".join(parts)


def unpack(data: bytes, width: int) -> list[bytes]:
    """Return the `width` entries of a bundle; every byte must belong to one of them."""
    entries, at = [], 0
    for _ in range(width):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if at + 2 > len(data) or end > len(data):
            raise MalformedTile("the entry bundle is cut short")
        entries.append(data[at + 2 : end])
        at = end
    if at != len(data):
        raise MalformedTile("the entry bundle has bytes after its last entry")
    return entries


def split_hashes(data: bytes, width: int) -> list[bytes]:
    """Return the `width` hashes of a hash tile."""
    if len(data) != width * merkle.HASH_SIZE:
        raise MalformedTile(f"the tile has {len(data)} bytes instead of {width * 32}")
    return [data[i : i + 32] for i in range(0, len(data), 32)]


@dataclass(slots=True)
class Edge:
    """The right edge of a tree: all that is needed to grow it, and to know its root.

    `levels[L]` holds the hashes of the rightmost, not yet full tile at level L;
    `bundle` the entries of the rightmost, not yet full bundle.
    """

    size: int = 0
    bundle: list[bytes] = field(default_factory=list)
    levels: list[list[bytes]] = field(default_factory=list)

    @classmethod
    def load(cls, size: int, fetch: Callable[[Tile], bytes]) -> Edge:
        """Return the edge of a log of `size` entries. Compare its `root()` before use."""
        edge = cls(size, levels=cls.read_levels(size, fetch))
        if size % WIDTH:
            tile = Tile(ENTRIES, size // WIDTH, size % WIDTH)
            edge.bundle = unpack(fetch(tile), tile.width)
        if edge.bundle and edge.levels[0] != [merkle.leaf_hash(e) for e in edge.bundle]:
            raise MalformedTile("the last entry bundle does not match the last hash tile")
        return edge

    @staticmethod
    def read_levels(size: int, fetch: Callable[[Tile], bytes]) -> list[list[bytes]]:
        """Return the hashes of the rightmost partial tile at each level."""
        levels: list[list[bytes]] = []
        rest = size
        while rest:
            rest, width = divmod(rest, WIDTH)
            tile = Tile(len(levels), rest, width)
            levels.append(split_hashes(fetch(tile), width) if width else [])
        return levels

    def copy(self) -> Edge:
        """Return an edge that grows without changing this one."""
        return Edge(self.size, list(self.bundle), [list(level) for level in self.levels])

    def grow(self, entries: Sequence[bytes]) -> dict[Tile, bytes]:
        """Append entries; the tiles that a reader of the new size needs and did not have."""
        written: dict[Tile, bytes] = {}
        before = self.size
        at = 0
        while at < len(entries):  # up to the end of the bundle at once
            some = entries[at : at + WIDTH - len(self.bundle)]
            at += len(some)
            self.bundle += some
            self.size += len(some)
            if len(self.bundle) == WIDTH:
                written[Tile(ENTRIES, self.size // WIDTH - 1)] = pack(self.bundle)
                self.bundle.clear()
            self._push(0, [merkle.leaf_hash(entry) for entry in some], written)
        if self.bundle and self.size > before:
            written[Tile(ENTRIES, self.size // WIDTH, len(self.bundle))] = pack(self.bundle)
        for level, hashes in enumerate(self.levels):
            if hashes and self.size >> 8 * level != before >> 8 * level:
                index = self.size >> 8 * (level + 1)
                written[Tile(level, index, len(hashes))] = b"".join(hashes)
        return written

    def root(self) -> bytes:
        """Return the root of the tree."""
        return merkle.range_hash(0, self.size, self._perfect)

    def _push(self, level: int, values: Sequence[bytes], written: dict[Tile, bytes]) -> None:
        if level == len(self.levels):
            self.levels.append([])
        hashes = self.levels[level]
        hashes += values
        if len(hashes) == WIDTH:
            index = (self.size >> 8 * (level + 1)) - 1
            written[Tile(level, index)] = b"".join(hashes)
            above = merkle.root(hashes)
            hashes.clear()
            self._push(level + 1, [above], written)

    def _perfect(self, level: int, index: int) -> bytes:
        row, height = divmod(level, 8)
        first = (index << height) % WIDTH
        return merkle.root(self.levels[row][first : first + (1 << height)])


class Hashes:
    """Hashes of perfect subtrees, read from the tiles of a log of `size` entries."""

    def __init__(self, size: int, fetch: Callable[[Tile], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._seen: dict[Tile, list[bytes]] = {}

    def perfect(self, level: int, index: int) -> bytes:
        """Return the hash of the perfect subtree (level, index)."""
        row, height = divmod(level, 8)
        first = index << height
        whole, width = divmod(self._size >> 8 * row, WIDTH)
        number = first // WIDTH
        tile = Tile(row, number, WIDTH if number < whole else width)
        if tile not in self._seen:
            self._seen[tile] = split_hashes(self._fetch(tile), tile.width)
        return merkle.root(self._seen[tile][first % WIDTH : first % WIDTH + (1 << height)])
