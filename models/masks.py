"""A model's voxels on the source images: label maps, overlapping labels, heat maps.

Everything goes back through the affine: labels by the nearest voxel, heat between voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.errors import RunFailed
from models.regrid import Image
from models.scores import activated, limits

__all__ = ["back", "heat", "label_map", "layers"]

Array = npt.NDArray[Any]


def _to_xyz(values: Array, layout: str) -> Array:
    """Spatial axes of a tensor without batch and channel (NCHW: [Z, Y, X]) as [X, Y, Z]."""
    return values if layout == "NCXYZ" else np.transpose(values, (2, 1, 0))


def _spatial(channel: Array, layout: str) -> Array:
    """One channel of [N, spatial...] as [X, Y, Z]."""
    return _to_xyz(channel if layout == "NCHW" else channel[0], layout)


def _labels(tensor: Array, output: Mapping[str, Any]) -> Array:
    """Decode to label indices with the channel axis gone: [N, spatial...]."""
    decode = output.get("decode", "none")
    known = limits(output)
    if decode == "argmax":
        if max(known, default=0) >= tensor.shape[1]:
            raise RunFailed("bad_output", "a label's index lies beyond the model's channels")
        return np.asarray(tensor.argmax(axis=1), dtype=np.uint16)
    if decode == "threshold":
        scores = activated(tensor, output, 1)
        if tensor.shape[1] == 1:
            index, limit = next(iter(known.items()))
            return (scores[:, 0] >= limit).astype(np.uint16) * np.uint16(index)
        best = scores.argmax(axis=1)
        floor = np.array([known.get(i, 0.0) for i in range(tensor.shape[1])])
        high = np.take_along_axis(scores, best[:, None], axis=1)[:, 0] >= floor[best]
        return np.where(high, best, 0).astype(np.uint16)
    if tensor.shape[1] != 1:
        raise RunFailed("bad_output", "a label map has one channel")
    found = tensor[:, 0]
    if found.dtype.kind == "f" and not np.array_equal(found, np.rint(found)):
        raise RunFailed("bad_output", "a label map holds fractions")
    if float(found.min()) < 0 or float(found.max()) > 65535:
        raise RunFailed("bad_output", "a label map holds values outside 0..65535")
    return found.astype(np.uint16)


def back(values: Array, image: Image, source: Image, order: Literal[0, 1] = 0) -> Array:
    """Carry [X, Y, Z] of the model's grid onto the source grid, as [frame, row, column]."""
    if values.shape != image.array.shape[1:]:
        raise RunFailed("bad_output", "the mask has another shape than the model's input")
    return _onto_source(values, image.affine, source, order)


def _onto_source(values: Array, affine: Array, source: Image, order: Literal[0, 1]) -> Array:
    matrix = np.linalg.inv(affine) @ source.affine
    shape = source.array.shape[1:]
    if values.shape == shape and np.allclose(matrix, np.eye(4), atol=1e-9):
        return np.ascontiguousarray(np.transpose(values, (2, 1, 0)))
    out = np.zeros(shape, dtype=np.uint16 if order == 0 else np.float32)
    ndimage.affine_transform(
        values, matrix[:3, :3], matrix[:3, 3], output_shape=shape, output=out,
        order=order, mode="constant", cval=0, prefilter=False,
    )  # fmt: skip
    return np.ascontiguousarray(np.transpose(out, (2, 1, 0)))


def label_map(
    tensor: Array, output: Mapping[str, Any], layout: str, image: Image, source: Image
) -> Array:
    """Give label indices [frame, row, column] on the source; raises RunFailed("bad_output")."""
    return back(_spatial(_labels(tensor, output), layout), image, source)


def layers(
    tensor: Array, output: Mapping[str, Any], layout: str, image: Image, source: Image
) -> dict[int, Array]:
    """Give, by label index, voxels [frame, row, column] as 0 and 1; labels may overlap.

    Channel i is the label of index i, read with its own threshold.
    """
    scores = activated(tensor, output, 1)
    known = limits(output)
    if max(known) >= tensor.shape[1]:
        raise RunFailed("bad_output", "a label's index lies beyond the model's channels")
    return {
        index: back(
            _spatial((scores[:, index] >= limit).astype(np.uint16), layout), image, source
        ).astype(np.uint8)
        for index, limit in known.items()
    }


def heat(
    tensor: Array, output: Mapping[str, Any], layout: str, image: Image, source: Image
) -> npt.NDArray[np.float32]:
    """Give a heat map [frame, row, column] of 0..1 on the source, for people to look at.

    It may be coarser than the model's input: then it covers the same extent. Negative
    values are no heat; the greatest value is 1.
    """
    wanted = (image.array.shape[3], 2) if layout == "NCHW" else (1, 3)
    if tensor.ndim != wanted[1] + 2 or tensor.shape[:2] != (wanted[0], 1):
        raise RunFailed("bad_output", f"{output['tensor']} is no map of one channel")
    values = np.clip(_spatial(tensor[:, 0], layout).astype(np.float32), 0, None)
    scale = [n / m for n, m in zip(image.array.shape[1:], values.shape, strict=True)]
    if layout == "NCHW":
        scale[2] = 1.0
    found = _onto_source(_padded(values), _coarse(image.affine, scale), source, 1)
    most = float(found.max(initial=0.0))
    return np.asarray(found / most if most > 0 else found, np.float32)


def _padded(values: Array) -> Array:
    """Repeat the border once, so that the outer half of a coarse voxel is not empty."""
    return np.pad(values, 1, mode="edge")


def _coarse(affine: Array, scale: Sequence[float]) -> Array:
    """Give the affine of a padded grid whose voxels are `scale` times as large, edges aligned."""
    change = np.diag([*scale, 1.0])
    change[:3, 3] = [0.5 * s - 0.5 - s for s in scale]
    return np.asarray(affine @ change)
