"""A summary image of ours as PNG, for the page. Only what we composed ourselves is opened here."""

from __future__ import annotations

import io
from pathlib import Path

import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from bridge.errors import NotFound, Refused


def read(path: Path) -> Dataset:
    """Read a stored artifact; NotFound when its file is gone."""
    try:
        return pydicom.dcmread(path)
    except FileNotFoundError:
        raise NotFound("The file of this result is no longer kept.") from None


def png(path: Path) -> bytes:
    """Turn an uncompressed 8-bit RGB single frame into PNG; Refused for anything else."""
    ds = read(path)
    rows, columns = int(ds.get("Rows", 0)), int(ds.get("Columns", 0))
    pixels = bytes(ds.get("PixelData", b""))
    plain = (
        not ds.file_meta.TransferSyntaxUID.is_compressed
        and ds.get("PhotometricInterpretation") == "RGB"
        and ds.get("BitsAllocated") == 8
        and ds.get("PlanarConfiguration", 0) == 0
        and 0 < rows * columns * 3 <= len(pixels)
    )
    if not plain:
        raise Refused("This result is not a picture that can be shown here.")
    out = io.BytesIO()
    image = Image.frombytes("RGB", (columns, rows), pixels[: rows * columns * 3])
    image.save(out, "PNG")
    return out.getvalue()
