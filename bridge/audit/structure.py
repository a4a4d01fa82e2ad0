"""One reading of a data set, or none: the order and form of its elements, to the last byte. Pure.

Readers differ in what they make of a file that breaks PS3.5 §6.2, §7.1 or §7.5: where an element
stands twice some show the first and some the last; behind a stray delimiter, an odd length or a
VR that the dictionary does not allow some read on where others stop; and each has its own idea
of an escape sequence in a number. What a verifier judged must be what a workstation shows, so a
file that can be read in two ways is refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pydicom.datadict import dictionary_VR

from bridge.errors import Refused
from bridge.report.content import RECEIPT_GROUP

__all__ = ["Layout", "walk", "walk_meta"]

_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_PLAIN_TEXT = frozenset(b"AE AS CS DA DS DT IS TM UI UR".split())
_TEXT = frozenset(b"LO LT PN SH ST UC UT".split())
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA, _CHARACTER_SET = 0x7FE00010, 0x00080005
_UNDEFINED, _DEEPEST = 0xFFFFFFFF, 32
_META = 132  # behind the preamble and "DICM"
_PRIVATE_META = 0x00020100  # from here on: what nobody but its creator can judge


@dataclass(frozen=True, slots=True)
class Layout:
    """How encapsulated pixels lie (PS3.5 §A.4).

    `table` is the Basic Offset Table, `starts` where each fragment's item begins, in bytes from
    the first one's.
    """

    table: tuple[int, ...]
    starts: tuple[int, ...]

    def is_one_a_frame(self, frames: int) -> bool:
        """Whether each frame is one fragment, and the table, if it is not empty, says so."""
        return len(self.starts) == frames and self.table in ((), self.starts)


def walk_meta(head: bytes) -> None:
    """Raise Refused unless preamble and group 0002 can be read in one way only.

    The preamble must be empty: with a TIFF header in it the file would show another picture.
    """
    if head[: _META - 4].strip(b"\0"):
        raise Refused("the file can be read in two ways: its preamble is not empty")
    _Walk(head, False, "<", range(0x0002, 0x0003)).elements(_META, len(head), True, 0)


def walk(data: bytes, *, implicit: bool, little: bool) -> Layout | None:
    """Raise Refused unless a data set can be read in one way only; the layout of its fragments.

    Elements ascend strictly in it and in every item, each length is even and fits, nothing
    follows the last element, and each VR is one that the dictionary allows; UN stands in the
    receipt's group only. None where PixelData is not encapsulated.
    """
    made = _Walk(data, implicit, "<" if little else ">", range(0x0008, 0xFFFE))
    made.elements(0, len(data), True, 0)
    return made.layout


@dataclass(slots=True)
class _Walk:
    data: bytes
    implicit: bool
    order: str
    groups: range
    escapes: bool = False
    layout: Layout | None = field(default=None, init=False)

    def elements(self, at: int, end: int, bounded: bool, depth: int) -> int:
        """Walk one data set; returns where it ended: at `end`, or behind its delimiter."""
        if depth > _DEEPEST:
            raise Refused("the file cannot be read: its sequences nest too deeply")
        last = -1
        while at < end or not bounded:
            tag = self._tag(at, end)
            if tag == _ITEM_END and not bounded:
                if self._length(at) != 0:
                    raise _two_ways(tag, "has a length")
                return at + 8
            if tag <= last or tag >> 16 not in self.groups:
                raise _two_ways(tag, "is out of place")
            if last < 0 and self.implicit and _is_upper(self.data[at + 4 : at + 6]):
                raise _two_ways(tag, "has a length that some take for a VR")
            at, last = self._element(tag, at, end, depth), tag
        return at

    def _tag(self, at: int, end: int) -> int:
        if end - at < 8:
            raise Refused("the file cannot be read: it ends in the middle of an element")
        group, element = struct.unpack_from(f"{self.order}HH", self.data, at)
        return int(group) << 16 | int(element)

    def _length(self, at: int) -> int:
        (length,) = struct.unpack_from(f"{self.order}L", self.data, at + 4)
        return int(length)

    def _element(self, tag: int, at: int, end: int, depth: int) -> int:
        vr, head, length = self._head(tag, at, end)
        at += head
        if length == _UNDEFINED:
            if vr == b"SQ":
                return self._items(at, end, bounded=False, depth=depth)
            if tag == _PIXEL_DATA and depth == 0:
                return self._fragments(at, end)
            raise Refused(f"the file cannot be read: {_named(tag)} has no length")
        if length > end - at:
            raise Refused(f"the file cannot be read: {_named(tag)} is longer than what holds it")
        if length % 2:
            raise _two_ways(tag, "has an odd length")
        if vr == b"SQ":
            return self._items(at, at + length, bounded=True, depth=depth)
        self._value(tag, vr, self.data[at : at + length] if vr in _PLAIN_TEXT | _TEXT else b"")
        if tag & 0xFFFF == 0 and (vr, length) != (b"UL", 4):
            raise _two_ways(tag, "is no length of a group")
        if tag == _CHARACTER_SET and depth:
            raise _two_ways(tag, "stands inside a sequence")
        return at + length

    def _value(self, tag: int, vr: bytes, value: bytes) -> None:
        """Refuse escape sequences where the file announces none: some readers drop them."""
        if tag == _CHARACTER_SET:
            self.escapes = b"ISO 2022" in value
        if b"\x1b" in value and (vr in _PLAIN_TEXT or not self.escapes):
            raise _two_ways(tag, "holds an escape sequence")

    def _head(self, tag: int, at: int, end: int) -> tuple[bytes, int, int]:
        """(VR, length of the header, length of the value) of an element."""
        if self.implicit:
            return _dictionary_vrs(tag)[0], 8, self._length(at)
        vr = self.data[at + 4 : at + 6]
        if vr == b"UN" and tag >> 16 != RECEIPT_GROUP:
            raise Refused(f"{_named(tag)} has the VR UN, which radseal does not write")
        if vr not in _SHORT and (vr not in _LONG or end - at < 12):
            raise Refused(f"the file cannot be read: {_named(tag)} has no known VR")
        if vr not in _dictionary_vrs(tag) and not tag >> 16 & 1:
            raise _two_ways(tag, "has another VR than the dictionary's")
        if tag >> 16 == 0x0002 and tag >= _PRIVATE_META:
            raise Refused(f"{_named(tag)} is private, which radseal does not write")
        if vr in _SHORT:
            (length,) = struct.unpack_from(f"{self.order}H", self.data, at + 6)
            return vr, 8, length
        if self.data[at + 6 : at + 8] != b"\0\0":
            raise _two_ways(tag, "has a length in reserved bytes")
        return vr, 12, self._length(at + 4)

    def _items(self, at: int, end: int, *, bounded: bool, depth: int) -> int:
        while at < end or not bounded:
            tag, length = self._tag(at, end), self._length(at)
            at += 8
            if tag == _SEQUENCE_END and not bounded and not length:
                return at
            fits = length != _UNDEFINED
            if tag != _ITEM or (fits and (length > end - at or length % 2)):
                raise _two_ways(tag, "in a sequence")
            at = self.elements(at, at + length if fits else end, fits, depth + 1)
        return at

    def _fragments(self, at: int, end: int) -> int:
        """Walk encapsulated pixels (PS3.5 §A.4); returns where they end."""
        table, starts, first = None, [], 0
        while True:
            tag, length = self._tag(at, end), self._length(at)
            if tag == _SEQUENCE_END and not length and table is not None:
                self.layout = Layout(table, tuple(starts))
                return at + 8
            if tag != _ITEM or length > end - at - 8 or length % 2:
                raise Refused("the file cannot be read: a fragment of its pixels is out of place")
            if table is None:
                if length % 4:
                    raise Refused("the file cannot be read: the table of its frames is cut off")
                table = struct.unpack_from(f"{self.order}{length // 4}L", self.data, at + 8)
                first = at + 8 + length
            else:
                starts.append(at - first)
            at += 8 + length


def _is_upper(two: bytes) -> bool:
    """Whether two bytes could be a VR: then pydicom reads an implicit data set as explicit."""
    return all(0x40 < one < 0x5B for one in two)


def _dictionary_vrs(tag: int) -> tuple[bytes, ...]:
    """Give the VRs that the dictionary allows; UN for what is not in it."""
    if tag & 0xFFFF == 0:
        return (b"UL",)
    try:
        return tuple(vr.encode() for vr in dictionary_VR(tag).split(" or "))
    except KeyError:
        return (b"UN",)


def _two_ways(tag: int, why: str) -> Refused:
    return Refused(f"the file can be read in two ways: {_named(tag)} {why}")


def _named(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
