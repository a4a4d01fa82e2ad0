"""The receipt block: a result carries its proof inside (design §4b). Pure.

Private creator `RADSEAL RECEIPT` in group 0099; xx is the block that it reserves, 10 to FF.

    (0099,00xx)  LO  RADSEAL RECEIPT
    (0099,xx01)  OB  K_a, exactly 32 bytes: the key of this artifact's commitments
    (0099,xx02)  OB  SHA-256 over the other elements, 32 bytes
    (0099,xx10)  OB  one whole tlog-proof, its leaf in `extra`: that of result.composed
    (0099,xx11)…     OB  one more each, without a gap, at most 240, all under one checkpoint

A proof is its text in UTF-8, with one NUL behind an odd length; a reader strips exactly that.
xx02 is taken over K_a and the proofs in this order, each as its element's low byte (u8), the
length of its unpadded value (u32, little-endian) and that value. It names damage and proves
nothing else: whoever forges a block can forge it too. Readers accept each element as UN, as
an archive that does not know the block gives it back after an Implicit VR hop.

Test vector: `tests/vectors/receipt_block`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from bridge.commitments import KEY_BYTES
from bridge.report.content import RECEIPT_CREATOR, RECEIPT_GROUP
from bridge.report.errors import ReceiptError, ReportError

__all__ = ["MOST_PROOFS", "Receipt", "insert", "read"]

MOST_PROOFS = 0xF0
_KEY, _DIGEST, _FIRST = 0x01, 0x02, 0x10
_BLOCK = 0x10  # where we write it; an archive may move it
_LONGEST = 1 << 20
_OTHERWISE = {DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian}


@dataclass(frozen=True, slots=True)
class Receipt:
    """K_a and the texts of the proofs, that of result.composed first."""

    key: bytes
    proofs: tuple[str, ...]

    def digest(self) -> bytes:
        """Return what xx02 must hold (see the module)."""
        digest = hashlib.sha256()
        for low, value in self._values():
            digest.update(struct.pack("<BL", low, len(value)) + value)
        return digest.digest()

    def elements(self) -> list[tuple[int, bytes]]:
        """(low byte of the element, value of even length), ascending, xx02 among them."""
        key, *proofs = self._values()
        padded = [(low, value + b"\0" * (len(value) % 2)) for low, value in proofs]
        return [key, (_DIGEST, self.digest()), *padded]

    def _values(self) -> list[tuple[int, bytes]]:
        proofs = [text.encode() for text in self.proofs]
        return [(_KEY, self.key), *enumerate(proofs, _FIRST)]


def insert(data: bytes, key: bytes, proofs: Sequence[str]) -> bytes:
    """Return a file (PS3.10, explicit VR little endian) with the block in its place.

    Every byte of `data` stays, in its order; the block's bytes come between them. Raises
    ReportError for a key that is not 32 bytes, no proof or more than MOST_PROOFS, a file in
    another encoding, and one that has elements of group 0099.
    """
    if len(key) != KEY_BYTES:
        raise ReportError(f"K_a must be exactly {KEY_BYTES} bytes, not {len(key)}")
    if not 0 < len(proofs) <= MOST_PROOFS:
        raise ReportError(f"a receipt block holds 1 to {MOST_PROOFS} proofs, not {len(proofs)}")
    place = _place(data)
    block = _encoded(Receipt(key, tuple(proofs)))
    return data[:place] + block + data[place:]


def _place(data: bytes) -> int:
    """Give the offset of the first element behind the block's group."""
    file = BytesIO(data)
    before = read_partial(file, stop_when=lambda tag, _vr, _length: tag.group > RECEIPT_GROUP)
    if before.file_meta.TransferSyntaxUID in _OTHERWISE:
        raise ReportError("a receipt is inserted into explicit VR little endian only")
    if any(tag.group == RECEIPT_GROUP for tag in before.keys()):  # noqa: SIM118 (not its elements)
        raise ReportError("the object has elements of group 0099 already; insert into the original")
    return file.tell()


