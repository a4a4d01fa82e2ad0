"""From a volume to what a model eats: a closed list of steps with MONAI's names and meaning.

Arrays are [channel, X, Y, Z]: X along a row of the source image (columns), Y
down it (rows), Z across slices, until `Orientation` names the axes anew. Sizes
and spacings are given in that order, as in MONAI; models of one image (layout
NCHW) may give two numbers, (rows, columns) for sizes and for spacings. The
affine follows every step, so that a mask finds the way back.

With layout NCHW and batch_axis "slices" each image stands alone: statistics
(percentiles, mean) are taken per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.errors import RunFailed
from models.volume import Floats, Matrix, Volume

__all__ = ["Image", "apply", "from_volume", "onto", "tensor"]

_DIRECTIONS: Final = {  # LPS+: x to the left, y to the back, z to the head
    "L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1),
}  # fmt: skip
_MAX_VOXELS: Final = 2**31
Step = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Image:
    """An array on its way: [C, X, Y, Z] float32, affine (X, Y, Z, 1) → LPS mm.

    Without geometry (projections) the affine counts pixels and `placed` is
    False. `flat`: each Z stands alone.
    """

    array: npt.NDArray[Any]
    affine: Matrix
    placed: bool
    flat: bool
    modality: str
    photometric: str
    rescaled: bool
    window: tuple[float, float] | None


def from_volume(volume: Volume, *, flat: bool) -> Image:
    """Begin with a volume as it was loaded."""
    array = volume.array[..., None] if volume.array.ndim == 3 else volume.array
    affine = np.eye(4)
    if volume.affine is not None:
        affine = volume.affine[:, [2, 1, 0, 3]]
    elif volume.spacing is not None:
        affine = np.diag([volume.spacing[2], volume.spacing[1], 1.0, 1.0])
    return Image(
        array=np.transpose(array, (3, 2, 1, 0)),
        affine=affine,
        placed=volume.affine is not None,
        flat=flat,
        modality=volume.modality,
        photometric=volume.photometric,
        rescaled=volume.rescaled,
        window=volume.window,
    )


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


def _sample(
    array: npt.NDArray[Any], shape: Sequence[int], scale: Sequence[float],
    offset: Sequence[float], order: Literal[0, 1],
) -> npt.NDArray[Any]:  # fmt: skip
    if math.prod(shape) > _MAX_VOXELS:
        raise RunFailed("memory", "a preprocessing step would make too many voxels")
    out = np.empty((array.shape[0], *shape), dtype=np.float32)
    for channel in range(array.shape[0]):
        ndimage.affine_transform(
            array[channel], np.asarray(scale), offset, output_shape=tuple(shape),
            output=out[channel], order=order, mode="nearest", prefilter=False,
        )  # fmt: skip
    return out


def _rescale(image: Image, step: Step) -> Image:
    if step["to"] == "HU" and (image.modality != "CT" or not image.rescaled):
        raise RunFailed("bad_pixels", "Hounsfield units need a CT with rescale slope and intercept")
    return image


def _monochrome(image: Image, step: Step) -> Image:
    if image.array.shape[0] != 1:
        raise RunFailed("bad_input", "the images are in colour, the model wants grey")
    if image.photometric != "MONOCHROME1" or not step.get("invert_mono1", True):
        return image
    axes = (0, 1, 2) if image.flat else None
    top, low = image.array.max(axis=axes), image.array.min(axis=axes)
    return replace(image, array=(top + low) - image.array, photometric="MONOCHROME2")


def _voi(image: Image, step: Step) -> Image:
    """PS3.3 C.11.2.1.2, onto 0..1."""
    center, width = step.get("center"), step.get("width")
    if step.get("from_header") and image.window is not None:
        center, width = image.window
    if center is None or width is None:
        raise RunFailed("bad_input", "the images carry no window, and the model names none")
    function = step.get("function", "LINEAR")
    x = image.array.astype(np.float32, copy=False)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return replace(image, array=1 / (1 + np.exp(-4 * (x - center) / width)))
    if function == "LINEAR":
        center, width = center - 0.5, max(width - 1, 1e-6)
    return replace(image, array=np.clip((x - center) / width + 0.5, 0, 1))


def _orientation(image: Image, step: Step) -> Image:
    """Permute and flip axes to the nearest anatomical ones; axis i grows towards axcodes[i]."""
    if not image.placed or image.flat:
        raise RunFailed("bad_input", "only volumes with geometry can be oriented")
    letters = [_DIRECTIONS[c] for c in step["axcodes"]]
    if sorted(axis for axis, _ in letters) != [0, 1, 2]:
        raise RunFailed("bad_model", "axcodes name an axis twice")
    columns = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    best = max(
        ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)),
        key=lambda p: sum(abs(columns[axis, p[i]]) for i, (axis, _) in enumerate(letters)),
    )
    array = np.transpose(image.array, (0, *(p + 1 for p in best)))
    affine = image.affine[:, [*best, 3]]
    for i, (axis, sign) in enumerate(letters):
        if columns[axis, best[i]] * sign < 0:
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
    new = [max(round((n - 1) / s) + 1, 1) for n, s in zip(shape, scale, strict=True)]
    order: Literal[0, 1] = 0 if step.get("mode", "bilinear") == "nearest" else 1
    array = _sample(image.array, new, scale, (0, 0, 0), order)
    return replace(image, array=array, affine=_moved(image.affine, scale, (0, 0, 0)))


def _resize(image: Image, step: Step) -> Image:
    """Resample to a size; edges of the first and last voxel stay (align_corners=False)."""
    shape = image.array.shape[1:]
    wanted = [int(n) for n in _sizes(image, step["spatial_size"], shape)]
    if step.get("keep_ratio"):
        counted = 2 if image.flat else 3
        factor = min(wanted[i] / shape[i] for i in range(counted))
        wanted = [max(round(shape[i] * factor), 1) if i < counted else shape[i] for i in range(3)]
    scale = [n / w for n, w in zip(shape, wanted, strict=True)]
    source = image.array
    if step.get("anti_alias"):
        blur = [0.0, *(max((s - 1) / 2, 0.0) for s in scale)]
        source = ndimage.gaussian_filter(source.astype(np.float32), blur, mode="nearest")
    offset = [0.5 * s - 0.5 for s in scale]
    order: Literal[0, 1] = 0 if step.get("mode", "bilinear") == "nearest" else 1
    array = _sample(source, wanted, scale, offset, order)
    return replace(image, array=array, affine=_moved(image.affine, scale, offset))


def _fit(image: Image, sizes: Sequence[int], value: float, *, crop: bool) -> Image:
    array, offset = image.array, [0.0, 0.0, 0.0]
    for axis, size in enumerate(sizes):
        present = array.shape[axis + 1]
        if present > size and crop:
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
    return _fit(image, sizes, step.get("value", 0), crop=True)


def _pad(image: Image, step: Step) -> Image:
    sizes = _sizes(image, step["spatial_size"], image.array.shape[1:])
    return _fit(image, sizes, step.get("value", 0), crop=False)


def _foreground(image: Image, step: Step) -> Image:
    """Cut to the box of voxels above the threshold, and a margin; nothing above: unchanged."""
    inside = (image.array > step.get("threshold", 0)).any(axis=0)
    array, offset = image.array, [0.0, 0.0, 0.0]
    margin = int(step.get("margin", 0))
    for axis in range(2 if image.flat else 3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero(inside.any(axis=others))
        if not found.size:
            return image
        low, high = max(int(found[0]) - margin, 0), int(found[-1]) + 1 + margin
        array = array[(slice(None),) * (axis + 1) + (slice(low, high),)]
        offset[axis] = float(low)
    return replace(image, array=array, affine=_moved(image.affine, (1, 1, 1), offset))


def _linear(x: npt.NDArray[Any], a: Any, b: Any, step: Step) -> Floats:
    """Map a..b to b_min..b_max in place of MONAI's ScaleIntensityRange; a == b gives b_min."""
    low, high = float(step["b_min"]), float(step["b_max"])
    width = np.where(np.asarray(b) == np.asarray(a), 1, np.asarray(b) - np.asarray(a))
    out: Floats = np.asarray((x - a) / width, dtype=np.float32)
    out *= np.float32(high - low)
    out += np.float32(low)
    if step.get("clip"):
        np.clip(out, low, high, out=out)
    return out


