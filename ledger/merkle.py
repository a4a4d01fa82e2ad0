r"""The Merkle tree of RFC 6962 §2.1 = RFC 9162 §2.1, over SHA-256. Pure.

    leaf = SHA-256(0x00 ‖ entry)      node = SHA-256(0x01 ‖ left ‖ right)
    root of nothing = SHA-256("")     n leaves split at the largest power of two below n

A *perfect* subtree (level l, index i) covers the leaves [i·2^l, (i+1)·2^l). Whoever holds
the hashes of perfect subtrees can answer every question below, so each proof takes a
function `perfect(level, index) -> hash` and does not care where the hashes live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from ledger.errors import ProofInvalid

__all__ = [
    "EMPTY",
    "HASH_SIZE",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "range_hash",
    "root",
    "spans",
    "verify_consistency",
    "verify_inclusion",
]

HASH_SIZE = 32
EMPTY = hashlib.sha256(b"").digest()
Perfect = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """Hash of one entry: 32 bytes."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes (or over equally high perfect subtrees), in order."""
    row = list(hashes)
    if not row:
        return EMPTY
    while len(row) > 1:
        # The last of an odd row moves up unchanged: the same tree as splitting from the top.
        odd = [row.pop()] if len(row) % 2 else []
        row = [node_hash(row[i], row[i + 1]) for i in range(0, len(row), 2)] + odd
    return row[0]


def spans(start: int, end: int) -> list[tuple[int, int]]:
    """Perfect subtrees (level, index) that tile [start, end), left to right.

    `start` must be a multiple of the largest power of two that fits, which holds for
    every range that a proof asks for.
    """
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found


def range_hash(start: int, end: int, perfect: Perfect) -> bytes:
    """Hash of the subtree over the leaves [start, end)."""
    hashes = [perfect(level, index) for level, index in spans(start, end)]
    if not hashes:
        return EMPTY
    folded = hashes.pop()
    while hashes:
        folded = node_hash(hashes.pop(), folded)
    return folded


def inclusion_proof(index: int, size: int, perfect: Perfect) -> list[bytes]:
    """Audit path of RFC 9162 §2.1.3.1, the leaf's sibling first."""
    if not 0 <= index < size:
        raise ProofInvalid(f"leaf {index} is not in a tree of {size}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_hash(middle, end, perfect))
            end = middle
        else:
            path.append(range_hash(start, middle, perfect))
            start = middle
    return path[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, path: Sequence[bytes], expected: bytes
) -> None:
    """RFC 9162 §2.1.3.2; raises ProofInvalid unless `leaf` is at `index` under `expected`."""
    if not 0 <= index < size:
        raise ProofInvalid(f"leaf {index} is not in a tree of {size}")
    position, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise ProofInvalid("the inclusion proof is too long")
        if position & 1 or position == last:
            found = node_hash(sibling, found)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofInvalid("the inclusion proof is too short")
    if found != expected:
        raise ProofInvalid(f"leaf {index} does not lead to the root")


def consistency_proof(old: int, new: int, perfect: Perfect) -> list[bytes]:
    """Consistency proof of RFC 9162 §2.1.4.1 between the trees of `old` and `new` leaves."""
    if not 0 <= old <= new:
        raise ProofInvalid(f"a tree of {old} is not a beginning of one of {new}")
    path: list[bytes] = []
    if old in (0, new):
        return path
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(range_hash(middle, end, perfect))
            end = middle
        else:
            path.append(range_hash(start, middle, perfect))
            start, whole = middle, False
    if not whole:
        path.append(range_hash(start, end, perfect))
    return path[::-1]


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]
) -> None:
    """RFC 9162 §2.1.4.2; raises ProofInvalid unless the old tree is a beginning of the new."""
    if not 0 <= old <= new:
        raise ProofInvalid(f"a tree of {old} is not a beginning of one of {new}")
    if old in (0, new):
        if path:
            raise ProofInvalid("the consistency proof should be empty")
        if old_root != (EMPTY if old == 0 else new_root):
            raise ProofInvalid("the same size has two roots")
        return
    hashes = list(path)
    if old & (old - 1) == 0:
        hashes.insert(0, old_root)
    if _replay(old, new, hashes) != (old_root, new_root):
        raise ProofInvalid(f"the tree of {new} does not continue the tree of {old}")


def _replay(old: int, new: int, hashes: Sequence[bytes]) -> tuple[bytes, bytes]:
    """(old root, new root) that a consistency proof leads to; raises ProofInvalid."""
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    if not hashes:
        raise ProofInvalid("the consistency proof is empty")
    older = newer = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise ProofInvalid("the consistency proof is too long")
        if position & 1 or position == last:
            older, newer = node_hash(sibling, older), node_hash(sibling, newer)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            newer = node_hash(newer, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofInvalid("the consistency proof is too short")
    return older, newer


def _split(count: int) -> int:
    """Largest power of two smaller than `count` (count > 1)."""
    return 1 << ((count - 1).bit_length() - 1)
