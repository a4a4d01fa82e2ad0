"""A series as one volume: values, geometry in LPS millimetres, and which image each slice is.

Geometry comes from ImagePositionPatient and ImageOrientationPatient alone, so
oblique and sheared (tilted gantry) stacks are exact; slice order never comes
from InstanceNumber where positions exist. Enhanced multi-frame images bring
one slice a frame. Projections have no positions and become a stack without
geometry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset

from models.decode import Pixels, decode, read_header
from models.errors import RunFailed

__all__ = ["Slice", "Volume", "assemble", "load", "slices_of"]

Floats = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
_ANGLE: Final = 1e-3  # tolerated difference of direction cosines
_ROUNDING: Final = 1e-3  # mm: positions are decimal strings, gaps their projections
_GAP_VARIATION: Final = 0.1  # tolerated deviation of a gap, as a share of the usual gap


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame before stacking: stored pixels and what places and scales them.

    `position` and `orientation` are LPS, None for projections; `spacing` is
    (row, column) mm or None; `order` is InstanceNumber and frame number.
    """

    sop_instance_uid: str
    pixels: Pixels
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    slope: float
    intercept: float
    rescaled: bool
    order: tuple[int, int]
    frame_of_reference: str


@dataclass(frozen=True, slots=True)
class Volume:
    """Voxels and where they are.

    `array` is float32 [slice, row, column] (colour: [slice, row, column, 3]),
    rescaled slice by slice unless loaded raw. `affine` (4 x 4) takes
    (slice, row, column, 1) to LPS mm; None for projections. `frames` are the
    SOPInstanceUIDs along the first axis, against the normal's direction first;
    `stored` the place of each in its image, 0 where an image has one frame.
    `spacing` is (slice, row, column) mm, slice 0 for a single image.
    """

    array: Floats
    affine: Matrix | None
    frames: tuple[str, ...]
    spacing: tuple[float, float, float] | None
    modality: str
    photometric: str
    rescaled: bool
    window: tuple[float, float] | None
    frame_of_reference: str
    stored: tuple[int, ...] = ()

    @property
    def voxel_mm3(self) -> float | None:
        """Volume of a voxel in cubic millimetres; None without a third dimension."""
        if self.affine is None:
            return None
        size = abs(float(np.linalg.det(self.affine[:3, :3])))
        return size if size > 0 and self.spacing and self.spacing[0] > 0 else None


def _geometry(text: str) -> RunFailed:
    return RunFailed("bad_geometry", text)


def _finite(value: Any, count: int, name: str) -> tuple[float, ...] | None:
    """Read a multi-valued decimal attribute; None when absent, RunFailed if malformed."""
    if value is None or value == "":
        return None
    try:
        numbers = tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise _geometry(f"{name} is not {count} numbers") from error
    if len(numbers) != count or not all(math.isfinite(n) for n in numbers):
        raise _geometry(f"{name} is not {count} finite numbers")
    return numbers


def _spacing(value: Any) -> tuple[float, float] | None:
    found = _finite(value, 2, "PixelSpacing")
    if found is None:
        return None
    if min(found) <= 0:
        raise _geometry("PixelSpacing is not positive")
    return found[0], found[1]


def _orientation(value: Any) -> tuple[float, ...] | None:
    found = _finite(value, 6, "ImageOrientationPatient")
    if found is None:
        return None
    row, column = np.array(found[:3]), np.array(found[3:])
    lengths = (float(np.linalg.norm(row)), float(np.linalg.norm(column)))
    if max(abs(n - 1) for n in lengths) > 0.01 or abs(float(row @ column)) > 0.01:
        raise _geometry("ImageOrientationPatient is not two perpendicular unit vectors")
    return found


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RunFailed("bad_pixels", f"{name} is not a number") from error
    if not math.isfinite(number) or (name == "RescaleSlope" and number == 0):
        raise RunFailed("bad_pixels", f"{name} is zero or not finite")
    return number


def _rescale(holder: Dataset) -> tuple[float, float, bool]:
    slope, intercept = holder.get("RescaleSlope"), holder.get("RescaleIntercept")
    if slope is None and intercept is None:
        return 1.0, 0.0, False
    return (
        _number(1 if slope is None else slope, "RescaleSlope"),
        _number(0 if intercept is None else intercept, "RescaleIntercept"),
        True,
    )


