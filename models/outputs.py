"""From a model's tensors to findings: labels, voxels counted on the source images, numbers, yes/no.

A mask goes back to the source geometry through the affine, nearest neighbour,
and is counted there: the numbers of the report are the voxels of the SEG.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from models.errors import RunFailed
from models.findings import (
    ABSENT,
    PRESENT,
    VOLUME,
    Code,
    Findings,
    Measurement,
    Qualitative,
    Segment,
)
from models.package import Package, read_code
from models.preprocess import Image
from models.volume import Volume

__all__ = ["VOLUME_UNITS", "Result", "interpret", "own_code"]

Array = npt.NDArray[Any]
_STRUCTURE: Final = Code("91723000", "SCT", "Anatomical Structure")
VOLUME_UNITS: Final = {"mm3": 1.0, "mL": 1e-3, "ml": 1e-3, "cm3": 1e-3, "L": 1e-6}
_COLORS: Final = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (153, 153, 255), (102, 204, 102), (255, 153, 153),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """Findings and, for segmentations, the mask [frame, row, column] of label indices."""

    findings: Findings
    mask: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | None


def own_code(label: str) -> Code:
    """Make a code for a label without one: scheme 99RADSEAL, value of at most 16 characters."""
    slug = "".join(c if c.isalnum() and c.isascii() else "_" for c in label.upper()).strip("_")
    if len(slug) > 16 or not slug:
        slug = f"{slug[:9]}_{hashlib.sha256(label.encode()).hexdigest()[:6].upper()}"
    return Code(slug, "99RADSEAL", label[:64])


def _to_xyz(labels: Array, layout: str) -> Array:
    """Spatial axes of a tensor without batch and channel (NCHW: [Z, Y, X]) as [X, Y, Z]."""
    return labels if layout == "NCXYZ" else np.transpose(labels, (2, 1, 0))


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x.astype(np.float64))))


def _softmax(x: Array, axis: int) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _label_map(tensor: Array, output: Mapping[str, Any]) -> Array:
    """Decode to label indices with the channel axis gone: [N, spatial...]."""
    decode = output.get("decode", "none")
    labels = [int(label["index"]) for label in output.get("labels", [])]
    if decode == "argmax":
        if max(labels, default=0) >= tensor.shape[1]:
            raise RunFailed("bad_output", "a label's index lies beyond the model's channels")
        return np.asarray(tensor.argmax(axis=1), dtype=np.uint16)
    if decode == "threshold":
        scores = _sigmoid(tensor) if output.get("activation") == "sigmoid" else tensor
        limit = float(output.get("threshold", 0.5))
        if tensor.shape[1] == 1:
            return (scores[:, 0] >= limit).astype(np.uint16) * np.uint16(labels[0])
        best = scores.argmax(axis=1)
        high = np.take_along_axis(scores, best[:, None], axis=1)[:, 0] >= limit
        return np.where(high, best, 0).astype(np.uint16)
    if tensor.shape[1] != 1:
        raise RunFailed("bad_output", "a label map has one channel")
    found = tensor[:, 0]
    if found.dtype.kind == "f" and not np.array_equal(found, np.rint(found)):
        raise RunFailed("bad_output", "a label map holds fractions")
    if float(found.min()) < 0 or float(found.max()) > 65535:
        raise RunFailed("bad_output", "a label map holds values outside 0..65535")
    return found.astype(np.uint16)


def _back(labels: Array, image: Image, source: Image) -> Array:
    """Carry labels [X, Y, Z] of the model's grid onto the source grid, as [frame, row, column]."""
    if labels.shape != image.array.shape[1:]:
        raise RunFailed("bad_output", "the mask has another shape than the model's input")
    matrix = np.linalg.inv(image.affine) @ source.affine
    shape = source.array.shape[1:]
    if labels.shape == shape and np.allclose(matrix, np.eye(4), atol=1e-9):
        return np.ascontiguousarray(np.transpose(labels, (2, 1, 0)))
    out = np.zeros(shape, dtype=np.uint16)
    ndimage.affine_transform(
        labels, matrix[:3, :3], matrix[:3, 3], output_shape=shape, output=out,
        order=0, mode="constant", cval=0, prefilter=False,
    )  # fmt: skip
    return np.ascontiguousarray(np.transpose(out, (2, 1, 0)))


