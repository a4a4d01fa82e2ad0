"""A result's file (PS3.10) as the one data set that it can be read as, or none.

The walk of `structure.py` and pydicom must read the same bytes in the same encoding, and these
must be all the bytes there are. What radseal composes is explicit little endian; an archive may
give it back in the transfer syntaxes listed here, all of them lossless.
"""

from __future__ import annotations

import struct
import tempfile
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.filereader import read_partial
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from bridge.audit import structure
from bridge.errors import BadInstance, Refused
from bridge.header import UNREADABLE, inflated, malformed, start_of_dataset
from bridge.report.errors import ContentError
from models import sandbox
from models.errors import RunFailed
from models.sandbox import Limits

__all__ = ["frames_in_child", "load", "read_once"]

_PLAIN = {
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
}  # fmt: skip
_ENCAPSULATED = {
    JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless,
    HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K,
}  # fmt: skip
_LARGEST = 1 << 30
_LIMITS = Limits(memory_mb=2048, timeout_s=120.0, file_mb=1024, threads=1)
_MOST_INFLATED = 256 * 1024 * 1024


def frames_in_child(ds: Dataset) -> bytes:
    """Decode encapsulated pixels in a child process with limits; raises ContentError."""
    with tempfile.TemporaryDirectory(prefix="radseal-") as folder:
        path = Path(folder) / "object.dcm"
        ds.save_as(path, enforce_file_format=True)
        try:
            return sandbox.raw_frames(path, _LIMITS)
        except RunFailed as error:
            raise ContentError(f"PixelData does not decode: {error.text}") from None


def load(path: Path) -> bytes:
    """Read a file of at most 1 GiB; raises BadInstance for a larger one and what is no DICOM."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise BadInstance("unreadable", f"the file cannot be read: {error.strerror}") from None
    if len(data) > _LARGEST:
        raise BadInstance("unreadable", "the file is larger than any result (1 GiB)")
    return data


def read_once(data: bytes) -> Dataset:
    """Read a file that can be read in one way only.

    Raises BadInstance for what is no DICOM file, Refused for what is malformed, could be read in
    two ways, or has a transfer syntax in which radseal's results cannot be.
    """
    start = start_of_dataset(data)
    if start > len(data):
        raise Refused("the file cannot be read: it ends in the middle of an element")
    head, body = data[:start], data[start:]
    try:
        structure.walk_meta(head)
        syntax = _syntax(head)
        if syntax == DeflatedExplicitVRLittleEndian:
            head, body = _as_explicit(head), _whole(body)
            syntax = ExplicitVRLittleEndian
        layout = structure.walk(
            body, implicit=syntax.is_implicit_VR, little=syntax.is_little_endian
        )
        ds = dcmread(BytesIO(head + body))
        if ds.original_encoding != (syntax.is_implicit_VR, syntax.is_little_endian):
            raise Refused("the file can be read in two ways: its encoding is not what it names")
        _agrees(ds, syntax, layout)
    except UNREADABLE as error:
        raise Refused(malformed(error)) from None
    return ds


def _syntax(head: bytes) -> UID:
    syntax = UID(str(read_partial(BytesIO(head)).file_meta.TransferSyntaxUID))
    if syntax not in _PLAIN | _ENCAPSULATED:
        raise Refused("the file has a transfer syntax in which no result of radseal can be")
    if head.count(_named(syntax, len(syntax))) != 1:
        raise Refused("the file can be read in two ways: it spells its transfer syntax oddly")
    return syntax


def _named(syntax: UID, length: int) -> bytes:
    """Encode (0002,0010), the value filled up to `length` and then to an even one."""
    value = syntax.encode().ljust(length + length % 2, b"\0")
    return b"\x02\x00\x10\x00UI" + struct.pack("<H", len(value)) + value


def _whole(body: bytes) -> bytes:
    """Inflate a data set that ends where its file does, or one byte of padding before."""
    data, left = inflated(BytesIO(body), _MOST_INFLATED)
    if left > 1:
        raise Refused("the file can be read in two ways: something follows its deflated data set")
    return data


def _as_explicit(head: bytes) -> bytes:
    """Let a meta group that names the deflated syntax name explicit little endian."""
    length = len(DeflatedExplicitVRLittleEndian)  # kept, so that the group's length stays true
    before, after = (
        _named(one, length) for one in (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian)
    )
    return head.replace(before, after)


def _agrees(ds: Dataset, syntax: UID, layout: structure.Layout | None) -> None:
    """Compare the data set with its meta group and its pixels' layout."""
    meta = ds.file_meta
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if str(meta.get(f"MediaStorage{keyword}", "")) != str(ds.get(keyword, "")):
            raise Refused(f"the file can be read in two ways: it names two {keyword}")
    if (layout is not None) != (syntax in _ENCAPSULATED):
        raise Refused("the file can be read in two ways: its pixels are not as its syntax says")
    if layout is not None and not layout.is_one_a_frame(int(ds.get("NumberOfFrames") or 1)):
        raise Refused("the file can be read in two ways: its frames are not one fragment each")
