"""Believe nothing but the keys you brought: a log folder or a proof, verified offline.

`verify_log` builds the whole tree again from the entry bundles with the function that the
sequencer grows it with, compares every file it makes with the file on disk, compares the
root with the signed one, reads every leaf strictly and judges the trace rules. Files that
it did not make must be earlier, shorter editions of ones it did; anything else under
tile/ is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import leaf, merkle, note
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    BadKey,
    LeafError,
    Malformed,
    MalformedTile,
    ProofInvalid,
    SignatureInvalid,
    VerifyError,
)
from ledger.proof import Proof
from ledger.tiles import ENTRIES, WIDTH, Edge, Hashes, Tile, parse_path, split_hashes, unpack
from ledger.trace import Trace

__all__ = [
    "ProofReport",
    "Report",
    "open_checkpoint",
    "policy_text",
    "read_vkeys",
    "verify_log",
    "verify_proof",
]


@dataclass(frozen=True, slots=True)
class Report:
    """A log that verified: what it is, and what stands in it."""

    origin: str
    size: int
    root: bytes
    signed_by: tuple[str, ...]
    files: int
    counts: Mapping[str, int] = field(default_factory=dict)
    open_studies: tuple[int, ...] = ()
    ahead: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProofReport:
    """A proof that verified: the leaf, its place, and the checkpoint it stands under."""

    record: Mapping[str, Any]
    leaf_hash: bytes
    index: int
    checkpoint: Checkpoint
    signed_by: tuple[str, ...]


def policy_text(vkeys: Sequence[str]) -> str:
    """Return a tlog-policy that trusts these log keys and asks for no witness."""
    for key in vkeys:
        note.Verifier.from_vkey(key)
    return "".join(f"log {key}\n" for key in vkeys) + "quorum none\n"


def read_vkeys(text: str) -> list[str]:
    """Return the vkeys of a file, one a line; empty lines and lines from # on are skipped."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def open_checkpoint(text: str, vkeys: Sequence[str]) -> tuple[Checkpoint, tuple[str, ...]]:
    """(checkpoint, the vkeys that signed it); of each algorithm that was brought one must have.

    So a post-quantum signature cannot be stripped from a log whose two keys you hold.
    Raises SignatureInvalid, Malformed.
    """
    verifiers = [note.Verifier.from_vkey(key) for key in vkeys]
    if not verifiers:
        raise BadKey("bring at least one vkey: a verifier takes no trust from what it verifies")
    opened = note.open_note(text, verifiers)
    point = Checkpoint.parse(opened.text)
    signed = [key for key, _ in opened.signed]
    if any(key.name != point.origin for key in signed):
        raise SignatureInvalid(f"the checkpoint of {point.origin} is signed by another log's key")
    missing = {key.algorithm for key in verifiers} - {key.algorithm for key in signed}
    if missing:
        kinds = ", ".join(f"{kind:02x}" for kind in sorted(missing))
        raise SignatureInvalid(f"no signature by your key of type {kinds}")
    return point, tuple(note.vkey(key) for key in signed)


def verify_proof(text: str, vkeys: Sequence[str], origin: str | None = None) -> ProofReport:
    """Verify a tlog-proof that carries its leaf; raises VerifyError."""
    try:
        proof = Proof.parse(text)
        point, signed_by = open_checkpoint(proof.checkpoint, vkeys)
        if origin is not None and point.origin != origin:
            raise SignatureInvalid(f"the proof is of {point.origin}, not of {origin}")
        if proof.extra is None:
            raise ProofInvalid("the proof does not carry its leaf")
        value = merkle.leaf_hash(proof.extra)
        merkle.verify_inclusion(value, proof.index, point.size, proof.path, point.root)
        record = leaf.parse(proof.extra)
    except BadKey:
        raise
    except (Malformed, SignatureInvalid, ProofInvalid, LeafError) as error:
        raise VerifyError("proof", str(error)) from error
    return ProofReport(record, value, proof.index, point, signed_by)


def verify_log(folder: Path, vkeys: Sequence[str]) -> Report:
    """Verify everything in a log folder; raises VerifyError naming the file or leaf."""
    point, signed_by = _signed(folder, vkeys)
    trace = Trace(point.origin)
    made = _rebuild(folder, point, trace)
    ahead = _others(folder, point.size, made)
    if trace.violations:
        first = trace.violations[0]
        more = len(trace.violations) - 1
        what = f"{first.rule}: {first.words}" + (f" (and {more} more)" if more else "")
        raise VerifyError(f"leaf {first.index} ({first.type})", what)
    return Report(
        point.origin, point.size, point.root, signed_by, len(made) + 1,
        dict(trace.counts), tuple(trace.open_studies()), tuple(ahead),
    )  # fmt: skip


