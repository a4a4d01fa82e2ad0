r"""A proof that travels alone: tlog-proof (C2SP). Pure.

    c2sp.org/tlog-proof@v1\n
    extra <base64>\n             optional; here: the bytes of the leaf
    index <decimal>\n
    <base64 hash>\n              the audit path, the leaf's sibling first
    \n
    <the signed checkpoint, verbatim>

`extra` is not authenticated by the format; ours holds the leaf itself, whose hash the
path then leads from, so a changed leaf leads nowhere.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from ledger.errors import MalformedProof

__all__ = ["HEADER", "Proof"]

HEADER = "c2sp.org/tlog-proof@v1"


@dataclass(frozen=True, slots=True)
class Proof:
    """Leaf bytes (or None), index, audit path and the signed checkpoint's text."""

    extra: bytes | None
    index: int
    path: tuple[bytes, ...]
    checkpoint: str

    def __str__(self) -> str:
        lines = [HEADER]
        if self.extra is not None:
            lines.append(f"extra {base64.b64encode(self.extra).decode()}")
        lines.append(f"index {self.index}")
        lines += [base64.b64encode(value).decode() for value in self.path]
        return "\n".join(lines) + "\n\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read leniently, render, compare; raises MalformedProof."""
        head, _, checkpoint = text.partition("\n\n")
        lines = head.split("\n")[1:]
        try:
            extra = None
            if lines and lines[0].startswith("extra "):
                extra = base64.b64decode(lines.pop(0).removeprefix("extra "))
            index = int(lines.pop(0).removeprefix("index "))
            path = tuple(base64.b64decode(line) for line in lines)
        except (ValueError, IndexError, binascii.Error):
            raise MalformedProof("a line of the proof is not what tlog-proof draws") from None
        found = cls(extra, index, path, checkpoint)
        if str(found) != text or not 0 <= index < 1 << 63:
            raise MalformedProof("the proof is not spelled as its values are")
        if len(path) > 63 or any(len(value) != 32 for value in path):
            raise MalformedProof("the audit path has a hash of the wrong length, or too many")
        return found