def _encoded(receipt: Receipt) -> bytes:
    creator = RECEIPT_CREATOR.encode()
    creator += b" " * (len(creator) % 2)
    parts = [struct.pack("<HH2sH", RECEIPT_GROUP, _BLOCK, b"LO", len(creator)), creator]
    for low, value in receipt.elements():
        head = (RECEIPT_GROUP, _BLOCK << 8 | low, b"OB", 0, len(value))
        parts += [struct.pack("<HH2sHL", *head), value]
    return b"".join(parts)


def read(ds: Dataset) -> Receipt:
    """Return the block of a data set, whatever its block number; its proofs are not verified.

    Raises ReceiptError, naming the element, for: no block or two, another creator or an
    unreserved or unknown element in group 0099, another VR than OB and UN, a wrong length, a
    gap between the proofs, and a digest that does not fit.
    """
    tags = [tag for tag in sorted(ds.keys()) if tag.group == RECEIPT_GROUP and tag.element]
    block = _block(ds, tags)
    values = {}
    for tag in tags:
        if tag.element < 0x100:
            continue
        if tag.element >> 8 != block:
            raise _wrong(tag, "is not of the receipt block")
        values[tag.element & 0xFF] = _value(ds, tag)
    key, digest = (_exactly(values.pop(low, b""), low) for low in (_KEY, _DIGEST))
    unknown = sorted(set(values) - set(range(_FIRST, _FIRST + len(values))))
    if unknown:
        raise ReceiptError(f"(0099,xx{unknown[0]:02X}) is unknown, or a proof before it is missing")
    if not values:
        raise ReceiptError("the receipt block holds no proof")
    found = Receipt(key, tuple(_text(values[low], low) for low in sorted(values)))
    if found.digest() != digest:
        raise ReceiptError("the receipt block is damaged: its digest (0099,xx02) does not fit")
    return found


def _wrong(tag: BaseTag, why: str) -> ReceiptError:
    return ReceiptError(f"({tag.group:04X},{tag.element:04X}) {why}")


def _block(ds: Dataset, tags: Sequence[BaseTag]) -> int:
    """Return the number of the one block in group 0099 that must be ours."""
    blocks = []
    for tag in tags:
        if tag.element >= 0x100:
            continue
        creator = ds[tag].value
        text = creator.decode("ascii", "replace") if isinstance(creator, bytes) else str(creator)
        if tag.element < 0x10 or text.rstrip(" \0") != RECEIPT_CREATOR:
            raise _wrong(tag, "is not of the receipt block")
        blocks.append(int(tag.element))
    if not blocks:
        raise ReceiptError("the file carries no receipt of radseal (group 0099)")
    if len(blocks) > 1:
        raise ReceiptError("the file carries two receipt blocks; one is foreign")
    return blocks[0]


def _value(ds: Dataset, tag: BaseTag) -> bytes:
    element = ds[tag]
    if element.VR not in {"OB", "UN"} or not isinstance(element.value, bytes | None):
        raise _wrong(tag, "is neither OB nor UN")
    value = element.value or b""
    if len(value) % 2 or len(value) > _LONGEST:
        raise _wrong(tag, f"has {len(value)} bytes")
    return value


def _exactly(value: bytes, low: int) -> bytes:
    if len(value) != KEY_BYTES:
        raise ReceiptError(f"(0099,xx{low:02X}) must be exactly {KEY_BYTES} bytes")
    return value


def _text(value: bytes, low: int) -> str:
    text = value.removesuffix(b"\0")
    padded = len(text) != len(value)
    try:
        if padded == bool(len(text) % 2) and b"\0" not in text and text:
            return text.decode()
    except UnicodeDecodeError:
        pass
    raise ReceiptError(f"(0099,xx{low:02X}) holds no text of a proof")
