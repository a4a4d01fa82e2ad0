"""PixelData as the native frames it stands for, whatever it was transcoded to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydicom.dataset import Dataset

from bridge.report.errors import ContentError

__all__ = ["Decode", "native_frames", "native_length"]

Decode = Callable[[Dataset], bytes]
"""Decodes encapsulated PixelData: little-endian frames, samples together; raises ContentError."""

_BITS, _SAMPLES, _LONGEST = {1, 8, 16}, {1, 3}, 1 << 30


def native_length(ds: Dataset) -> int:
    """Return the number of bytes that native frames of this image have, without padding.

    Raises ContentError for an image that is none of radseal's: other samples or bits than ours,
    or more than 1 GiB.
    """
    samples, frames = int(ds.get("SamplesPerPixel", 1) or 1), int(ds.get("NumberOfFrames", 1) or 1)
    allocated = int(ds.BitsAllocated)
    bits = int(ds.Rows) * int(ds.Columns) * samples * frames * allocated
    if samples not in _SAMPLES or allocated not in _BITS or not 0 < bits <= _LONGEST * 8:
        raise ContentError("PixelData has a shape in which radseal writes none")
    return (bits + 7) // 8


def _interleaved(ds: Dataset, data: bytes) -> bytes:
    """Return native colour frames with the samples of a pixel together."""
    samples, frames = int(ds.SamplesPerPixel), int(ds.get("NumberOfFrames", 1) or 1)
    word = int(ds.BitsAllocated) // 8
    planes = np.frombuffer(data, np.uint8).reshape(frames, samples, -1, word)
    return np.ascontiguousarray(planes.transpose(0, 2, 1, 3)).tobytes()


def _native(ds: Dataset, *, swap: bool) -> bytes:
    data = ds.PixelData
    if not isinstance(data, bytes):
        raise ContentError("PixelData is not bytes")
    if swap and ds["PixelData"].VR == "OW":
        if len(data) % 2:
            raise ContentError("PixelData has an odd length")
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    length = native_length(ds)
    if len(data) < length:
        raise ContentError("PixelData is shorter than its image")
    if len(data) > length + length % 2:
        raise ContentError("PixelData is longer than its image")
    data = data[:length]
    if int(ds.get("SamplesPerPixel", 1) or 1) > 1 and int(ds.get("PlanarConfiguration", 0) or 0):
        data = _interleaved(ds, data)
    return data


def _decoded(ds: Dataset, decode: Decode | None) -> bytes:
    if decode is None:
        raise ContentError("PixelData is encapsulated, and nobody was named who decodes it")
    length = native_length(ds)
    data = decode(ds)
    if len(data) < length:
        raise ContentError("PixelData is shorter than its image")
    return data[:length]


def native_frames(ds: Dataset, *, swap: bool, decode: Decode | None = None) -> bytes:
    """Return the native frames, padded to an even length; `swap` for big-endian files.

    Raises ContentError where the pixels do not decode or are too few, and for encapsulated ones
    without `decode`.
    """
    try:
        meta = getattr(ds, "file_meta", None)
        syntax = meta.get("TransferSyntaxUID") if meta is not None else None
        packed = syntax is not None and syntax.is_encapsulated
        data = _decoded(ds, decode) if packed else _native(ds, swap=swap)
    except AttributeError as error:
        raise ContentError(f"PixelData without {error.name or 'its description'}") from None
    return data + b"\0" * (len(data) % 2)
