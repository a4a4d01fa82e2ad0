"""Boxes of a detection: read as the manifest says, thinned, and brought to the source images.

A box is given in pixel edges of the model's input: 0 is the outer edge of the
first pixel, the size that of the last (as torchvision and MONAI count), x, y, z
being the axes X, Y, Z of README.md. `normalised` boxes are shares of the size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import RunFailed
from models.regrid import Image
from models.scores import limits, shares

__all__ = ["FORMATS", "Detections", "Found", "detect"]

Array = npt.NDArray[Any]
_CORNERS: Final = {  # columns of the low corner, columns of the high one
    "xyxy": ([0, 1], [2, 3]), "yxyx": ([1, 0], [3, 2]), "xxyy": ([0, 2], [1, 3]),
    "xyzxyz": ([0, 1, 2], [3, 4, 5]), "zyxzyx": ([2, 1, 0], [5, 4, 3]),
    "xxyyzz": ([0, 2, 4], [1, 3, 5]), "xyxyzz": ([0, 1, 4], [2, 3, 5]),
}  # fmt: skip
_SIZED: Final = {"xywh": False, "cxcywh": True, "xyzwhd": False, "cxcyczwhd": True}
FORMATS: Final = {
    2: frozenset(f for f in (*_CORNERS, *_SIZED) if "z" not in f),
    3: frozenset(f for f in (*_CORNERS, *_SIZED) if "z" in f),
}
"""Formats by the number of axes: 2 for layout NCHW, 3 for volumes."""
_MOST: Final = 100
_EDGE: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Found:
    """One box on the source grid: low and high edges along X, Y, Z; `frame` shows its middle."""

    label: int
    score: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    first: int
    last: int

    @property
    def frame(self) -> int:
        """The image in the middle of those it touches."""
        return (self.first + self.last) // 2


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes, best first; each label's greatest score; whether more were found."""

    boxes: tuple[Found, ...]
    best: Mapping[int, float]
    more: bool


def _corners(values: Array, name: str) -> tuple[Array, Array]:
    if name in _CORNERS:
        low, high = _CORNERS[name]
        return values[:, low], values[:, high]
    axes = values.shape[1] // 2
    start, size = values[:, :axes], values[:, axes:]
    if _SIZED[name]:
        start = start - size / 2
    return start, start + size


def _shaped(tensor: Array, groups: int, axes: int, name: str) -> Array:
    """Boxes as [group, box, 2 x axes]; a volume's may lack the first axis."""
    boxes = tensor[None] if tensor.ndim == 2 and groups == 1 else tensor
    if boxes.ndim != 3 or boxes.shape[0] != groups or boxes.shape[2] != 2 * axes:
        raise RunFailed("bad_output", f"{name} has shape {list(tensor.shape)}, that is no boxes")
    return np.asarray(boxes, np.float64)


def _scored(tensor: Array, shape: tuple[int, int], output: Mapping[str, Any]) -> Array:
    """Scores as [group, box, class]."""
    scores = tensor[None] if shape[0] == 1 and tensor.shape[:1] == shape[1:] else tensor
    scores = scores[..., None] if scores.ndim == 2 else scores
    if scores.ndim != 3 or scores.shape[:2] != shape:
        raise RunFailed("bad_output", f"{output['boxes']['scores']} has not one score for each box")
    return shares(scores, output, 2)


def _by_label(
    scores: Array, classes: Array | None, output: Mapping[str, Any]
) -> dict[int, tuple[Array, Array]]:
    """Give (which boxes, their scores) of one group for each label's index."""
    indices = [int(label["index"]) for label in output["labels"]]
    everything = np.arange(len(scores))
    if classes is not None:
        if scores.shape[1] != 1:
            raise RunFailed("bad_output", "boxes have classes and more than one score each")
        return {i: (everything[classes == i], scores[classes == i, 0]) for i in indices}
    if scores.shape[1] == 1:
        return {indices[0]: (everything, scores[:, 0])}
    if max(indices) >= scores.shape[1]:
        raise RunFailed("bad_output", "a label's index lies beyond the model's scores")
    return {i: (everything, scores[:, i]) for i in indices}