def _group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """One functional group of a frame: its own, else the shared one."""
    for holder, index in (("PerFrameFunctionalGroupsSequence", frame),
                          ("SharedFunctionalGroupsSequence", 0)):  # fmt: skip
        items = dataset.get(holder)
        if items is not None and index < len(items):
            inner = items[index].get(keyword)
            if inner:
                found: Dataset = inner[0]
                return found
    return None


def _frame(dataset: FileDataset, pixels: Pixels, index: int) -> Slice:
    enhanced = "SharedFunctionalGroupsSequence" in dataset
    empty = Dataset()
    place = dataset if not enhanced else _group(dataset, index, "PlanePositionSequence") or empty
    turn = dataset if not enhanced else _group(dataset, index, "PlaneOrientationSequence") or empty
    size = dataset if not enhanced else _group(dataset, index, "PixelMeasuresSequence") or empty
    scale: Dataset = dataset
    if enhanced:
        scale = _group(dataset, index, "PixelValueTransformationSequence") or empty
    slope, intercept, rescaled = _rescale(scale)
    spacing = _spacing(size.get("PixelSpacing"))
    if spacing is None:
        spacing = _spacing(dataset.get("ImagerPixelSpacing"))
    number = dataset.get("InstanceNumber")
    return Slice(
        sop_instance_uid=str(dataset.get("SOPInstanceUID", "")),
        pixels=pixels,
        position=_finite(place.get("ImagePositionPatient"), 3, "ImagePositionPatient"),
        orientation=_orientation(turn.get("ImageOrientationPatient")),
        spacing=spacing,
        slope=slope,
        intercept=intercept,
        rescaled=rescaled,
        order=(int(number) if str(number).lstrip("-").isdigit() else 0, index),
        frame_of_reference=str(dataset.get("FrameOfReferenceUID", "")),
    )


def slices_of(dataset: FileDataset, pixels: Pixels) -> list[Slice]:
    """Place the decoded frames of one image; raises RunFailed for impossible geometry."""
    if dataset.get("ModalityLUTSequence"):
        raise RunFailed("bad_pixels", "a modality lookup table is not supported")
    return [_frame(dataset, pixels[i], i) for i in range(pixels.shape[0])]


def _same(slices: Sequence[Slice]) -> None:
    first = slices[0]
    for other in slices[1:]:
        if other.pixels.shape != first.pixels.shape:
            raise _geometry("images of the series differ in size")
        if other.frame_of_reference != first.frame_of_reference:
            raise _geometry("images of the series differ in FrameOfReferenceUID")
        for mine, theirs in ((first.orientation, other.orientation),
                             (first.spacing, other.spacing)):  # fmt: skip
            if (mine is None) != (theirs is None):
                raise _geometry("some images of the series lack orientation or spacing")
            off = zip(mine or (), theirs or (), strict=True)
            if max((abs(a - b) for a, b in off), default=0.0) > _ANGLE:
                raise _geometry("images of the series differ in orientation or pixel spacing")


def _check_gaps(gaps: Matrix, rules: Mapping[str, Any]) -> None:
    usual = float(np.median(gaps))
    if float(gaps.min()) <= max(1e-3, usual * 0.01):
        raise _geometry("two images of the series lie at the same place")
    widest = rules.get("max_slice_gap_mm")
    if widest is not None and float(gaps.max()) > float(widest) + _ROUNDING:
        raise _geometry(f"slices are {float(gaps.max()):.2f} mm apart, allowed are {widest:g} mm")
    allowed = float(rules.get("max_gap_variation", _GAP_VARIATION))
    if float(np.abs(gaps - usual).max()) > allowed * usual:
        missing = int(np.round(gaps / usual - 1).clip(0).sum())
        what = f"{missing} missing" if missing else "unequal distances"
        raise _geometry(f"slices are not evenly spaced ({what})")


