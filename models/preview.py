"""The one picture that shows a result: the slice with most of it, in a window one can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.findings import PRESENT
from models.outputs import Result
from models.package import Package
from models.volume import Volume

__all__ = ["picture"]

Bytes = npt.NDArray[np.uint8]


def _chosen(volume: Volume, result: Result) -> int:
    if result.mask is not None and result.mask.any():
        return int((result.mask != 0).sum(axis=(1, 2)).argmax())
    for statement in result.findings.qualitative:
        if statement.value == PRESENT and statement.sop_instance_uid in volume.frames:
            return volume.frames.index(statement.sop_instance_uid)
    return len(volume.frames) // 2


def _grey(package: Package, volume: Volume, index: int) -> Bytes:
    plane = volume.array[index].astype(np.float32)
    if plane.ndim == 3:
        plane = plane.mean(axis=2)
    window: Any = package.results.get("window")
    if window is not None:
        low, high = window["center"] - window["width"] / 2, window["center"] + window["width"] / 2
    elif volume.window is not None and volume.rescaled:
        low = volume.window[0] - volume.window[1] / 2
        high = volume.window[0] + volume.window[1] / 2
    else:
        low, high = (float(v) for v in np.percentile(plane, [1, 99]))
    grey = np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255
    if volume.photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.asarray(grey, dtype=np.uint8)


def _square(array: Bytes, volume: Volume) -> Bytes:
    """Repeat or skip rows so that pixels are square."""
    if volume.spacing is None or min(volume.spacing[1:]) <= 0:
        return array
    ratio = volume.spacing[1] / volume.spacing[2]
    if not 0.1 < ratio < 10 or abs(ratio - 1) < 0.01:
        return array
    rows = max(round(array.shape[0] * ratio), 1)
    kept = (np.arange(rows) / ratio).astype(np.intp).clip(0, array.shape[0] - 1)
    return np.asarray(array[kept])


def picture(package: Package, volume: Volume, result: Result) -> tuple[Bytes, Bytes]:
    """Return (grey image, segment numbers), both uint8 [row, column] with square pixels.

    Segment numbers above 255 are shown as 255.
    """
    index = _chosen(volume, result)
    grey = _grey(package, volume, index)
    labels = np.zeros(grey.shape, dtype=np.uint8)
    if result.mask is not None:
        for segment in result.findings.segments:
            labels[result.mask[index] == segment.index] = min(segment.number, 255)
    return _square(grey, volume), _square(labels, volume)
