"""One reading of a data set, or none: the order of its elements, down to the last byte. Pure.

Readers differ in what they make of a file that breaks PS3.5 §7.1: where an element stands twice
some show the first and some the last, and behind a stray delimiter some read on. What a verifier
judged must be what a workstation shows, so a file that can be read in two ways is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from bridge.errors import Refused
from bridge.report.content import RECEIPT_GROUP

__all__ = ["require_one_reading"]

_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA, _UNDEFINED, _DEEPEST = 0x7FE00010, 0xFFFFFFFF, 32
_META = 132  # behind the preamble and "DICM"


def require_one_reading(data: bytes, start: int, syntax_of: Callable[[bytes], str]) -> None:
    """Raise Refused unless elements ascend strictly, in the meta group, data set and every item.

    Each length must fit, nothing may follow the last element, and UN stands in the receipt's
    group only (pydicom would read it as what the dictionary says). The data set begins at
    `start`; `syntax_of` reads what the bytes before it name (a deflated one already inflated).
    """
    _Walk(data, False, "<", range(0x0002, 0x0003)).elements(_META, start, bounded=True, depth=0)
    syntax = UID(syntax_of(data[:start]))
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    walk = _Walk(data, syntax == ImplicitVRLittleEndian, order, range(0x0003, 0xFFFE))
    walk.elements(start, len(data), bounded=True, depth=0)


@dataclass(frozen=True, slots=True)
class _Walk:
    data: bytes
    implicit: bool
    order: str
    groups: range

    def elements(self, at: int, end: int, *, bounded: bool, depth: int) -> int:
        """Walk one data set; returns where it ended: at `end`, or behind its delimiter."""
        if depth > _DEEPEST:
            raise Refused("the file cannot be read: its sequences nest too deeply")
        last = -1
        while at < end or not bounded:
            tag = self._tag(at, end)
            if tag == _ITEM_END and not bounded:
                return at + 8
            if tag <= last or tag >> 16 not in self.groups:
                raise Refused(f"the file can be read in two ways: {_named(tag)} is out of place")
            at, last = self._element(tag, at, end, depth), tag
        return at

    def _tag(self, at: int, end: int) -> int:
        if end - at < 8:
            raise Refused("the file cannot be read: it ends in the middle of an element")
        group, element = struct.unpack_from(f"{self.order}HH", self.data, at)
        return int(group) << 16 | int(element)

    def _element(self, tag: int, at: int, end: int, depth: int) -> int:
        vr, head, length = self._head(tag, at, end)
        at += head
        if length == _UNDEFINED:
            if vr == b"SQ":
                return self._items(at, end, bounded=False, depth=depth)
            if tag == _PIXEL_DATA:
                return self._fragments(at, end)
            raise Refused(f"the file cannot be read: {_named(tag)} has no length")
        if length > end - at:
            raise Refused(f"the file cannot be read: {_named(tag)} is longer than what holds it")
        if vr == b"SQ":
            return self._items(at, at + length, bounded=True, depth=depth)
        return at + length

    def _head(self, tag: int, at: int, end: int) -> tuple[bytes, int, int]:
        """(VR, length of the header, length of the value) of an element."""
        if self.implicit:
            (length,) = struct.unpack_from(f"{self.order}L", self.data, at + 4)
            return _dictionary_vr(tag), 8, length
        vr = self.data[at + 4 : at + 6]
        if vr in _SHORT:
            (length,) = struct.unpack_from(f"{self.order}H", self.data, at + 6)
            return vr, 8, length
        if vr == b"UN" and tag >> 16 != RECEIPT_GROUP:
            raise Refused(f"{_named(tag)} has the VR UN, which radseal does not write")
        if vr not in _LONG or end - at < 12:
            raise Refused(f"the file cannot be read: {_named(tag)} has no known VR")
        (length,) = struct.unpack_from(f"{self.order}L", self.data, at + 8)
        return vr, 12, length

    def _items(self, at: int, end: int, *, bounded: bool, depth: int) -> int:
        while at < end or not bounded:
            tag, length = self._item(at, end)
            at += 8
            if tag == _SEQUENCE_END and not bounded and not length:
                return at
            if tag != _ITEM or (length != _UNDEFINED and length > end - at):
                raise Refused(f"the file can be read in two ways: {_named(tag)} in a sequence")
            fits = length != _UNDEFINED
            stop = at + length if fits else end
            at = self.elements(at, stop, bounded=fits, depth=depth + 1)
        return at

    def _fragments(self, at: int, end: int) -> int:
        """Walk encapsulated pixels (PS3.5 §A.4); returns where they end."""
        while True:
            tag, length = self._item(at, end)
            at += 8
            if tag == _SEQUENCE_END and not length:
                return at
            if tag != _ITEM or length > end - at:
                raise Refused("the file cannot be read: a fragment of its pixels is out of place")
            at += length

    def _item(self, at: int, end: int) -> tuple[int, int]:
        tag = self._tag(at, end)
        (length,) = struct.unpack_from(f"{self.order}L", self.data, at + 4)
        return tag, length


def _dictionary_vr(tag: int) -> bytes:
    try:
        return dictionary_VR(tag).encode()
    except KeyError:
        return b"UN"


def _named(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