def _thinned(low: Array, high: Array, scores: Array, iou: float, most: int) -> list[int]:
    """Non-maximum suppression: indices kept, best first, at most `most` and one more."""
    order = np.argsort(-scores, kind="stable")
    area = np.prod(high - low, axis=1)
    kept: list[int] = []
    while order.size and len(kept) <= most:
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        inner = np.minimum(high[rest], high[best]) - np.maximum(low[rest], low[best])
        shared = np.prod(np.clip(inner, 0, None), axis=1)
        order = rest[shared <= iou * (area[rest] + area[best] - shared)]
    return kept


def _placed(
    low: Array, high: Array, group: int, label: int, score: float, image: Image, source: Image
) -> Found | None:
    """Bring one box through the affines; None where nothing of it lies on the source."""
    back = np.linalg.inv(source.affine) @ image.affine
    if image.flat:
        low, high = np.append(low, group), np.append(high, group + 1)
    pairs = zip(low - 0.5, high - 0.5, strict=True)
    corners = np.array([[*c, 1.0] for c in itertools.product(*pairs)])
    spots = (back @ corners.T)[:3] + 0.5
    size = np.array(source.array.shape[1:], np.float64)
    start, end = np.clip(spots.min(axis=1), 0, size), np.clip(spots.max(axis=1), 0, size)
    if not (end - start > _EDGE).all():
        return None
    first = int(np.floor(start[2] + _EDGE))
    last = max(int(np.ceil(end[2] - _EDGE)) - 1, first)
    return Found(
        label, score, (float(start[0]), float(start[1]), float(start[2])),
        (float(end[0]), float(end[1]), float(end[2])), first, last,
    )  # fmt: skip


def _classes(tensors: Mapping[str, Array], rules: Mapping[str, Any], shape: Any) -> Array | None:
    if "classes" not in rules:
        return None
    found = tensors[rules["classes"]]
    if found.size != shape[0] * shape[1]:
        raise RunFailed("bad_output", f"{rules['classes']} has not one class for each box")
    return found.reshape(shape)


def detect(
    tensors: Mapping[str, Array], output: Mapping[str, Any], image: Image, source: Image
) -> Detections:
    """Read an output of kind `detection`; raises RunFailed("bad_output").

    Boxes below their label's threshold, without extent, or wholly outside the
    source are no boxes. Suppression is per label and, with layout NCHW, per image.
    """
    rules = output["boxes"]
    axes, groups = (2, image.array.shape[3]) if image.flat else (3, 1)
    boxes = _shaped(tensors[output["tensor"]], groups, axes, output["tensor"])
    if rules.get("normalised"):
        size = dict(zip("xyz", image.array.shape[1:], strict=True))
        boxes = boxes * _columns(rules["format"], size)
    scores = _scored(tensors[rules["scores"]], boxes.shape[:2], output)
    classes = _classes(tensors, rules, boxes.shape[:2])
    floor, most = limits(output), int(rules.get("max", _MOST))
    found: list[Found] = []
    best: dict[int, float] = {}
    for group in range(groups):
        low, high = _corners(boxes[group], rules["format"])
        extent = np.asarray((high > low).all(axis=1))
        named = _by_label(scores[group], None if classes is None else classes[group], output)
        for label, (which, values) in named.items():
            which, values = which[extent[which]], values[extent[which]]
            if values.size:
                best[label] = max(best.get(label, 0.0), float(values.max()))
            which, values = which[values >= floor[label]], values[values >= floor[label]]
            iou = float(rules.get("iou", 0.5))
            for k in _thinned(low[which], high[which], values, iou, most):
                corner = low[which[k]], high[which[k]]
                one = _placed(*corner, group, label, float(values[k]), image, source)
                if one is not None:
                    found.append(one)
    found.sort(key=lambda f: (-f.score, f.label, f.first, f.low))
    return Detections(tuple(found[:most]), best, len(found) > most)


def _columns(name: str, size: Mapping[str, int]) -> Array:
    """Size of the input along the axis that each column of a format counts."""
    if name in _SIZED:
        axes: Sequence[str] = "xyz"[: 3 if "z" in name else 2]
        return np.array([size[a] for a in (*axes, *axes)], np.float64)
    return np.array([size[a] for a in name], np.float64)
