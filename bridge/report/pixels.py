"""PixelData as the native frames it stands for, whatever it was transcoded to."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import RLELossless

from bridge.report.errors import ContentError

__all__ = ["native_frames"]


def _length(ds: Dataset) -> int:
    """Return the number of bytes that native frames of this image have, without padding."""
    samples = int(ds.get("SamplesPerPixel", 1) or 1)
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    bits = int(ds.Rows) * int(ds.Columns) * samples * frames * int(ds.BitsAllocated)
    return (bits + 7) // 8


def _interleaved(ds: Dataset, data: bytes) -> bytes:
    """Return native colour frames with the samples of a pixel together."""
    samples, frames = int(ds.SamplesPerPixel), int(ds.get("NumberOfFrames", 1) or 1)
    word = int(ds.BitsAllocated) // 8
    planes = np.frombuffer(data, np.uint8).reshape(frames, samples, -1, word)
    return np.ascontiguousarray(planes.transpose(0, 2, 1, 3)).tobytes()


def _native(ds: Dataset, *, swap: bool) -> bytes:
    data = bytes(ds.PixelData)
    if swap and ds["PixelData"].VR == "OW":
        if len(data) % 2:
            raise ContentError("PixelData has an odd length")
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    length = _length(ds)
    if len(data) < length:
        raise ContentError("PixelData is shorter than its image")
    if len(data) > length + length % 2:
        raise ContentError("PixelData is longer than its image")
    data = data[:length]
    if int(ds.get("SamplesPerPixel", 1) or 1) > 1 and int(ds.get("PlanarConfiguration", 0) or 0):
        data = _interleaved(ds, data)
    return data


def _decoded(ds: Dataset) -> bytes:
    syntax = ds.file_meta.TransferSyntaxUID
    plugin = "pydicom" if syntax == RLELossless else ""
    try:
        frames, _ = get_decoder(syntax).as_array(ds, raw=True, decoding_plugin=plugin)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ContentError(f"PixelData does not decode ({type(error).__name__})") from None
    little = frames.astype(frames.dtype.newbyteorder("<"), copy=False)
    data: bytes = little.tobytes()
    return data[: _length(ds)]


def native_frames(ds: Dataset, *, swap: bool) -> bytes:
    """Return the native frames, padded to an even length; `swap` for big-endian files.

    Raises ContentError where the pixels do not decode or are too few.
    """
    try:
        meta = getattr(ds, "file_meta", None)
        syntax = meta.get("TransferSyntaxUID") if meta is not None else None
        packed = syntax is not None and syntax.is_encapsulated
        data = _decoded(ds) if packed else _native(ds, swap=swap)
    except AttributeError as error:
        raise ContentError(f"PixelData without {error.name or 'its description'}") from None
    return data + b"\0" * (len(data) % 2)