def _segments(mask: Array, output: Mapping[str, Any]) -> list[Segment]:
    counts = np.bincount(mask.ravel(), minlength=1)
    segments: list[Segment] = []
    for place, label in enumerate(output.get("labels", [])):
        index = int(label["index"])
        voxels = int(counts[index]) if index < len(counts) else 0
        if index == 0 or voxels == 0:
            continue
        color = label.get("color") or _COLORS[place % len(_COLORS)]
        kind = read_code(label.get("type")) or read_code(label.get("finding"))
        segments.append(
            Segment(
                number=len(segments) + 1,
                index=index,
                label=str(label["label"]),
                category=read_code(label.get("category")) or _STRUCTURE,
                type=kind or own_code(str(label["label"])),
                voxels=voxels,
                color=(int(color[0]), int(color[1]), int(color[2])),
            )
        )
    return segments


def _rounded(value: float, rule: Mapping[str, Any]) -> float:
    places = rule.get("rounding")
    return round(value, int(places)) if places is not None else value


def _volumes(
    segments: Sequence[Segment], rule: Mapping[str, Any], voxel_mm3: float | None
) -> list[Measurement]:
    what, unit = read_code(rule["what"]), read_code(rule["unit"])
    if what is None or unit is None or (what.value, what.scheme) != (VOLUME.value, VOLUME.scheme):
        raise RunFailed("bad_model", "of a mask only volumes are measured")
    if voxel_mm3 is None:
        raise RunFailed("bad_geometry", "a volume needs more than one slice with positions")
    factor = voxel_mm3 * VOLUME_UNITS[unit.value]
    method = read_code(rule.get("method"))
    if rule.get("per", "label") == "study":
        total = sum(s.voxels for s in segments) * factor
        return [Measurement(what, _rounded(total, rule), unit, None, method)]
    return [
        Measurement(what, _rounded(s.voxels * factor, rule), unit, s.number, method)
        for s in segments
    ]


def _in_range(value: float, output: Mapping[str, Any]) -> float:
    limits = output.get("valid_range")
    if limits is not None and not limits[0] <= value <= limits[1]:
        raise RunFailed("bad_output", f"{output['tensor']} is outside its valid range")
    return value


def _numbers(
    tensor: Array, output: Mapping[str, Any], segments: Sequence[Segment]
) -> list[Measurement]:
    """Scalars the graph computed itself, one per entry of `measurements`."""
    rules = output.get("measurements", [])
    values = [float(v) for v in np.asarray(tensor, dtype=np.float64).ravel()]
    if len(values) != len(rules):
        raise RunFailed("bad_output", f"{output['tensor']} holds {len(values)} numbers")
    by_index = {s.index: s.number for s in segments}
    found: list[Measurement] = []
    for value, rule in zip(values, rules, strict=True):
        what, unit = read_code(rule["what"]), read_code(rule["unit"])
        if what is None or unit is None:
            raise RunFailed("bad_model", "a measurement has no code")
        label = rule.get("label")
        if label is not None and label not in by_index:
            continue  # nothing of this label was found, so there is nothing to measure on it
        _in_range(value, output)
        number = by_index[label] if label is not None else None
        method = read_code(rule.get("method"))
        found.append(Measurement(what, _rounded(value, rule), unit, number, method))
    return found


def _threshold(output: Mapping[str, Any]) -> float:
    points = output.get("operating_points", [])
    for point in points:
        if point.get("default"):
            return float(point["threshold"])
    return float(points[0]["threshold"]) if points else float(output.get("threshold", 0.5))


def _statements(
    tensor: Array, output: Mapping[str, Any], frames: Sequence[str]
) -> list[Qualitative]:
    """One yes or no per label that has a finding; of many images the one that shows it most."""
    scores = tensor.reshape(tensor.shape[0], -1)
    activation = output.get("activation", "none")
    if activation == "sigmoid":
        scores = _sigmoid(scores)
    elif activation == "softmax":
        scores = _softmax(scores, 1)
    if float(scores.min()) < 0 or float(scores.max()) > 1:
        raise RunFailed("bad_output", f"{output['tensor']} holds a probability outside 0..1")
    limit = _threshold(output)
    found: list[Qualitative] = []
    for label in output.get("labels", []):
        index = int(label["index"])
        if index >= scores.shape[1]:
            raise RunFailed("bad_output", "a label's index lies beyond the model's outputs")
        code = read_code(label.get("finding"))
        if code is None and output["kind"] == "classification" and index == 0:
            continue  # the class "none of these"
        best = int(scores[:, index].argmax())
        value = float(scores[best, index])
        present = value >= limit
        found.append(
            Qualitative(
                finding=code or own_code(str(label["label"])),
                value=PRESENT if present else ABSENT,
                probability=value,
                calibrated=bool(output.get("calibrated", False)),
                threshold=limit,
                sop_instance_uid=frames[best] if len(frames) == scores.shape[0] else None,
            )
        )
    return found


