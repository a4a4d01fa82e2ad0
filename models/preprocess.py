"""From a volume to what a model eats: a closed list of steps with MONAI's names and meaning.

Arrays are [channel, X, Y, Z]: X along a row of the source image (columns), Y
down it (rows), Z across slices, until `Orientation` names the axes anew. Sizes
and spacings are given in that order, as in MONAI; models of one image (layout
NCHW) may give two numbers, (rows, columns) for sizes and for spacings. The
affine follows every step, so that a mask finds the way back. Steps that move
voxels stand in `models.regrid`, those that change values here.

With layout NCHW and batch_axis "slices" each image stands alone: statistics
(percentiles, mean) are taken per image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models import regrid
from models.errors import RunFailed
from models.regrid import Image, Step, onto
from models.volume import Floats, Volume

__all__ = ["STEPS", "Image", "apply", "from_volume", "onto", "tensor"]


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


def _axes(image: Image, step: Step) -> tuple[int, ...]:
    """Give the axes of one statistic: each image alone when flat, each channel when asked."""
    spatial = (1, 2) if image.flat else (1, 2, 3)
    return spatial if step.get("channel_wise") else (0, *spatial)


def _linear(x: npt.NDArray[Any], a: Any, b: Any, step: Step) -> Floats:
    """Map a..b to b_min..b_max; a == b only shifts a to b_min, as MONAI does."""
    low, high = float(step["b_min"]), float(step["b_max"])
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    single = a == b
    width = np.where(single, 1, b - a).astype(np.float32)
    out: Floats = np.asarray((x - a.astype(np.float32)) / width, dtype=np.float32)
    out *= np.where(single, 1, high - low).astype(np.float32)
    out += np.float32(low)
    if step.get("clip"):
        out = np.asarray(np.where(single, out, np.clip(out, low, high)), np.float32)
    return out


def _range(image: Image, step: Step) -> Image:
    return replace(image, array=_linear(image.array, step["a_min"], step["a_max"], step))


def _percentiles(image: Image, step: Step) -> Image:
    marks = np.percentile(
        image.array, [step["lower"], step["upper"]], axis=_axes(image, step), keepdims=True
    )
    return replace(image, array=_linear(image.array, marks[0], marks[1], step))


def _scale(image: Image, step: Step) -> Image:
    """Map least..greatest to minv..maxv; an image of one value becomes value * minv."""
    low, high = float(step.get("minv", 0.0)), float(step.get("maxv", 1.0))
    axes = _axes(image, step)
    x = image.array.astype(np.float32, copy=False)
    least, most = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    span = np.where(most == least, 1, most - least)
    array = np.where(most == least, x * low, (x - least) / span * (high - low) + low)
    return replace(image, array=array.astype(np.float32))


def _given(step: Step, key: str, channels: int) -> npt.NDArray[Any]:
    given = np.atleast_1d(np.asarray(step[key], np.float32)).reshape(-1, 1, 1, 1)
    if len(given) not in (1, channels):
        raise RunFailed("bad_model", "mean or std does not fit the channels")
    return given


def _normalize(image: Image, step: Step) -> Image:
    x = image.array.astype(np.float32, copy=False)
    inside = x != 0 if step.get("nonzero") else np.ones(x.shape, dtype=bool)
    axes = _axes(image, step)
    count = np.maximum(inside.sum(axis=axes, keepdims=True), 1)
    own = np.where(inside, x, 0).sum(axis=axes, keepdims=True, dtype=np.float64) / count
    if "std" in step:
        std = _given(step, "std", x.shape[0])
    else:
        away = np.where(inside, x - own, 0).astype(np.float64)
        std = np.sqrt((away**2).sum(axis=axes, keepdims=True) / count)
        std = np.where(std == 0, 1, std)
    mean = _given(step, "mean", x.shape[0]) if "mean" in step else own
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


STEPS: Final[dict[str, Callable[[Image, Step], Image]]] = {
    "Rescale": _rescale,
    "Monochrome": _monochrome,
    "VOI": _voi,
    **regrid.STEPS,
    "ScaleIntensity": _scale,
    "ScaleIntensityRange": _range,
    "ScaleIntensityRangePercentiles": _percentiles,
    "NormalizeIntensity": _normalize,
    "ToRGB": _to_rgb,
    "Cast": _cast,
}


def apply(image: Image, steps: Sequence[Step]) -> Image:
    """Run the manifest's steps in order; raises RunFailed where the images do not allow one."""
    for step in steps:
        image = STEPS[step["op"]](image, step)
    return image


def tensor(image: Image, layout: str) -> npt.NDArray[Any]:
    """Give the model's input: NCXYZ [1, C, X, Y, Z], NCDHW [1, C, Z, Y, X] or NCHW [Z, C, Y, X]."""
    if layout == "NCXYZ":
        array = image.array[None]
    elif layout == "NCDHW":
        array = np.transpose(image.array, (0, 3, 2, 1))[None]
    else:
        array = np.transpose(image.array, (3, 0, 2, 1))
    return np.ascontiguousarray(array)