def _rebuild(folder: Path, point: Checkpoint, trace: Trace) -> set[str]:
    """Grow the tree from the bundles, compare each tile and the root; the paths that it made."""
    edge = Edge()
    made: set[str] = set()
    while edge.size < point.size:
        start, count = edge.size, min(WIDTH, point.size - edge.size)
        bundle = Tile(ENTRIES, start // WIDTH, count)
        entries = _bundle(folder, bundle)
        grown = edge.grow(entries)
        # On the way the rightmost tiles are narrower than the final ones and need not exist.
        last = dict(_last_tiles(edge)) if edge.size == point.size else {}
        for tile, data in {**grown, **last}.items():
            if tile.width == WIDTH or edge.size == point.size:
                if _read(folder, tile) != data:
                    raise VerifyError(_culprit(folder, point, tile, data), "was changed")
                made.add(tile.path())
        for number, entry in enumerate(entries, start):
            trace.see(number, merkle.leaf_hash(entry), _record(number, entry))
    if edge.root() != point.root:
        raise VerifyError("checkpoint", "the entries do not lead to the signed root")
    return made


def _culprit(folder: Path, point: Checkpoint, tile: Tile, derived: bytes) -> str:
    """Name the changed file: the tile itself, or the bundle that it was compared with.

    Where entries and their hashes disagree, the tile above or the signed root says who
    is right; a tile further up was derived from files that agree with each other.
    """
    if tile.level != 0:
        return tile.path()
    try:
        if tile.width == WIDTH:
            above = Hashes(point.size, lambda one: _read(folder, one)).perfect(8, tile.index)
            honest = merkle.root(split_hashes(derived, WIDTH)) == above
        else:
            levels = Edge.read_levels(point.size, lambda one: _read(folder, one))
            levels[0] = split_hashes(derived, tile.width)
            honest = Edge(point.size, levels=levels).root() == point.root
    except MalformedTile:
        honest = True
    return tile.path() if honest else Tile(ENTRIES, tile.index, tile.width).path()


def _signed(folder: Path, vkeys: Sequence[str]) -> tuple[Checkpoint, tuple[str, ...]]:
    for key in vkeys:
        note.Verifier.from_vkey(key)  # wrong use, before anything is read
    try:
        text = (folder / "checkpoint").read_bytes().decode()
        return open_checkpoint(text, vkeys)
    except FileNotFoundError:
        raise VerifyError("checkpoint", "is missing: this is no log, or it is empty") from None
    except UnicodeDecodeError:
        raise VerifyError("checkpoint", "is not UTF-8") from None
    except BadKey:
        raise
    except (Malformed, SignatureInvalid) as error:
        raise VerifyError("checkpoint", str(error)) from error


def _read(folder: Path, tile: Tile) -> bytes:
    try:
        return (folder / tile.path()).read_bytes()
    except FileNotFoundError:
        raise VerifyError(tile.path(), "is missing") from None


def _bundle(folder: Path, tile: Tile) -> list[bytes]:
    try:
        return unpack(_read(folder, tile), tile.width)
    except MalformedTile as error:
        raise VerifyError(tile.path(), str(error)) from error


def _record(number: int, entry: bytes) -> Mapping[str, Any]:
    try:
        return leaf.parse(entry)
    except LeafError as error:
        raise VerifyError(f"leaf {number}", str(error)) from error


def _last_tiles(edge: Edge) -> Iterator[tuple[Tile, bytes]]:
    for level, hashes in enumerate(edge.levels):
        if hashes:
            yield Tile(level, edge.size >> 8 * (level + 1), len(hashes)), b"".join(hashes)


def _others(folder: Path, size: int, made: set[str]) -> list[str]:
    """Verify the files that the final tree does not need; the ones ahead of the checkpoint."""
    ahead = []
    for top, _, names in os.walk(folder / "tile"):
        for name in sorted(names):
            path = (Path(top) / name).relative_to(folder).as_posix()
            if path in made:
                continue
            try:
                tile = parse_path(path)
            except MalformedTile:
                raise VerifyError(path, "is not a file of this log") from None
            if _is_ahead(folder, tile, size):
                ahead.append(path)
    return sorted(ahead)


def _is_ahead(folder: Path, tile: Tile, size: int) -> bool:
    """Whether a tile holds more than the checkpoint covers; what it covers must be equal."""
    data = (folder / tile.path()).read_bytes()
    level = max(tile.level, 0)
    covered = min(WIDTH, max(0, (size >> 8 * level) - tile.index * WIDTH))
    beginning = b""
    if covered:
        beginning = (folder / Tile(tile.level, tile.index, covered).path()).read_bytes()
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
        _match_hashes(folder, tile, entries)
    return tile.width > covered


def _match_hashes(folder: Path, tile: Tile, entries: list[bytes]) -> None:
    path = folder / Tile(0, tile.index, tile.width).path()
    hashes = b"".join(map(merkle.leaf_hash, entries))
    if path.exists() and path.read_bytes() != hashes:
        raise VerifyError(tile.path(), "does not match its hash tile")
