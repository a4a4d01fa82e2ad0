"""Boxes: every format, suppression, thresholds, and the way back to the source images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from models.boxes import FORMATS, detect
from models.errors import RunFailed
from models.findings import ABSENT, Findings
from models.infer import through
from models.masks import back
from models.outputs import Result, interpret
from models.package import load
from models.preprocess import Image, apply, from_volume
from models.preview import pictures
from models.runtime import opened
from models.volume import Volume

NODULE = {"value": "27925004", "scheme": "SCT", "meaning": "Nodule"}


def stack(slices: int = 3, rows: int = 40, columns: int = 50, turn: float = 0.0) -> Volume:
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [-s, c, 0], [c, s, 0]]) @ np.diag([3.0, 2.0, 0.5])
    affine[:3, 3] = [-20, 30, 5]
    frames = tuple(f"1.{i}" for i in range(slices))
    array = np.zeros((slices, rows, columns), np.float32)
    return Volume(array, affine, frames, (3.0, 2.0, 0.5), "CT", "MONOCHROME2", True, None, "1.9")


def output(**changed: Any) -> dict[str, Any]:
    boxes = {"format": "xyxy", "scores": "s", **changed.pop("boxes", {})}
    usual = {"tensor": "b", "kind": "detection", "boxes": boxes, "threshold": 0.5,
             "labels": [{"index": 1, "label": "Nodule", "finding": NODULE}]}  # fmt: skip
    return {**usual, **changed}


def flat() -> Image:
    return from_volume(stack(1), flat=True)


def one(boxes: Any, scores: Any, out: dict[str, Any] | None = None, **more: Any) -> Any:
    tensors = {"b": np.array(boxes, np.float32), "s": np.array(scores, np.float32), **more}
    return detect(tensors, out or output(), flat(), flat())


SPELLED = {
    "xyxy": [10, 20, 16, 30], "yxyx": [20, 10, 30, 16], "xxyy": [10, 16, 20, 30],
    "xywh": [10, 20, 6, 10], "cxcywh": [13, 25, 6, 10],
    "xyzxyz": [10, 20, 1, 16, 30, 3], "zyxzyx": [1, 20, 10, 3, 30, 16],
    "xxyyzz": [10, 16, 20, 30, 1, 3], "xyxyzz": [10, 20, 16, 30, 1, 3],
    "xyzwhd": [10, 20, 1, 6, 10, 2], "cxcyczwhd": [13, 25, 2, 6, 10, 2],
}  # fmt: skip


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("name", sorted(FORMATS[2] | FORMATS[3]))
def test_every_format_means_the_same_box(name: str, normalised: bool) -> None:
    image = from_volume(stack(4), flat=name in FORMATS[2])
    values = np.array(SPELLED[name], np.float64)
    if normalised:
        letters = name.replace("c", "").replace("w", "x").replace("h", "y").replace("d", "z")
        sizes = {"x": 50, "y": 40, "z": 4}
        values = values / [sizes[letter] for letter in letters]
    groups = 4 if image.flat else 1
    tensors = {"b": np.tile(values, (groups, 1, 1)), "s": np.full((groups, 1), 0.9)}
    if image.flat:
        tensors["s"][[0, 1, 3]] = 0.1
    out = output(boxes={"format": name, "normalised": normalised})
    (box,) = detect(tensors, out, image, image).boxes
    assert (*box.low[:2], *box.high[:2]) == pytest.approx((10, 20, 16, 30))
    assert (box.first, box.last, box.frame) == ((2, 2, 2) if image.flat else (1, 2, 1))


def test_every_format_is_spelled_here() -> None:
    assert set(SPELLED) == FORMATS[2] | FORMATS[3]


def test_suppression_is_per_label_and_keeps_the_best() -> None:
    boxes = [[[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 4], [30, 30, 40, 40]]]
    scores = [[0.8, 0.9, 0.7, 0.6]]
    kept = one(boxes, scores).boxes
    assert [round(b.score, 1) for b in kept] == [0.9, 0.7, 0.6]  # IoU 0.82, 0.37, 0
    assert len(one(boxes, scores, output(boxes={"iou": 0.3})).boxes) == 2
    assert len(one(boxes, scores, output(boxes={"iou": 1.0})).boxes) == 4
    two = [{"index": 1, "label": "A"}, {"index": 2, "label": "B"}]
    apart = one(boxes, scores, output(boxes={"classes": "c"}, labels=two),
                c=np.array([[1, 2, 7, 1]]))  # fmt: skip
    assert [(b.label, round(b.score, 1)) for b in apart.boxes] == [(2, 0.9), (1, 0.8), (1, 0.6)]
    few = one(boxes, scores, output(boxes={"iou": 1.0, "max": 3}))
    assert (len(few.boxes), few.more) == (3, True)


def test_scores_per_class_and_their_thresholds() -> None:
    boxes, logits = [[[0, 0, 9, 9], [20, 20, 29, 29]]], [[[2.0, -4, 0], [-3, 3, 2.5]]]
    labels = [{"index": 0, "label": "A"}, {"index": 2, "label": "C", "threshold": 0.95}]
    points = [{"name": "low", "threshold": 0.2}, {"name": "use", "threshold": 0.6, "default": True}]
    out = output(labels=labels, operating_points=points, activation="sigmoid")
    found = one(boxes, logits, out)
    assert [b.label for b in found.boxes] == [0]
    assert found.best[2] == pytest.approx(1 / (1 + np.exp(-2.5)))


def test_padding_and_boxes_beside_the_image_are_none() -> None:
    boxes = [[[0, 0, 0, 0], [9, 9, 3, 12], [-30, -9, -1, -1], [-5, -5, 6, 7]]]
    (box,) = one(boxes, [[0.9] * 4]).boxes
    assert (*box.low[:2], *box.high[:2]) == pytest.approx((0, 0, 6, 7))
    assert one(np.zeros((1, 0, 4)), np.zeros((1, 0))).boxes == ()


@pytest.mark.parametrize(
    ("boxes", "scores", "out", "words"),
    [
        (np.zeros((1, 2, 5)), np.zeros((1, 2)), {}, "no boxes"),
        (np.zeros((2, 2, 4)), np.zeros((2, 2)), {}, "no boxes"),
        (np.zeros((1, 2, 4)), np.zeros((1, 3)), {}, "one score for each box"),
        (np.zeros((1, 2, 4)), np.full((1, 2), 3.4), {}, "outside 0..1"),
        (np.zeros((1, 2, 4)), np.zeros((1, 2, 3)), {"labels": [{"index": 5, "label": "x"}]},
         "beyond"),
        (np.zeros((1, 2, 4)), np.zeros((1, 2)), {"boxes": {"classes": "c"}}, "one class for each"),
    ],
)  # fmt: skip
def test_boxes_not_to_be_believed(boxes: Any, scores: Any, out: Any, words: str) -> None:
    with pytest.raises(RunFailed, match=words) as failed:
        one(boxes, scores, output(**out), c=np.zeros((1, 5)))
    assert failed.value.code == "bad_output"


@settings(max_examples=25, deadline=None)
@given(
    turn=st.floats(-0.4, 0.4), codes=st.sampled_from(["LIA", "RAS", "LPS", "PSR"]),
    low=st.tuples(st.integers(1, 20), st.integers(1, 15), st.integers(1, 3)),
)  # fmt: skip
def test_a_box_comes_back_to_where_it_was_seen(
    turn: float, codes: str, low: tuple[int, int, int]
) -> None:
    """The box around a block, seen in the model's space, is the block on the source grid."""
    source = from_volume(stack(8, turn=turn), flat=False)
    high = (low[0] + 20, low[1] + 14, low[2] + 3)
    block = np.zeros_like(source.array)
    block[0, low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
    steps = [{"op": "Orientation", "axcodes": codes},
             {"op": "ResizeWithPadOrCrop", "spatial_size": [96, 96, 96]},
             {"op": "Spacing", "pixdim": [0.25, 0.25, 0.25], "mode": "nearest"}]  # fmt: skip
    small = Image(block, source.affine, True, False, "CT", "", True, None)
    eaten = apply(small, steps[:2])
    seen = np.argwhere(eaten.array[0] > 0)
    edges = [*seen.min(axis=0), *(seen.max(axis=0) + 1)]
    out = output(boxes={"format": "xyzxyz"})
    tensors = {"b": np.array([[edges]], np.float32), "s": np.array([[0.9]], np.float32)}
    (box,) = detect(tensors, out, eaten, source).boxes
    assert box.low == pytest.approx(low, abs=1e-3)
    assert box.high == pytest.approx(high, abs=1e-3)
    assert (box.first, box.last) == (low[2], high[2] - 1)
    mask = back((eaten.array[0] > 0).astype(np.uint16), eaten, source)
    assert mask[box.frame].any()


def detector() -> Any:
    """A box around the brightest pixel of each image, scored by its value; and a padded one."""

    def values(name: str, array: Any) -> Any:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))

    nodes = [
        values("k", np.array([1], np.int64)),
        values("flatten", np.array([0, -1], np.int64)),
        values("width", np.array([5], np.int64)),
        values("grow", np.array([[[0, 0, 1, 1]]], np.float32)),
        helper.make_node("Reshape", ["x", "flatten"], ["line"]),
        helper.make_node("TopK", ["line", "k"], ["top", "where"], axis=1),
        helper.make_node("Div", ["where", "width"], ["row"]),
        helper.make_node("Mod", ["where", "width"], ["column"]),
        helper.make_node("Concat", ["column", "row", "column", "row"], ["four"], axis=1),
        helper.make_node("Cast", ["four"], ["corner"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["corner", "k"], ["corners"]),
        helper.make_node("Add", ["corners", "grow"], ["boxes"]),
        helper.make_node("Identity", ["top"], ["scores"]),
    ]
    real = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "detector",
        [helper.make_tensor_value_info("x", real, ["n", 1, 4, 5])],
        [helper.make_tensor_value_info("boxes", real, ["n", 1, 4]),
         helper.make_tensor_value_info("scores", real, ["n", 1])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def declared(**more: Any) -> dict[str, Any]:
    boxes = {"format": "xyxy", "scores": "scores"}
    return {
        "network_data_format": {"outputs": {
            "boxes": {"type": "x", "format": "x", "dtype": "float32"},
            "scores": {"type": "x", "format": "x", "dtype": "float32"}}},
        "deployment": {"outputs": [output(tensor="boxes", boxes=boxes, **more)]},
    }  # fmt: skip


def ran(root: Path, bright: dict[int, tuple[int, int, float]]) -> Result:
    package = load(root)
    volume = stack(3, 4, 5)
    for index, (row, column, value) in bright.items():
        volume.array[index, row, column] = value
    source = from_volume(volume, flat=True)
    feeds = {"x": np.transpose(source.array, (3, 0, 2, 1)).copy()}
    tensors, _ = through(package, opened(package, 1, alone=True), feeds)
    result = interpret(package, tensors, source, source, volume)
    made = pictures(package, volume, result)
    assert ("boxes" in made) is bool(result.findings.boxes)
    return result


def test_a_detector_runs_from_graph_to_findings(make_package: Callable[..., Path]) -> None:
    points = [{"name": "balanced", "threshold": 0.4, "sensitivity": 0.9, "default": True}]
    root = make_package(detector(), declared(operating_points=points))
    found = ran(root, {0: (3, 1, 0.3), 2: (2, 4, 0.8)}).findings
    (box,) = found.boxes
    assert (box.frame, box.x0, box.y0, box.x1, box.y1) == pytest.approx((2, 4, 2, 5, 3))
    assert (box.score, box.operating_point, box.calibrated) == (
        pytest.approx(0.8),
        "balanced",
        False,
    )
    assert (found.kind, found.statement, found.qualitative) == (
        "detection", "Threshold: Nodule.", ())  # fmt: skip
    assert found.parameters == ("boxes: operating_point=balanced, threshold=0.4, sensitivity=0.9",)
    assert Findings.from_json(found.to_json()) == found
    rule = {"priority_when": {"label": "Nodule", "above": "balanced"}}
    triaged = make_package(
        detector(), declared(operating_points=points, triage=rule), name="triaged"
    )
    assert ran(triaged, {0: (3, 1, 0.9), 2: (2, 4, 0.5)}).findings.priority == "STAT"
    assert ran(triaged, {0: (3, 1, 0.3)}).findings.priority == "ROUTINE"
    nothing = ran(root, {1: (0, 0, 0.25)}).findings
    assert nothing.nothing_found
    (absent,) = nothing.qualitative
    assert (absent.value, absent.probability) == (ABSENT, pytest.approx(0.25))
    assert "none of the findings asked for (Nodule)" in nothing.statement


def test_more_boxes_than_a_reader_wants_are_said(make_package: Callable[..., Path]) -> None:
    package = load(make_package(change={"deployment": {"outputs": [
        output(boxes={"max": 2}, tensor="b")]}}))  # fmt: skip
    volume = stack(1)
    boxes = np.array([[[i, 0, i + 1, 2] for i in range(5)]], np.float32)
    tensors = {"b": boxes, "s": np.full((1, 5), 0.9, np.float32)}
    image = from_volume(volume, flat=True)
    found = interpret(package, tensors, image, image, volume).findings
    assert found.statement == "Threshold: 2 x Nodule."
    assert found.warnings == (
        "More was found: only the 2 boxes of the highest scores are reported.",
    )
