"""Steps that move voxels: orient, resample, pad, crop. The affine follows every one.

Names, meaning and numbers are MONAI's (tests/vectors/monai holds its answers);
README.md says where we differ and why. Arrays are [channel, X, Y, Z].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from models.errors import RunFailed
from models.volume import Matrix

__all__ = ["STEPS", "Image", "Step", "onto"]

_DIRECTIONS: Final = {  # LPS+: x to the left, y to the back, z to the head
    "L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1),
}  # fmt: skip
_MAX_VOXELS: Final = 2**31
_TRUNCATE: Final = 4.0
Step = Mapping[str, Any]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Image:
    """An array on its way: [C, X, Y, Z] float32, affine (X, Y, Z, 1) → LPS mm.

    Without geometry (projections) the affine counts pixels and `placed` is
    False. `flat`: each Z stands alone.
    """

    array: Array
    affine: Matrix
    placed: bool
    flat: bool
    modality: str
    photometric: str
    rescaled: bool
    window: tuple[float, float] | None


def _sizes(image: Image, wanted: Sequence[Any], keep: Sequence[Any]) -> list[Any]:
    """Three numbers in X, Y, Z order; two mean (rows, columns) and leave Z alone."""
    if len(wanted) == 3:
        return list(wanted)
    if not image.flat:
        raise RunFailed("bad_input", "a volume model needs three sizes")
    return [wanted[1], wanted[0], keep[2]]


def _moved(affine: Matrix, scale: Sequence[float], offset: Sequence[float]) -> Matrix:
    """Give the affine after new index i stands where old index i * scale + offset stood."""
    change = np.diag([*scale, 1.0])
    change[:3, 3] = offset
    return affine @ change


def _room(shape: Sequence[int]) -> None:
    if math.prod(shape) > _MAX_VOXELS:
        raise RunFailed("memory", "a preprocessing step would make too many voxels")


def _linear(array: Array, shape: Sequence[int], scale: Sequence[float], offset: Any) -> Array:
    """Sample between voxels; beyond the border the border goes on."""
    out = np.empty((array.shape[0], *shape), dtype=np.float32)
    for channel in range(array.shape[0]):
        ndimage.affine_transform(
            array[channel], np.asarray(scale), offset, output_shape=tuple(shape),
            output=out[channel], order=1, mode="nearest", prefilter=False,
        )  # fmt: skip
    return out


def _picked(array: Array, places: Sequence[Array]) -> Array:
    """Take whole voxels, by an index list per axis."""
    for axis, place in enumerate(places):
        inside = np.clip(place, 0, array.shape[axis + 1] - 1).astype(np.intp)
        array = np.take(array, inside, axis=axis + 1)
    return array.astype(np.float32, copy=False)


def _letters(columns: Matrix) -> list[tuple[int, int]]:
    """Name the world axis and sign of each array axis, as nibabel does: the strongest first."""
    left, _, right = np.linalg.svd(columns, full_matrices=False)
    turn = left @ right
    found: dict[int, tuple[int, int]] = {}
    for axis in np.argsort(np.min(-(turn**2), axis=0), kind="stable"):
        world = int(np.argmax(np.abs(turn[:, axis])))
        found[int(axis)] = (world, -1 if turn[world, axis] < 0 else 1)
        turn[world, :] = 0
    return [found[axis] for axis in range(3)]


def _orientation(image: Image, step: Step) -> Image:
    """Permute and flip axes to the nearest anatomical ones; axis i grows towards axcodes[i]."""
    if not image.placed or image.flat:
        raise RunFailed("bad_input", "only volumes with geometry can be oriented")
    letters = [_DIRECTIONS[c] for c in step["axcodes"]]
    if sorted(axis for axis, _ in letters) != [0, 1, 2]:
        raise RunFailed("bad_model", "axcodes name an axis twice")
    columns = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    present = _letters(columns)
    order = [[world for world, _ in present].index(axis) for axis, _ in letters]
    array = np.transpose(image.array, (0, *(p + 1 for p in order)))
    affine = image.affine[:, [*order, 3]]
    for i, (_, sign) in enumerate(letters):
        if present[order[i]][1] != sign:
            size = array.shape[i + 1]
            array = np.flip(array, axis=i + 1)
            scale, offset = [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]
            scale[i], offset[i] = -1.0, size - 1.0
            affine = _moved(affine, scale, offset)
    return replace(image, array=array, affine=affine)


def _spacing(image: Image, step: Step) -> Image:
    """Resample along the image's own axes; the first voxel's centre stays where it is."""
    present = np.linalg.norm(image.affine[:3, :3], axis=0)
    wanted = _sizes(image, step["pixdim"], present)
    shape = image.array.shape[1:]
    scale = [float(w / p) if p > 0 else 1.0 for w, p in zip(wanted, present, strict=True)]
    if image.flat:
        scale[2] = 1.0
    new = [max(round((n - 1) / s + 1), 1) for n, s in zip(shape, scale, strict=True)]
    _room(new)
    if step.get("mode", "bilinear") == "nearest":
        array = _picked(
            image.array, [np.rint(np.arange(n) * s) for n, s in zip(new, scale, strict=True)]
        )
    else:
        array = _linear(image.array, new, scale, (0, 0, 0))
    return replace(image, array=array, affine=_moved(image.affine, scale, (0, 0, 0)))


def _smooth(array: Array, scale: Sequence[float]) -> Array:
    """MONAI's GaussianSmooth before a reduction: erf kernel, zeros beyond the border."""
    out = array.astype(np.float32)
    for axis, factor in enumerate(scale, start=1):
        sigma = max((factor - 1) / 2, 0.0)
        if sigma == 0:
            continue
        tail = int(max(sigma * _TRUNCATE, 0.5) + 0.5)
        x = np.arange(-tail, tail + 1) / (math.sqrt(2) * sigma)
        half = 0.5 / (math.sqrt(2) * sigma)
        kernel = 0.5 * (special.erf(x + half) - special.erf(x - half))
        out = ndimage.correlate1d(out, kernel, axis=axis, mode="constant", cval=0.0)
    return out


