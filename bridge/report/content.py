"""The content digest of an object: what is proven, whoever re-encodes the file (content/v1).

The canonical stream of a data set is its elements in ascending order of tag,
each as

    group u16, element u16, VR (2 ASCII letters), length u32, value of that length

with all integers little-endian. Values are

- VR: that of the data dictionary, whatever the file says. Where the dictionary
  names a choice it is US for "US or SS" (two's complement) and OW for the rest;
- text and UID: UTF-8 without trailing spaces and NULs, values joined by a
  backslash; DS and IS as spelled, without spaces around. VRs of one value that
  may hold a backslash (LT, ST, UT, UR) keep it;
- numbers and tags: little-endian, one after the other;
- OB, OD, OF, OL, OV, OW: the bytes as in little-endian files, with one 00 behind
  an odd length;
- SQ: number of items u32, then per item its length u32 and its canonical stream;
- PixelData: always OW, the native frames decoded: frame by frame, samples of a
  pixel together, padded like OB; single-bit pixels packed as PS3.5 8.1.1 has it.
  Encapsulation may change PlanarConfiguration and name YBR_RCT for RGB: the
  stream has PlanarConfiguration 0 and RGB.

Left out: group 0002, group lengths (gggg,0000), SpecificCharacterSet (it says
how text is spelled), (4FFE,0001), group FFFA, (FFFC,FFFC), the receipt block,
and at the top level the coercible attributes, which have commitments of their
own. Any other private element, UN, and tags outside the dictionary are refused:
radseal writes none, so one that is there was put in later.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import HTJ2K, JPEG2000, UID, HTJ2KLossless, HTJ2KLosslessRPCL, JPEG2000Lossless

from bridge.report.errors import ContentError
from bridge.report.pixels import Decode, native_frames

__all__ = [
    "COERCIBLE",
    "RECEIPT_CREATOR",
    "RECEIPT_GROUP",
    "attribute_digests",
    "canonical_stream",
    "content_digest",
]

RECEIPT_GROUP = 0x0099
RECEIPT_CREATOR = "RADSEAL RECEIPT"

COERCIBLE = {
    Tag(0x0008, 0x0050): "AccessionNumber",
    Tag(0x0008, 0x0090): "ReferringPhysicianName",
    Tag(0x0008, 0x1030): "StudyDescription",
    Tag(0x0008, 0x103E): "SeriesDescription",
    Tag(0x0010, 0x0010): "PatientName",
    Tag(0x0010, 0x0020): "PatientID",
    Tag(0x0010, 0x0021): "IssuerOfPatientID",
    Tag(0x0010, 0x0030): "PatientBirthDate",
    Tag(0x0010, 0x0040): "PatientSex",
}
"""Attributes that an archive may correct without touching what is proven (design §4b)."""

_CHARACTER_SET = Tag(0x0008, 0x0005)
_PIXEL_DATA = Tag(0x7FE0, 0x0010)
_PLANAR = Tag(0x0028, 0x0006)
_PHOTOMETRIC = Tag(0x0028, 0x0004)
_ENCODED = {_PIXEL_DATA, _PLANAR, _PHOTOMETRIC}
_OUTSIDE = {Tag(0x4FFE, 0x0001), Tag(0xFFFC, 0xFFFC), _CHARACTER_SET}
_CHOICE = {
    "US or SS": "US",
    "US or OW": "OW",
    "US or SS or OW": "OW",
    "OB or OW": "OW",
}
_ONE_TEXT = {"LT", "ST", "UT", "UR"}
_TEXT = _ONE_TEXT | {
    "AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "PN", "SH", "TM", "UC", "UI",
}  # fmt: skip
_NUMBER = {
    "US": "<H", "SS": "<h", "UL": "<L", "SL": "<l", "UV": "<Q", "SV": "<q",
    "FL": "<f", "FD": "<d",
}  # fmt: skip
_WORD = {"OB": 1, "OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}
_DATED = {"DA": "%Y%m%d", "TM": "%H%M%S.%f", "DT": "%Y%m%d%H%M%S.%f%z"}
_JPEG2000 = {JPEG2000, JPEG2000Lossless, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL}
_MOST = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Way:
    """How a data set's values were read: big-endian words, and who decodes its pixels."""

    swap: bool
    decode: Decode | None


def _values(value: Any) -> list[Any]:
    if value is None or (isinstance(value, str | bytes) and not value):
        return []
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return [value]
    return list(value) if not hasattr(value, "components") else [value]


def _spelled(value: Any, vr: str) -> str:
    """Return a value as its file has it (DS keeps the spelling it was read with)."""
    if vr in {"DS", "IS", "DA", "TM", "DT"}:
        original = getattr(value, "original_string", None)
        if original:
            return str(original).strip()
        if isinstance(value, datetime | date | time):
            return value.strftime(_DATED.get(vr, "%Y%m%d"))
        return str(value).strip()
    return str(value).rstrip(" \0")


def _text(element: DataElement, vr: str) -> bytes:
    if vr in _ONE_TEXT:
        whole = "\\".join(str(v) for v in _values(element.value))
        return whole.rstrip(" \0").encode()
    return "\\".join(_spelled(v, vr) for v in _values(element.value)).rstrip(" \0").encode()


def _numbers(element: DataElement, vr: str) -> bytes:
    form = _NUMBER[vr]
    if vr == "US":
        return b"".join(struct.pack("<H", int(v) & 0xFFFF) for v in _values(element.value))
    return b"".join(struct.pack(form, v) for v in _values(element.value))