def _range(image: Image, step: Step) -> Image:
    return replace(image, array=_linear(image.array, step["a_min"], step["a_max"], step))


def _percentiles(image: Image, step: Step) -> Image:
    axes = (0, 1, 2) if image.flat else (0, 1, 2, 3)
    marks = np.percentile(image.array, [step["lower"], step["upper"]], axis=axes)
    return replace(image, array=_linear(image.array, marks[0], marks[1], step))


def _normalize(image: Image, step: Step) -> Image:
    x = image.array.astype(np.float32, copy=False)
    inside = x != 0 if step.get("nonzero") else np.ones(x.shape, dtype=bool)
    axes = (0, 1, 2) if image.flat else (0, 1, 2, 3)
    if "mean" in step or "std" in step:
        mean = np.atleast_1d(np.asarray(step.get("mean", 0.0), np.float32)).reshape(-1, 1, 1, 1)
        std = np.atleast_1d(np.asarray(step.get("std", 1.0), np.float32)).reshape(-1, 1, 1, 1)
        if len(mean) not in (1, x.shape[0]) or len(std) not in (1, x.shape[0]):
            raise RunFailed("bad_model", "mean or std does not fit the channels")
    else:
        count = np.maximum(inside.sum(axis=axes), 1)
        mean = np.where(inside, x, 0).sum(axis=axes, dtype=np.float64) / count
        square = (np.where(inside, x - mean, 0).astype(np.float64) ** 2).sum(axis=axes) / count
        std = np.sqrt(square)
        std = np.where(std == 0, 1, std)
    return replace(image, array=np.where(inside, (x - mean) / std, x).astype(np.float32))