def _area(array: Array, wanted: Sequence[int]) -> Array:
    """Mean of the whole voxels that each new one touches (adaptive average)."""
    for axis, size in enumerate(wanted, start=1):
        present = array.shape[axis]
        if size == present:
            continue
        starts = np.arange(size) * present // size
        ends = -(-(np.arange(1, size + 1) * present) // size)
        start_at = [slice(None)] * 4
        start_at[axis] = slice(0, 1)
        total = np.cumsum(array, axis=axis, dtype=np.float64)
        total = np.concatenate([np.zeros_like(total[tuple(start_at)]), total], axis=axis)
        counts = (ends - starts).reshape([-1 if a == axis else 1 for a in range(4)])
        array = (np.take(total, ends, axis) - np.take(total, starts, axis)) / counts
    return array.astype(np.float32)


def _resize(image: Image, step: Step) -> Image:
    """Resample to a size; edges of the first and last voxel stay (align_corners=False)."""
    shape = image.array.shape[1:]
    wanted = [int(n) for n in _sizes(image, step["spatial_size"], shape)]
    if step.get("keep_ratio"):
        counted = 2 if image.flat else 3
        factor = min(wanted[i] / shape[i] for i in range(counted))
        wanted = [max(round(shape[i] * factor), 1) if i < counted else shape[i] for i in range(3)]
    _room(wanted)
    scale = [n / w for n, w in zip(shape, wanted, strict=True)]
    offset = [0.5 * s - 0.5 for s in scale]
    affine = _moved(image.affine, scale, offset)
    source = image.array
    if step.get("anti_alias"):
        source = _smooth(source, scale)
    mode = step.get("mode", "bilinear")
    if mode == "area":
        return replace(image, array=_area(source, wanted), affine=affine)
    if mode in ("nearest", "nearest-exact"):
        # torch multiplies in single precision; at a tie that decides which voxel is taken
        half = np.float32(0.5 if mode == "nearest-exact" else 0)
        places = [
            np.floor((np.arange(w, dtype=np.float32) + half) * (np.float32(n) / np.float32(w)))
            for n, w in zip(shape, wanted, strict=True)
        ]
        return replace(image, array=_picked(source, places), affine=affine)
    return replace(image, array=_linear(source, wanted, scale, offset), affine=affine)


def _fit(image: Image, sizes: Sequence[int], value: float, *, crop: bool, pad: bool) -> Image:
    """Cut or pad around the middle; `crop` and `pad` say which of the two may happen."""
    array, offset = image.array, [0.0, 0.0, 0.0]
    final = [
        n if (n < size and not pad) or (n > size and not crop) else size
        for n, size in zip(array.shape[1:], sizes, strict=True)
    ]
    _room(final)
    for axis, size in enumerate(final):
        present = array.shape[axis + 1]
        if present > size:
            start = max(present // 2 - size // 2, 0)
            array = np.take(array, range(start, start + size), axis=axis + 1)
            offset[axis] = float(start)
        elif present < size:
            before = (size - present) // 2
            pads = [(0, 0)] * 4
            pads[axis + 1] = (before, size - present - before)
            array = np.pad(array, pads, constant_values=value)
            offset[axis] = -float(before)
    return replace(image, array=array, affine=_moved(image.affine, (1, 1, 1), offset))


def _pad_or_crop(image: Image, step: Step) -> Image:
    sizes = _sizes(image, step["spatial_size"], image.array.shape[1:])
    return _fit(image, sizes, step.get("value", 0), crop=True, pad=True)


def _pad(image: Image, step: Step) -> Image:
    sizes = _sizes(image, step["spatial_size"], image.array.shape[1:])
    return _fit(image, sizes, step.get("value", 0), crop=False, pad=True)


def _center_crop(image: Image, step: Step) -> Image:
    sizes = _sizes(image, step["roi_size"], image.array.shape[1:])
    return _fit(image, sizes, 0, crop=True, pad=False)


def _foreground(image: Image, step: Step) -> Image:
    """Cut to the box of voxels above the threshold, and a margin; nothing above: unchanged.

    A margin beyond the image is zeros, unless `allow_smaller`.
    """
    inside = (image.array > step.get("threshold", 0)).any(axis=0)
    array, offset = image.array, [0.0, 0.0, 0.0]
    margin = int(step.get("margin", 0))
    beyond = 0 if step.get("allow_smaller") else margin
    counted = 2 if image.flat else 3
    if not inside.any():
        return image
    _room([n + 2 * beyond for n in array.shape[1:]])
    for axis in range(counted):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(inside.any(axis=others))
        low, high = int(found[0]) - margin, int(found[-1]) + 1 + margin
        present = array.shape[axis + 1]
        pads = [(0, 0)] * 4
        pads[axis + 1] = (min(max(-low, 0), beyond), min(max(high - present, 0), beyond))
        array = array[(slice(None),) * (axis + 1) + (slice(max(low, 0), high),)]
        array = np.pad(array, pads)
        offset[axis] = float(max(low, 0) - pads[axis + 1][0])
    return replace(image, array=array, affine=_moved(image.affine, (1, 1, 1), offset))


def onto(image: Image, reference: Image) -> Image:
    """Resample onto the reference's grid (trilinear), for a second series of the same patient."""
    matrix = np.linalg.inv(image.affine) @ reference.affine
    shape = reference.array.shape[1:]
    out = np.zeros((image.array.shape[0], *shape), dtype=np.float32)
    for channel in range(image.array.shape[0]):
        ndimage.affine_transform(
            image.array[channel], matrix[:3, :3], matrix[:3, 3], output_shape=shape,
            output=out[channel], order=1, mode="constant", cval=0.0, prefilter=False,
        )  # fmt: skip
    return replace(image, array=out, affine=reference.affine)


STEPS: Final[dict[str, Callable[[Image, Step], Image]]] = {
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "ResizeWithPadOrCrop": _pad_or_crop,
    "SpatialPad": _pad,
    "CenterSpatialCrop": _center_crop,
    "CropForeground": _foreground,
}
"""The steps of this room, by MONAI's name."""
