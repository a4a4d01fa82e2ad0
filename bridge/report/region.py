"""Where on the source images a statement stands: one closed polyline on one image.

A reader of TID 1500 that draws nothing for a group without coordinates (or, as
OHIF 3.13 does, refuses the whole study) is served by a rectangle around the
finding on the image that shows most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from bridge.report.errors import ReportError
from models.findings import Box

__all__ = ["Place", "of_box", "places", "whole_image"]


@dataclass(frozen=True, slots=True)
class Place:
    """A rectangle on an image: columns x0..x1 and rows y0..y1 in pixel edges (PS3.3 C.18.6.1.2).

    `frame` is 1-based and None for a single-frame image.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None
    x0: float
    y0: float
    x1: float
    y1: float

    def polyline(self) -> NDArray[np.float64]:
        """Return the closed outline as (column, row) pairs, first point = last point."""
        corners = [
            (self.x0, self.y0),
            (self.x1, self.y0),
            (self.x1, self.y1),
            (self.x0, self.y1),
            (self.x0, self.y0),
        ]
        return np.array(corners, np.float64)


def whole_image(sources: Sequence[Dataset], sop_instance_uid: str | None = None) -> Place:
    """Return the whole of the named source image, or of the middle one."""
    chosen = sources[len(sources) // 2]
    if sop_instance_uid is not None:
        named = [s for s in sources if str(s.SOPInstanceUID) == sop_instance_uid]
        chosen = named[0] if named else chosen
    frames = int(chosen.get("NumberOfFrames", 1) or 1)
    return Place(
        sop_class_uid=str(chosen.SOPClassUID),
        sop_instance_uid=str(chosen.SOPInstanceUID),
        frame=frames // 2 + 1 if frames > 1 else None,
        x0=0.0,
        y0=0.0,
        x1=float(chosen.Columns),
        y1=float(chosen.Rows),
    )


def of_box(sources: Sequence[Dataset], frames: Sequence[str], box: Box) -> Place:
    """Return a box's rectangle on the image in its middle; `frames` are Findings.frames.

    Raises ReportError where the box does not lie on that image.
    """
    if not 0 <= box.frame < len(frames):
        raise ReportError(f"a box of {box.label!r} lies on no source image")
    uid = frames[box.frame]
    image = next((s for s in sources if str(s.SOPInstanceUID) == uid), None)
    if image is None:
        raise ReportError(f"a box of {box.label!r} names an image that is not a source")
    inside = 0 <= box.x0 < box.x1 <= int(image.Columns) and 0 <= box.y0 < box.y1 <= int(image.Rows)
    if not inside:
        raise ReportError(f"a box of {box.label!r} leaves its image")
    several = int(image.get("NumberOfFrames", 1) or 1) > 1
    return Place(
        sop_class_uid=str(image.SOPClassUID),
        sop_instance_uid=uid,
        frame=list(frames[: box.frame + 1]).count(uid) if several else None,
        x0=box.x0,
        y0=box.y0,
        x1=box.x1,
        y1=box.y1,
    )


def _frame(data: bytes, index: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return frame `index` of packed single-bit pixels (PS3.5 8.1.1: no padding between frames)."""
    pixels = rows * columns
    first = index * pixels
    part = np.frombuffer(data[first // 8 : (first + pixels + 7) // 8], np.uint8)
    bits = np.unpackbits(part, bitorder="little")
    start = first % 8
    return bits[start : start + pixels].reshape(rows, columns)


def _segment_of(item: Dataset, shared: Dataset) -> int:
    holder = item if "SegmentIdentificationSequence" in item else shared
    return int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def places(seg: Dataset) -> dict[int, Place]:
    """Return, by segment number, the rectangle on the image that shows most of the segment.

    `seg` is a BINARY SEG; segments without a voxel are left out.
    """
    rows, columns = int(seg.Rows), int(seg.Columns)
    data = bytes(seg.PixelData)
    shared = seg.SharedFunctionalGroupsSequence[0]
    best: dict[int, tuple[int, Place]] = {}
    for index, item in enumerate(seg.PerFrameFunctionalGroupsSequence):
        number = _segment_of(item, shared)
        frame = _frame(data, index, rows, columns)
        count = int(frame.sum())
        if count == 0 or count <= best.get(number, (0, None))[0]:
            continue
        image = item.DerivationImageSequence[0].SourceImageSequence[0]
        numbers = image.get("ReferencedFrameNumber")
        ys, xs = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
        best[number] = (
            count,
            Place(
                sop_class_uid=str(image.ReferencedSOPClassUID),
                sop_instance_uid=str(image.ReferencedSOPInstanceUID),
                frame=None if numbers is None else int(numbers),
                x0=float(xs[0]),
                y0=float(ys[0]),
                x1=float(xs[-1] + 1),
                y1=float(ys[-1] + 1),
            ),
        )
    return {number: place for number, (_, place) in best.items()}