def _to_rgb(image: Image, _step: Step) -> Image:
    channels = image.array.shape[0]
    if channels == 3:
        return image
    if channels != 1:
        raise RunFailed("bad_input", "only grey images can be made into three channels")
    return replace(image, array=np.repeat(image.array, 3, axis=0))


def _cast(image: Image, step: Step) -> Image:
    wanted: np.dtype[Any] = np.dtype(step["dtype"])
    array = image.array
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        array = np.clip(np.rint(array), limits.min, limits.max)
    return replace(image, array=array.astype(wanted))


_STEPS: Final[dict[str, Callable[[Image, Step], Image]]] = {
    "Rescale": _rescale,
    "Monochrome": _monochrome,
    "VOI": _voi,
    "Orientation": _orientation,
    "Spacing": _spacing,
    "Resize": _resize,
    "ResizeWithPadOrCrop": _pad_or_crop,
    "SpatialPad": _pad,
    "CropForeground": _foreground,
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "NormalizeIntensity": _normalize,
    "ToRGB": _to_rgb,
    "Cast": _cast,
}


def apply(image: Image, steps: Sequence[Step]) -> Image:
    """Run the manifest's steps in order; raises RunFailed where the images do not allow one."""
    for step in steps:
        image = _STEPS[step["op"]](image, step)
    return image


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


def tensor(image: Image, layout: str) -> npt.NDArray[Any]:
    """Give the model's input: NCXYZ [1, C, X, Y, Z], NCDHW [1, C, Z, Y, X] or NCHW [Z, C, Y, X]."""
    if layout == "NCXYZ":
        array = image.array[None]
    elif layout == "NCDHW":
        array = np.transpose(image.array, (0, 3, 2, 1))[None]
    else:
        array = np.transpose(image.array, (3, 0, 2, 1))
    return np.ascontiguousarray(array)
