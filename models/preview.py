"""The pictures that show a result: the slice with most of it, in a window one can read."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.findings import PRESENT
from models.outputs import Result
from models.package import Package
from models.volume import Volume

__all__ = ["pictures"]

Bytes = npt.NDArray[np.uint8]


def _chosen(volume: Volume, result: Result) -> int:
    if result.mask is not None and result.mask.any():
        others = tuple(range(1, result.mask.ndim))
        return int((result.mask != 0).sum(axis=others).argmax())
    if result.findings.boxes:
        return result.findings.boxes[0].frame
    for statement in result.findings.qualitative:
        if statement.value == PRESENT and statement.sop_instance_uid in volume.frames:
            return volume.frames.index(statement.sop_instance_uid)
    if result.heat is not None and result.heat.any():
        return int(result.heat.max(axis=(1, 2)).argmax())
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


def _labels(shape: tuple[int, ...], result: Result, index: int) -> Bytes:
    labels = np.zeros(shape, dtype=np.uint8)
    if result.mask is None:
        return labels
    for segment in result.findings.segments:
        if result.mask.ndim == 4:
            inside = result.mask[index, :, :, segment.number - 1] != 0
        else:
            inside = result.mask[index] == segment.index
        labels[inside] = min(segment.number, 255)
    return labels


def pictures(package: Package, volume: Volume, result: Result) -> dict[str, npt.NDArray[Any]]:
    """Return what a summary draws, by name; pictures are uint8 [row, column], pixels square.

    `image` is the slice and `labels` its Segment.number (above 255: 255; of overlapping
    ones the last). Where there is one, `heat` is 0..255; where boxes lie on the slice,
    `boxes` has a row each: place in Findings.boxes, x0, y0, x1, y1 in pixels of `image`.
    """
    index = _chosen(volume, result)
    grey = _grey(package, volume, index)
    made: dict[str, npt.NDArray[Any]] = {
        "image": _square(grey, volume),
        "labels": _square(_labels(grey.shape, result, index), volume),
    }
    if result.heat is not None:
        heat = np.rint(result.heat[index] * 255).astype(np.uint8)
        made["heat"] = _square(heat, volume)
    tall = made["image"].shape[0] / grey.shape[0]
    rows = [
        (k, box.x0, box.y0 * tall, box.x1, box.y1 * tall)
        for k, box in enumerate(result.findings.boxes)
        if box.first <= index <= box.last
    ]
    if rows:
        made["boxes"] = np.array(rows, np.float32)
    return made
