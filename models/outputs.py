"""From a model's tensors to findings: voxels counted on the source images, boxes, numbers, yes/no.

A mask goes back to the source geometry through the affine, nearest neighbour,
and is counted there: the numbers of the report are the voxels of the SEG.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from models.boxes import detect
from models.errors import RunFailed
from models.findings import (
    ABSENT,
    PRESENT,
    VOLUME,
    Box,
    Code,
    Findings,
    Measurement,
    Qualitative,
    Segment,
)
from models.masks import heat, label_map, layers
from models.package import Package, read_code
from models.regrid import Image
from models.scores import limits, point, shares, urgent
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
    """Findings; the mask of a segmentation; a heat map for people to look at.

    `mask` is [frame, row, column] of label indices or, where labels overlap,
    [frame, row, column, Segment.number - 1] of 0 and 1. `heat` is [frame, row,
    column] of 0..1.
    """

    findings: Findings
    mask: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | None
    heat: npt.NDArray[np.float32] | None = None


def own_code(label: str) -> Code:
    """Make a code for a label without one: scheme 99RADSEAL, value of at most 16 characters."""
    slug = "".join(c if c.isalnum() and c.isascii() else "_" for c in label.upper()).strip("_")
    if len(slug) > 16 or not slug:
        slug = f"{slug[:9]}_{hashlib.sha256(label.encode()).hexdigest()[:6].upper()}"
    return Code(slug, "99RADSEAL", label[:64])


def _segments(counts: Mapping[int, int], output: Mapping[str, Any]) -> list[Segment]:
    """Count off the labels that have voxels, by `counts` of each index."""
    segments: list[Segment] = []
    for place, label in enumerate(output.get("labels", [])):
        index = int(label["index"])
        voxels = counts.get(index, 0)
        if voxels == 0:
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


def _statements(
    tensor: Array, output: Mapping[str, Any], frames: Sequence[str]
) -> list[Qualitative]:
    """One yes or no per label that has a finding; of many images the one that shows it most."""
    scores = shares(tensor.reshape(tensor.shape[0], -1), output, 1)
    used, floor = point(output), limits(output)
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
        present = value >= floor[index]
        found.append(
            Qualitative(
                finding=code or own_code(str(label["label"])),
                value=PRESENT if present else ABSENT,
                probability=value,
                calibrated=bool(output.get("calibrated", False)),
                threshold=floor[index],
                sop_instance_uid=frames[best] if len(frames) == scores.shape[0] else None,
                operating_point=used.name,
            )
        )
    return found


def _detected(
    tensors: Mapping[str, Array], output: Mapping[str, Any], image: Image, source: Image
) -> tuple[list[Box], list[Qualitative], list[str]]:
    """Boxes, an "absent" for each label without one, and what the reader must know."""
    found = detect(tensors, output, image, source)
    used, floor = point(output), limits(output)
    calibrated = bool(output.get("calibrated", False))
    labels = {int(label["index"]): label for label in output["labels"]}
    codes = {
        index: read_code(label.get("finding")) or own_code(str(label["label"]))
        for index, label in labels.items()
    }
    boxes = [
        Box(
            codes[one.label], str(labels[one.label]["label"]), one.score, one.frame, one.first,
            one.last, one.low[0], one.low[1], one.high[0], one.high[1], calibrated,
            floor[one.label], used.name,
        )
        for one in found.boxes
    ]  # fmt: skip
    seen = {one.label for one in found.boxes}
    # A label whose boxes all lay outside the source is not absent: nothing is said of it.
    missing = [
        Qualitative(
            codes[index], ABSENT, found.best.get(index), calibrated, floor[index],
            operating_point=used.name,
        )
        for index in labels
        if index not in seen and found.best.get(index, 0.0) < floor[index]
    ]  # fmt: skip
    words = f"More was found: only the {len(boxes)} boxes of the highest scores are reported."
    more = [words] if found.more else []
    return boxes, missing, more


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
    boxes: Sequence[Box],
    name: str,
) -> tuple[str, bool]:
    """Say the line a person reads first, and whether nothing was found."""
    names = [q.finding.meaning for q in qualitative if q.value == PRESENT]
    names += [
        f"{count} x {meaning}" if count > 1 else meaning
        for meaning, count in Counter(b.finding.meaning for b in boxes).items()
    ]
    if names:
        return f"{name}: {', '.join(names)}.", False
    if qualitative:
        asked = ", ".join(q.finding.meaning for q in qualitative)
        return f"{name}: none of the findings asked for ({asked}).", True
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
    mask: Array | None, output_kinds: set[str]
) -> Literal["segmentation", "classification", "measurement", "detection"]:
    if mask is not None:
        return "segmentation"
    if "detection" in output_kinds:
        return "detection"
    return "classification" if output_kinds & {"classification", "multilabel"} else "measurement"


def _known_only(mask: Array, segments: Sequence[Segment]) -> Array:
    """Clear what has no label, in the smaller type that holds the rest."""
    known = np.array([0, *(s.index for s in segments)], dtype=mask.dtype)
    if len(known) < 65536 and not np.isin(np.unique(mask), known).all():
        mask = np.where(np.isin(mask, known), mask, 0)
    return mask.astype(np.uint8) if int(mask.max(initial=0)) < 256 else mask


def _segmented(
    tensor: Array, output: Mapping[str, Any], layout: str, image: Image, source: Image
) -> tuple[Array, list[Segment]]:
    """Give the mask on the source and its segments: one label a voxel, or a layer a segment."""
    if output.get("overlapping"):
        found = layers(tensor, output, layout, image, source)
        segments = _segments({i: int(layer.sum()) for i, layer in found.items()}, output)
        shown = [found[s.index] for s in segments] or [np.zeros_like(next(iter(found.values())))]
        return np.stack(shown, axis=3), segments
    mask = label_map(tensor, output, layout, image, source)
    counts = dict(enumerate(np.bincount(mask.ravel()).tolist()))
    segments = _segments({**counts, 0: 0}, output)
    return _known_only(mask, segments), segments


class _Gathered:
    """What the outputs of one run have said so far."""

    def __init__(self) -> None:
        self.mask: Array | None = None
        self.heat: Array | None = None
        self.segments: list[Segment] = []
        self.measurements: list[Measurement] = []
        self.qualitative: list[Qualitative] = []
        self.boxes: list[Box] = []
        self.parameters: list[str] = []
        self.warnings: list[str] = []
        self.urgent: list[bool] = []


def _triage(
    said: _Gathered, output: Mapping[str, Any], scores: Sequence[tuple[Code, float]]
) -> None:
    """Add whether this output is urgent; of several scores of a finding the last counts."""
    by_code = dict(scores)
    by_label = {
        str(label["label"]): by_code[code]
        for label in output["labels"]
        if (code := read_code(label.get("finding")) or own_code(str(label["label"]))) in by_code
    }
    found = urgent(output, by_label)
    if found is not None:
        said.urgent.append(found)


def _take(
    said: _Gathered,
    output: Mapping[str, Any],
    tensors: Mapping[str, Array],
    image: Image,
    source: Image,
    volume: Volume,
    layout: str,
) -> None:
    """Add what one output says."""
    tensor, kind = tensors[output["tensor"]], output["kind"]
    if kind == "segmentation":
        said.mask, said.segments = _segmented(tensor, output, layout, image, source)
        for rule in output.get("measurements", []):
            said.measurements.extend(_volumes(said.segments, rule, volume.voxel_mm3))
    elif kind in ("regression", "measurement"):
        said.measurements.extend(_numbers(tensor, output, said.segments))
    elif kind in ("classification", "multilabel"):
        statements = _statements(tensor, output, volume.frames)
        said.qualitative.extend(statements)
        _triage(said, output, [(q.finding, q.probability or 0.0) for q in statements])
    elif kind == "detection":
        boxes, missing, more = _detected(tensors, output, image, source)
        said.boxes.extend(boxes)
        said.qualitative.extend(missing)
        said.warnings.extend(more)
        _triage(said, output, [(b.finding, b.score) for b in reversed(boxes)])
    elif kind == "map":
        said.heat = heat(tensor, output, layout, image, source)
    thresholded = kind in ("classification", "multilabel", "detection")
    if thresholded or output.get("decode") == "threshold":
        said.parameters.append(point(output).parameter(str(output["tensor"])))


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
    said = _Gathered()
    outputs = sorted(package.outputs, key=lambda o: o["kind"] != "segmentation")
    for output in outputs:
        _take(said, output, tensors, image, source, volume, layout)
    statement, nothing = _sentence(
        said.segments, said.measurements, said.qualitative, said.boxes, package.name
    )
    voxel_mm3 = volume.voxel_mm3
    return Result(
        Findings(
            kind=_kind(said.mask, {o["kind"] for o in outputs}),
            statement=statement,
            frames=volume.frames,
            segments=tuple(said.segments),
            measurements=tuple(said.measurements),
            qualitative=tuple(said.qualitative),
            voxel_mm3=voxel_mm3 if voxel_mm3 is None or math.isfinite(voxel_mm3) else None,
            nothing_found=nothing,
            warnings=(*warnings, *said.warnings),
            parameters=tuple(said.parameters),
            boxes=tuple(said.boxes),
            priority=None if not said.urgent else "STAT" if any(said.urgent) else "ROUTINE",
        ),
        said.mask,
        said.heat,
    )
