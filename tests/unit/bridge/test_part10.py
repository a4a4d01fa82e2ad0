"""bridge.audit.part10: a file is one data set for every reader, or refused; hostile ones end."""

from __future__ import annotations

import struct
import zlib

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from bridge.audit import part10
from bridge.audit.part10 import frames_in_child, read_once
from bridge.errors import BadInstance, Refused
from bridge.report.errors import ContentError

CLASS, UID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3.4"
LONG = {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UV", b"OV"}
UNDEFINED = 0xFFFFFFFF
END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def even(text: str, pad: bytes = b"\0") -> bytes:
    return text.encode() + pad * (len(text) % 2)


def element(tag: int, vr: bytes, value: bytes, length: int | None = None, order="<") -> bytes:
    """An explicit element, whatever it may hold."""
    head = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    size = len(value) if length is None else length
    form = f"{order}2sHL" if vr in LONG else f"{order}2sH"
    return head + struct.pack(form, vr, *((0, size) if vr in LONG else (size,))) + value


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body) if length is None else length) + body


def meta(syntax=ExplicitVRLittleEndian, more=b"", sop_class=CLASS, uid=UID, preamble=b"") -> bytes:
    group = element(0x00020002, b"UI", even(sop_class)) + element(0x00020003, b"UI", even(uid))
    group += element(0x00020010, b"UI", even(str(syntax))) + more
    length = element(0x00020000, b"UL", struct.pack("<L", len(group)))
    return preamble.ljust(128, b"\0") + b"DICM" + length + group


def body(*more: bytes, order="<") -> bytes:
    """A data set of class, instance and these elements, which are to ascend after (0008,0018)."""
    told = element(0x00080016, b"UI", even(CLASS), order=order)
    return told + element(0x00080018, b"UI", even(UID), order=order) + b"".join(more)


def image(pixels: bytes, frames: int = 1, syntax=RLELossless) -> bytes:
    said = [
        (0x00280002, b"US", struct.pack("<H", 1)), (0x00280004, b"CS", b"MONOCHROME2 "),
        (0x00280008, b"IS", even(str(frames), b" ")), (0x00280010, b"US", struct.pack("<H", 2)),
        (0x00280011, b"US", struct.pack("<H", 2)), (0x00280100, b"US", struct.pack("<H", 8)),
        (0x00280101, b"US", struct.pack("<H", 8)), (0x00280102, b"US", struct.pack("<H", 7)),
        (0x00280103, b"US", struct.pack("<H", 0)),
    ]  # fmt: skip
    return meta(syntax) + body(*(element(*one) for one in said)) + pixels


def fragments(*parts: bytes, table: bytes = b"") -> bytes:
    held = b"".join(item(one) for one in (table, *parts)) + END
    return element(0x7FE00010, b"OB", held, UNDEFINED)


def rle(frame: bytes) -> bytes:
    data = struct.pack("<16L", 1, 64, *[0] * 14) + bytes([len(frame) - 1]) + frame
    return data + b"\0" * (len(data) % 2)


TEXT = element(0x00081080, b"LO", b"as it is")
NESTED = element(0x00081140, b"SQ", item(element(0x00081150, b"UI", even(CLASS))))
DEFLATE = zlib.compressobj(wbits=-15)
DEFLATED = DEFLATE.compress(body(TEXT)) + DEFLATE.flush()


@pytest.mark.parametrize(
    "data",
    [
        meta() + body(TEXT, NESTED),
        meta() + body(element(0x00081140, b"SQ", item(
            element(0x00081150, b"UI", even(CLASS)) + struct.pack("<HHL", 0xFFFE, 0xE00D, 0),
            UNDEFINED) + END, UNDEFINED)),
        meta(ImplicitVRLittleEndian) + implicit(0x00080016, even(CLASS))
        + implicit(0x00080018, even(UID)) + implicit(0x00081080, b"as it is"),
        meta(ExplicitVRBigEndian)
        + body(element(0x00081080, b"LO", b"as it is", order=">"), order=">"),
        meta(DeflatedExplicitVRLittleEndian) + DEFLATED,
        meta(DeflatedExplicitVRLittleEndian) + DEFLATED + b"\0",
        meta() + body(TEXT, element(0xFFFCFFFC, b"OB", bytes(8))),
        meta() + element(0x00080005, b"CS", b"\\ISO 2022 IR 87 ")
        + body(element(0x00100010, b"PN", b"A=\x1b$B;3\x1b(B")),
        image(fragments(rle(b"abcd"))),
        image(fragments(rle(b"abcd"), table=bytes(4))),
        image(fragments(rle(b"abcd"), rle(b"efgh"), table=struct.pack("<2L", 0, 78)), frames=2),
    ],
)  # fmt: skip
def test_what_an_archive_may_make_of_a_result_is_read(data):
    assert str(read_once(data).SOPInstanceUID) == UID


