"""Pixels out of a DICOM file, by decoders whose order is pinned.

Runs in the child process only: these libraries read hostile bytes, and one of
them panics with a BaseException. Decoders disagree on some lossy streams, so
the first of the pinned order that can decode a syntax decodes it, and its name
and version go into the record.
"""

from __future__ import annotations

import hashlib
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import FileDataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import RLELossless

from models.errors import RunFailed

__all__ = [
    "MAX_PIXEL_BYTES", "Pixels", "decode", "has_pixels", "pixel_sha256", "raw_frames",
    "read_header",
]  # fmt: skip

MAX_PIXEL_BYTES: Final = 8 * 1024**3
_ORDER: Final = ("gdcm", "pylibjpeg", "pyjpegls", "pillow", "pydicom")
_LIBRARY: Final = {
    "gdcm": "python-gdcm",
    "pyjpegls": "pyjpegls",
    "pillow": "pillow",
    "pydicom": "pydicom",
}
_BEHIND_PYLIBJPEG: Final = {
    "1.2.840.10008.1.2.5": "pylibjpeg-rle",
}
_NATIVE: Final = frozenset({
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
})  # fmt: skip
_BROKEN: Final = (
    ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip

_NO_DECODER: Final = "no decoder could read the pixels"

Pixels = npt.NDArray[Any]


def _undecodable(text: str) -> RunFailed:
    return RunFailed("undecodable", text)


def read_header(path: Path) -> FileDataset:
    """Read a file, pixels deferred; RunFailed("undecodable") for what is not readable DICOM."""
    try:
        return pydicom.dcmread(path, defer_size=65536)
    except (*_BROKEN, pydicom.errors.InvalidDicomError) as error:
        raise _undecodable("an image is not readable as DICOM") from error


def has_pixels(dataset: FileDataset) -> bool:
    """Whether there are pixels at all: reports and presentation states have none."""
    return any(k in dataset for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))


def _whole(dataset: FileDataset, keyword: str, default: int | None = None) -> int:
    try:
        value = dataset.get(keyword, default)
        number = int(value if value is not None else default)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise _undecodable(f"{keyword} is missing or not a number") from error
    return number


def _announced(dataset: FileDataset) -> tuple[int, int, int, int]:
    """Rows, columns, frames, samples, after plausibility; raises RunFailed."""
    rows, columns = _whole(dataset, "Rows"), _whole(dataset, "Columns")
    frames, samples = _whole(dataset, "NumberOfFrames", 1), _whole(dataset, "SamplesPerPixel", 1)
    bits = _whole(dataset, "BitsAllocated")
    if min(rows, columns, frames) < 1 or samples not in (1, 3, 4) or bits not in (1, 8, 16, 32, 64):
        raise _undecodable("Rows, Columns, frames, samples or bits are not possible")
    if rows * columns * frames * samples * math.ceil(bits / 8) > MAX_PIXEL_BYTES:
        raise RunFailed("memory", "an image claims more pixels than can be read")
    return rows, columns, frames, samples


def _named(plugin: str, syntax: str) -> str:
    library = _LIBRARY.get(plugin) or _BEHIND_PYLIBJPEG.get(syntax, "pylibjpeg-openjpeg")
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library


def _significant(array: Pixels, dataset: FileDataset) -> Pixels:
    """Clear or sign-extend the bits above HighBit, which are not the pixel's (PS3.5 8.1.1)."""
    allocated, stored = array.dtype.itemsize * 8, _whole(dataset, "BitsStored", 0)
    high = _whole(dataset, "HighBit", stored - 1)
    if array.dtype.kind not in "iu" or not 0 < stored < allocated or not 0 < high < allocated:
        return array
    low = high - stored + 1
    if low < 0:
        return array
    up = allocated - 1 - high
    return (array << up) >> (up + low)


def decode(dataset: FileDataset) -> tuple[Pixels, str]:
    """Decode all frames: array [frame, row, column] or [frame, row, column, sample], and decoder.

    Colour comes as RGB. Values are stored values, little-endian in memory,
    before any rescaling. Raises RunFailed("undecodable" or "memory").
    """
    rows, columns, frames, samples = _announced(dataset)
    meta = getattr(dataset, "file_meta", None)
    syntax = str(getattr(meta, "TransferSyntaxUID", "")) or "1.2.840.10008.1.2"
    if not has_pixels(dataset):
        raise _undecodable("an image has no pixels")
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError) as error:
        raise _undecodable("no decoder knows this transfer syntax") from error
    native = syntax in _NATIVE
    names = [""] if native else [p for p in _ORDER if p in decoder.available_plugins]
    for name in names:
        try:
            array, _ = decoder.as_array(dataset, decoding_plugin=name, raw=False)
        except (MemoryError, RecursionError):
            raise
        except _BROKEN:
            continue
        shape = (frames, rows, columns) if samples == 1 else (frames, rows, columns, samples)
        if array.size != math.prod(shape):
            continue
        whole = _significant(array.reshape(shape), dataset) if samples == 1 else array
        return whole.reshape(shape), "native" if native else _named(name, syntax)
    raise _undecodable(
        _cut_off(dataset, rows * columns * frames * samples) if native else _NO_DECODER
    )


def raw_frames(dataset: FileDataset) -> bytes:
    """Decode all frames as they were encoded, without a change of colour: little-endian bytes.

    Samples of a pixel stand together. Raises RunFailed("undecodable" or "memory").
    """
    _announced(dataset)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    try:
        # RLE is simple enough for pydicom itself: no library, no hostile C.
        plugin = "pydicom" if syntax == RLELossless else ""
        array, _ = get_decoder(syntax).as_array(dataset, raw=True, decoding_plugin=plugin)
    except (MemoryError, RecursionError):
        raise
    except _BROKEN as error:
        raise _undecodable(_NO_DECODER) from error
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _cut_off(dataset: FileDataset, values: int) -> str:
    """Say why native pixels cannot be read: mostly, fewer bytes than the header announces."""
    needed = math.ceil(values * _whole(dataset, "BitsAllocated") / 8)
    there = len(dataset.PixelData) if isinstance(dataset.get("PixelData"), bytes) else 0
    if there < needed:
        return f"{there} of {needed} bytes of pixels are there: cut off, or Rows and Columns lie"
    return _NO_DECODER


def pixel_sha256(array: Pixels) -> str:
    """SHA-256 of decoded frames: a line with shape and type, then little-endian values.

    It is the same for every lossless transfer syntax of an image.
    """
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    digest = hashlib.sha256()
    digest.update(f"{'x'.join(map(str, array.shape))} {little.dtype.str}\n".encode())
    digest.update(little.data)
    return digest.hexdigest()
