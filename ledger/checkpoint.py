r"""A checkpoint: what a log commits to. tlog-checkpoint (C2SP). Pure.

    <origin>\n
    <number of entries, decimal>\n
    <root hash, base64>\n

It is the text of a signed note (`ledger.note`). Extension lines are not ours and are
refused: an ML-DSA signature would not cover them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from ledger.errors import MalformedCheckpoint
from ledger.merkle import EMPTY, HASH_SIZE

__all__ = ["Checkpoint", "valid_origin"]


def valid_origin(origin: str) -> bool:
    """Whether a name can be an origin and a key name: no space, no '+', no control character."""
    return (
        bool(origin) and origin.isprintable() and not any(c.isspace() or c == "+" for c in origin)
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One state of a log: its origin, how many entries, the root over them."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read leniently, render, compare: only the one spelling is accepted."""
        lines = text.split("\n")
        if len(lines) != 4:
            raise MalformedCheckpoint("a checkpoint has three lines")
        try:
            found = cls(lines[0], int(lines[1]), base64.b64decode(lines[2]))
        except (ValueError, binascii.Error):
            raise MalformedCheckpoint("the size or the root of the checkpoint is no such") from None
        if str(found) != text or not valid_origin(found.origin):
            raise MalformedCheckpoint("the checkpoint is not spelled as its values are")
        if found.size < 0 or found.size >= 1 << 63 or len(found.root) != HASH_SIZE:
            raise MalformedCheckpoint("the size or the root of the checkpoint is out of range")
        if found.size == 0 and found.root != EMPTY:
            raise MalformedCheckpoint("an empty log has the root of nothing")
        return found