def _binary(element: DataElement, vr: str, *, swap: bool) -> bytes:
    value = element.value
    if not isinstance(value, bytes | bytearray | memoryview):
        data = b"".join(struct.pack("<H", int(v) & 0xFFFF) for v in _values(value))
        return data
    data = bytes(value)
    word = _WORD.get(element.VR, _WORD[vr])
    if swap and word > 1 and len(data) % word == 0:
        data = b"".join(data[i : i + word][::-1] for i in range(0, len(data), word))
    return data + b"\0" * (len(data) % 2)


def _sequence(element: DataElement, *, way: _Way) -> bytes:
    items = list(element.value or [])
    parts = [struct.pack("<L", len(items))]
    for item in items:
        body = b"".join(_elements(item, top=False, way=way))
        parts += [struct.pack("<L", len(body)), body]
    return b"".join(parts)


def _refuse(tag: BaseTag, why: str) -> ContentError:
    return ContentError(f"({tag.group:04X},{tag.element:04X}) {why}")


def _vr(tag: BaseTag) -> str:
    try:
        named = dictionary_VR(tag)
    except KeyError:
        raise _refuse(tag, "is not in the data dictionary") from None
    return _CHOICE.get(named, named)


def _receipt_blocks(ds: Dataset) -> set[int]:
    """Return the block numbers of group 0099 that belong to the receipt."""
    blocks = set()
    for number in range(0x10, 0x100):
        tag = Tag(RECEIPT_GROUP, number)
        if tag in ds:
            creator = ds[tag].value
            text = creator.decode("ascii", "replace") if isinstance(creator, bytes) else creator
            if str(text).rstrip(" \0") == RECEIPT_CREATOR:
                blocks.add(number)
    return blocks


def _left_out(tag: BaseTag, receipt: set[int], *, top: bool) -> bool:
    """Return True for what the stream leaves out; raise for what radseal never writes."""
    if tag in _OUTSIDE or tag.group in {0x0002, 0xFFFA} or tag.element == 0:
        return True
    if not tag.is_private:
        return top and tag in COERCIBLE
    if top and tag.group == RECEIPT_GROUP:
        block = tag.element if tag.element < 0x100 else tag.element >> 8
        if block in receipt:
            return True
    raise _refuse(tag, "is a private element that radseal did not write")


def _top(ds: Dataset, element: DataElement, vr: str, way: _Way) -> bytes:
    """Give the value of an element that encapsulation may change; these stand at the top."""
    tag = element.tag
    if tag == _PIXEL_DATA:
        return native_frames(ds, swap=way.swap, decode=way.decode)
    if tag == _PLANAR:
        if element.value not in {0, 1}:
            raise _refuse(tag, "is neither 0 nor 1")
        return struct.pack("<H", 0)
    text = _text(element, vr)
    if text == b"YBR_RCT" and _syntax(ds) in _JPEG2000:
        return b"RGB"
    return text


def _value(ds: Dataset, element: DataElement, vr: str, *, top: bool, way: _Way) -> bytes:
    tag = element.tag
    if top and tag in _ENCODED:
        return _top(ds, element, vr, way)
    if tag == _PIXEL_DATA:
        raise _refuse(tag, "stands inside a sequence")
    if vr == "SQ":
        return _sequence(element, way=way)
    if vr in _TEXT:
        return _text(element, vr)
    if vr == "AT":
        tags = [Tag(v) for v in _values(element.value)]
        return b"".join(struct.pack("<HH", t.group, t.element) for t in tags)
    form: Callable[[DataElement, str], bytes]
    if vr in _NUMBER:
        form = _numbers
    elif vr in _WORD:
        return _binary(element, vr, swap=way.swap)
    else:
        raise _refuse(tag, f"has the unknown VR {vr}")
    try:
        return form(element, vr)
    except (struct.error, ValueError, TypeError):
        raise _refuse(tag, f"does not hold {vr} values") from None


def _elements(ds: Dataset, *, top: bool, way: _Way) -> Iterator[bytes]:
    receipt = _receipt_blocks(ds) if top else set()
    for tag in sorted(ds.keys()):
        if _left_out(tag, receipt, top=top):
            continue
        element = ds[tag]
        if element.VR == "UN":
            raise _refuse(tag, "has the VR UN")
        vr = _vr(tag)
        value = _value(ds, element, vr, top=top, way=way)
        if len(value) > _MOST:
            raise _refuse(tag, "is larger than 4 GiB")
        yield struct.pack("<HH2sL", tag.group, tag.element, vr.encode(), len(value)) + value


def _syntax(ds: Dataset) -> UID | None:
    meta = getattr(ds, "file_meta", None)
    return None if meta is None else meta.get("TransferSyntaxUID")


def canonical_stream(ds: Dataset, decode: Decode | None = None) -> Iterator[bytes]:
    """Yield the canonical stream, one element after the other (see the module).

    `ds` is a data set as composed or as read from a file; `decode` is asked for the frames of
    one with encapsulated pixels. Raises ContentError for anything that radseal never writes, for
    pixels that do not decode, and for encapsulated ones without `decode`.
    """
    syntax = _syntax(ds)
    swap = syntax is not None and not syntax.is_little_endian
    return _elements(ds, top=True, way=_Way(swap, decode))


def content_digest(ds: Dataset, decode: Decode | None = None) -> bytes:
    """Return SHA-256 (32 bytes) over the canonical stream; raises ContentError like it."""
    digest = hashlib.sha256()
    for part in canonical_stream(ds, decode):
        digest.update(part)
    return digest.digest()


def attribute_digests(ds: Dataset) -> dict[str, bytes]:
    """Return the canonical value of every coercible attribute by tag ("00100010").

    An absent attribute is like an empty one: b"". The caller makes keyed
    commitments of these values; they are PHI and go nowhere else.
    """
    found = {}
    for tag in COERCIBLE:
        vr = _vr(tag)
        found[f"{tag:08X}"] = _text(ds[tag], vr) if tag in ds else b""
    return found