def padded(vr: bytes, value: bytes, tag: int = 0x00081080) -> bytes:
    return meta() + body(element(tag, vr, value))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (meta(preamble=b"II*\0") + body(), "preamble is not empty"),
        (meta(more=element(0x00020100, b"UI", b"1.2\0")) + body(), "is private"),
        (meta(sop_class="1.2.3") + body(), "two SOPClassUID"),
        (meta(uid="1.2.3") + body(), "two SOPInstanceUID"),
        (meta(JPEGBaseline8Bit) + body(), "no result of radseal can be"),
        (meta(f" {ExplicitVRLittleEndian}") + body(), "oddly"),
        (meta("1.2.840.10008.1.20") + body(), "no result of radseal can be"),
        (padded(b"LO", b"odd"), "odd length"),
        (padded(b"UT", b"as it is"), "another VR"),
        (padded(b"US", b"\1\0"), "another VR"),
        (padded(b"AT", b"\1\0\0\0", 0x00280103), "another VR"),
        (padded(b"UN", b"ab"), "has the VR UN"),
        (padded(b"LO", b"a\x1b(Bbcde"), "escape sequence"),
        (meta() + element(0x00080005, b"CS", b"\\ISO 2022 IR 87 ")
         + body(element(0x0040A30A, b"DS", b"0\x1b(B.32 ")), "escape sequence"),
        (padded(b"UV", bytes(8), 0x00090000), "another VR|no length of a group"),
        (padded(b"UL", bytes(2), 0x00100000), "no length of a group"),
        (meta() + element(0x00030000, b"UL", bytes(4)) + body(), "out of place"),
        (meta() + body(TEXT, TEXT), "out of place"),
        (meta() + body(NESTED, TEXT), "out of place"),
        (meta() + body(TEXT) + b"\0\0", "middle of an element"),
        (meta() + body(element(0x00081140, b"SQ", item(element(0x00080005, b"CS", b"ab")))),
         "inside a sequence"),
        (meta() + body(element(0x00081140, b"SQ", item(
            TEXT + struct.pack("<HHL", 0xFFFE, 0xE00D, 4), UNDEFINED) + END, UNDEFINED)),
         "has a length"),
        (meta() + body(struct.pack("<HH2sHL", 0x0008, 0x1195, b"UT", 7, 0)), "another VR"),
        (meta() + body(struct.pack("<HH2sHL", 0x0008, 0x0119, b"UC", 7, 2) + b"ab"),
         "reserved bytes"),
        (meta(ImplicitVRLittleEndian) + implicit(0x00080016, b"A" * 0x4C4F), "take for a VR"),
        (meta(DeflatedExplicitVRLittleEndian) + DEFLATED + b"ab", "follows its deflated"),
        (meta(more=element(0x00020013, b"SH", even(DeflatedExplicitVRLittleEndian)),
              syntax=ImplicitVRLittleEndian) + DEFLATED, "two ways|cannot be read"),
        (image(fragments(rle(b"abcd")), syntax=ExplicitVRLittleEndian), "as its syntax says"),
        (image(element(0x7FE00010, b"OB", b"abcd")), "as its syntax says"),
        (image(fragments(rle(b"abcd"), rle(b"evil"))), "one fragment each"),
        (image(fragments(rle(b"abcd"), rle(b"evil"), table=struct.pack("<L", 78))),
         "one fragment each"),
        (image(fragments(rle(b"abcd"), table=struct.pack("<L", 8))), "one fragment each"),
        (image(element(0x7FE00010, b"OB", item(b"") + item(b"odd") + END, UNDEFINED)),
         "out of place"),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(data, words):
    with pytest.raises(Refused, match=words):
        read_once(data)


@pytest.mark.parametrize("data", [b"", b"DICM", bytes(128) + b"DICM", bytes(200)])
def test_what_is_no_dicom_file(data):
    with pytest.raises(BadInstance):
        read_once(data)


def test_a_bomb_and_an_endless_tail_end(monkeypatch):
    monkeypatch.setattr(part10, "_MOST_INFLATED", 1 << 20)
    squeeze = zlib.compressobj(wbits=-15)
    bomb = squeeze.compress(body(TEXT) + bytes(1 << 22)) + squeeze.flush()
    with pytest.raises(BadInstance, match="beyond 1 MB"):
        read_once(meta(DeflatedExplicitVRLittleEndian) + bomb)
    with pytest.raises(Refused, match="follows its deflated"):
        read_once(meta(DeflatedExplicitVRLittleEndian) + DEFLATED + bytes(64 << 20))


def test_a_decoder_that_dies_is_a_refusal():
    good = read_once(image(fragments(rle(b"abcd"))))
    assert frames_in_child(good) == b"abcd"
    broken = read_once(image(fragments(b"\xff\x4f" + bytes(60)), syntax=JPEG2000Lossless))
    with pytest.raises(ContentError, match="does not decode"):
        frames_in_child(broken)