def _affine(slices: Sequence[Slice], rules: Mapping[str, Any]) -> tuple[list[Slice], Matrix, float]:
    """Sort along the normal; return slices, affine and the distance between slices."""
    if any(s.position is None for s in slices):
        raise _geometry("some images have no ImagePositionPatient")
    orientation, spacing = slices[0].orientation, slices[0].spacing
    if orientation is None or spacing is None:
        raise _geometry("the series has no orientation or no pixel spacing")
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    normal = np.cross(along_row, along_column)
    spots = {id(s): np.array(s.position) for s in slices}
    ordered = sorted(slices, key=lambda s: (float(spots[id(s)] @ normal), s.order))
    points = np.stack([spots[id(s)] for s in ordered])
    affine = np.eye(4)
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = along_row * spacing[1]
    affine[:3, 3] = points[0]
    affine[:3, 0] = normal
    if len(ordered) == 1:
        return ordered, affine, 0.0
    gaps = np.diff(points @ normal)
    _check_gaps(gaps, rules)
    step = (points[-1] - points[0]) / (len(ordered) - 1)
    affine[:3, 0] = step
    straight = points[0] + np.arange(len(ordered))[:, None] * step
    if float(np.abs(points - straight).max()) > max(0.5, 0.1 * float(np.median(gaps))):
        raise _geometry("slices do not lie on one straight line")
    return ordered, affine, float(np.median(gaps))


def _window(dataset: Dataset) -> tuple[float, float] | None:
    def first(keyword: str) -> float | None:
        value = dataset.get(keyword)
        try:
            return float(value[0] if hasattr(value, "__getitem__") else value)
        except (TypeError, ValueError, IndexError):
            return None

    center, width = first("WindowCenter"), first("WindowWidth")
    return (center, width) if center is not None and width is not None and width > 0 else None


def assemble(
    slices: Sequence[Slice], head: Dataset, rules: Mapping[str, Any], *, rescale: bool = True
) -> Volume:
    """Stack frames of one series into a volume.

    `rules` is the manifest's `deployment.input` (max_slice_gap_mm,
    max_gap_variation as a share of the usual gap). Raises RunFailed
    ("bad_geometry", "bad_pixels").
    """
    if not slices:
        raise _geometry("the series has no images")
    _same(slices)
    placed = any(s.position is not None for s in slices)
    affine: Matrix | None = None
    spacing: tuple[float, float, float] | None = None
    if placed:
        ordered, affine, gap = _affine(slices, rules)
        rows, columns = slices[0].spacing or (0.0, 0.0)
        spacing = (gap, rows, columns)
    else:
        ordered = sorted(slices, key=lambda s: (s.order, s.sop_instance_uid))
        if slices[0].spacing:
            spacing = (0.0, *slices[0].spacing)
    array = np.empty((len(ordered), *ordered[0].pixels.shape), dtype=np.float32)
    for index, item in enumerate(ordered):
        array[index] = item.pixels
        if rescale and item.rescaled:
            array[index] *= np.float32(item.slope)
            array[index] += np.float32(item.intercept)
    return Volume(
        array=array,
        affine=affine,
        frames=tuple(s.sop_instance_uid for s in ordered),
        spacing=spacing,
        modality=str(head.get("Modality", "")),
        photometric=str(head.get("PhotometricInterpretation", "")),
        rescaled=all(s.rescaled for s in ordered),
        window=_window(head),
        frame_of_reference=slices[0].frame_of_reference,
        stored=tuple(s.order[1] for s in ordered),
    )


def load(
    paths: Sequence[Path],
    rules: Mapping[str, Any] | None = None,
    *,
    rescale: bool = True,
    pixels_of: Callable[[Path, FileDataset], Pixels] | None = None,
) -> Volume:
    """Read one series into a volume; see `assemble`. Also raises RunFailed("undecodable").

    `pixels_of` gives pixels decoded before, otherwise they are decoded here.
    """
    slices: list[Slice] = []
    head: FileDataset | None = None
    for path in paths:
        dataset = read_header(path)
        head = dataset if head is None else head
        frames = pixels_of(path, dataset) if pixels_of else decode(dataset)[0]
        slices.extend(slices_of(dataset, frames))
    return assemble(slices, head if head is not None else Dataset(), rules or {}, rescale=rescale)