def _amount(measurement: Measurement) -> str:
    value = measurement.value
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 3
    unit = {"mL": " mL", "%": " %", "[hnsf'U]": " HU", "1": ""}.get(
        measurement.unit.value, f" {measurement.unit.value}"
    )
    return f"{value:.{digits}f}{unit}"


def _sentence(
    segments: Sequence[Segment],
    measurements: Sequence[Measurement],
    qualitative: Sequence[Qualitative],
    name: str,
) -> tuple[str, bool]:
    """Say the line a person reads first, and whether nothing was found."""
    if qualitative:
        present = [q.finding.meaning for q in qualitative if q.value == PRESENT]
        if not present:
            asked = ", ".join(q.finding.meaning for q in qualitative)
            return f"{name}: none of the findings asked for ({asked}).", True
        return f"{name}: {', '.join(present)}.", False
    labels = {s.number: s.label for s in segments}
    said = [
        f"{labels[m.segment]} {_amount(m)}"
        if m.segment in labels and m.what == VOLUME
        else f"{m.what.meaning} {_amount(m)}"
        for m in measurements
    ]
    if said:
        more = f" and {len(said) - 6} more" if len(said) > 6 else ""
        return f"{name}: {', '.join(said[:6])}{more}.", False
    if segments:
        return f"{name}: {', '.join(s.label for s in segments[:6])} outlined.", False
    return f"{name}: nothing found to outline or measure.", True


def _kind(
    mask: Array | None, qualitative: Sequence[Qualitative]
) -> Literal["segmentation", "classification", "measurement"]:
    if mask is not None:
        return "segmentation"
    return "classification" if qualitative else "measurement"


def interpret(
    package: Package,
    tensors: Mapping[str, Array],
    image: Image,
    source: Image,
    volume: Volume,
    warnings: Sequence[str] = (),
) -> Result:
    """Turn tensors into findings on the source images.

    `image` is what the model ate, `source` the same volume before any step.
    Raises RunFailed("bad_output", "bad_geometry", "bad_model").
    """
    layout = str(package.deployment["layout"])
    voxel_mm3 = volume.voxel_mm3
    mask: Array | None = None
    segments: list[Segment] = []
    measurements: list[Measurement] = []
    qualitative: list[Qualitative] = []
    outputs = sorted(package.outputs, key=lambda o: o["kind"] != "segmentation")
    for output in outputs:
        tensor, kind = tensors[output["tensor"]], output["kind"]
        if kind == "segmentation":
            labels = _label_map(tensor, output)
            spatial = labels if layout == "NCHW" else labels[0]
            mask = _back(_to_xyz(spatial, layout), image, source)
            segments = _segments(mask, output)
            for rule in output.get("measurements", []):
                measurements.extend(_volumes(segments, rule, voxel_mm3))
        elif kind in ("regression", "measurement"):
            measurements.extend(_numbers(tensor, output, segments))
        elif kind in ("classification", "multilabel"):
            qualitative.extend(_statements(tensor, output, volume.frames))
    statement, nothing = _sentence(segments, measurements, qualitative, package.name)
    if mask is not None:
        known = np.array([0, *(s.index for s in segments)], dtype=mask.dtype)
        if len(known) < 65536 and not np.isin(np.unique(mask), known).all():
            mask = np.where(np.isin(mask, known), mask, 0)
        if int(mask.max(initial=0)) < 256:
            mask = mask.astype(np.uint8)
    return Result(
        Findings(
            kind=_kind(mask, qualitative),
            statement=statement,
            frames=volume.frames,
            segments=tuple(segments),
            measurements=tuple(measurements),
            qualitative=tuple(qualitative),
            voxel_mm3=voxel_mm3 if voxel_mm3 is None or math.isfinite(voxel_mm3) else None,
            nothing_found=nothing,
            warnings=tuple(warnings),
        ),
        mask,
    )
