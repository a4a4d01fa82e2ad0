"""Tensors into findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import RunFailed
from models.findings import ABSENT, PRESENT, Findings
from models.outputs import Result, interpret, own_code
from models.package import load
from models.preprocess import from_volume
from models.preview import pictures
from models.volume import Volume

HU = {"value": "[hnsf'U]", "scheme": "UCUM", "meaning": "Hounsfield unit"}
MEAN = {"value": "112181", "scheme": "DCM", "meaning": "Mean Attenuation Coefficient"}
NODULE = {"value": "27925004", "scheme": "SCT", "meaning": "Nodule"}


def stack(slices: int = 3) -> Volume:
    affine = np.array([[0, 0, 0.5, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    frames = tuple(f"1.{i}" for i in range(slices))
    return Volume(np.zeros((slices, 4, 5), np.float32), affine, frames, (3.0, 2.0, 0.5), "CT",
                  "MONOCHROME2", True, None, "1.9")  # fmt: skip


@pytest.fixture
def interpreted(make_package: Callable[..., Path]) -> Callable[..., Result]:
    def make(tensors: dict[str, Any], outputs: list[dict[str, Any]], volume: Any = None) -> Result:
        package = load(make_package(change={"deployment": {"outputs": outputs}}))
        volume = volume or stack()
        image = from_volume(volume, flat=True)
        return interpret(package, tensors, image, image, volume, ("careful",))

    return make


def labels(*indices: int) -> list[dict[str, Any]]:
    return [{"index": i, "label": f"Label {i}"} for i in indices]


ML = [{"what": {"value": "118565006", "scheme": "SCT", "meaning": "Volume"}, "per": "label",
       "unit": {"value": "mL", "scheme": "UCUM", "meaning": "milliliter"}}]  # fmt: skip


def test_a_label_map_is_counted(interpreted: Callable[..., Result]) -> None:
    mask = np.zeros((3, 1, 4, 5), np.uint8)
    mask[0, 0, 0], mask[1, 0, 1:3], mask[2, 0, 0, 0] = 2, 7, 9
    out = {"tensor": "m", "kind": "segmentation", "labels": labels(2, 5, 7), "measurements": ML}
    found = interpreted({"m": mask}, [out])
    first, second = found.findings.segments
    assert (first.number, first.index, first.voxels) == (1, 2, 5)
    assert (second.number, second.index, second.voxels) == (2, 7, 10)
    assert [m.value for m in found.findings.measurements] == pytest.approx([0.015, 0.03])
    assert found.findings.frames == ("1.0", "1.1", "1.2")
    assert found.findings.warnings == ("careful",)
    assert found.mask is not None
    assert found.mask.dtype == np.uint8
    assert sorted(np.unique(found.mask)) == [0, 2, 7]  # 9 has no label and is no segment
    assert Findings.from_json(found.findings.to_json()) == found.findings


def test_argmax_and_thresholds(interpreted: Callable[..., Result]) -> None:
    scores = np.zeros((3, 3, 4, 5), np.float32)
    scores[:, 0] = 0.4
    scores[0, 2] = 0.6
    out = {"tensor": "m", "kind": "segmentation", "decode": "argmax", "labels": labels(1, 2)}
    assert interpreted({"m": scores}, [out]).findings.segments[0].voxels == 20
    logit = np.full((3, 1, 4, 5), -1, np.float32)
    logit[1, 0, 0, :2] = 0.1
    single = {"tensor": "m", "kind": "segmentation", "decode": "threshold",
              "activation": "sigmoid", "labels": labels(4)}  # fmt: skip
    assert interpreted({"m": logit}, [single]).findings.segments[0].voxels == 2


def test_channels_have_their_own_thresholds(interpreted: Callable[..., Result]) -> None:
    scores = np.zeros((3, 3, 4, 5), np.float32)
    scores[0, 1], scores[0, 2, 0], scores[1, 2] = 0.45, 0.6, 0.8
    named = [{"index": 1, "label": "A", "threshold": 0.4},
             {"index": 2, "label": "B", "threshold": 0.7}]  # fmt: skip
    out = {"tensor": "m", "kind": "segmentation", "decode": "threshold", "labels": named}
    one = interpreted({"m": scores}, [out])
    assert [s.voxels for s in one.findings.segments] == [15, 20]  # B wins a row, too weakly
    both = interpreted({"m": scores}, [{**out, "overlapping": True, "measurements": ML}])
    first, second = both.findings.segments
    assert (first.voxels, second.voxels, second.number) == (20, 20, 2)
    assert both.mask is not None
    assert both.mask.shape == (3, 4, 5, 2)
    assert both.mask.sum(axis=(1, 2)).tolist() == [[20, 0], [0, 20], [0, 0]]
    assert [m.value for m in both.findings.measurements] == pytest.approx([0.06, 0.06])
    assert both.findings.parameters == ("m: threshold=0.5",)
    none = interpreted({"m": scores * 0}, [{**out, "overlapping": True}])
    assert none.findings.nothing_found
    assert none.findings.segments == ()


def test_overlapping_labels_share_voxels(interpreted: Callable[..., Result]) -> None:
    scores = np.full((3, 2, 4, 5), 0.9, np.float32)
    out = {"tensor": "m", "kind": "segmentation", "decode": "threshold", "labels": labels(0, 1),
           "overlapping": True}  # fmt: skip
    assert [s.voxels for s in interpreted({"m": scores}, [out]).findings.segments] == [60, 60]
    with pytest.raises(RunFailed, match="beyond"):
        interpreted({"m": scores}, [{**out, "labels": labels(2)}])


def test_a_heat_map_is_shown_and_never_a_finding(
    interpreted: Callable[..., Result], make_package: Callable[..., Path]
) -> None:
    coarse = np.full((3, 1, 2, 1), -1, np.float32)
    coarse[1, 0, 1, 0] = 4
    outs = [{"tensor": "h", "kind": "map"},
            {"tensor": "p", "kind": "multilabel", "labels": labels(0)}]  # fmt: skip
    score = np.array([[0.9], [0.2], [0.1]], np.float32)
    found = interpreted({"h": coarse, "p": score}, outs)
    assert found.heat is not None
    assert found.heat.shape == (3, 4, 5)
    assert not found.heat[[0, 2]].any()
    assert found.heat[1, 3].tolist() == pytest.approx([1] * 5)  # the lower half of its image
    assert found.heat[1, 2].tolist() == pytest.approx([0.75] * 5)
    assert len(found.findings.qualitative) == 1
    assert (found.findings.segments, found.findings.measurements) == ((), ())
    shown = pictures(load(make_package(name="again")), stack(), found)
    assert shown["heat"].shape == shown["image"].shape
    assert not shown["heat"].any()  # the picture is the image that shows the finding
    for wrong in (coarse[:2], coarse[:, 0], np.zeros((3, 2, 2, 1), np.float32)):
        with pytest.raises(RunFailed, match="no map"):
            interpreted({"h": wrong, "p": score}, outs)


def test_nothing_found_is_said(interpreted: Callable[..., Result]) -> None:
    out = {"tensor": "m", "kind": "segmentation", "labels": labels(1), "measurements": ML}
    found = interpreted({"m": np.zeros((3, 1, 4, 5), np.uint8)}, [out]).findings
    assert found.nothing_found
    assert found.statement == "Threshold: nothing found to outline or measure."


def test_numbers_of_the_graph(interpreted: Callable[..., Result]) -> None:
    mask = np.ones((3, 1, 4, 5), np.uint8)
    outs = [
        {"tensor": "hu", "kind": "measurement", "valid_range": [-1000, 0],
         "measurements": [{"what": MEAN, "unit": HU, "label": 1, "rounding": 1}]},
        {"tensor": "m", "kind": "segmentation", "labels": labels(1), "measurements": ML},
    ]  # fmt: skip
    found = interpreted({"m": mask, "hu": np.array([-861.26], np.float32)}, outs).findings
    mean = found.measurements[-1]
    assert (mean.value, mean.segment, mean.unit.value) == (-861.3, 1, "[hnsf'U]")
    empty = interpreted({"m": mask * 0, "hu": np.array([5.0], np.float32)}, outs).findings
    assert empty.measurements == ()
    with pytest.raises(RunFailed, match="valid range"):
        interpreted({"m": mask, "hu": np.array([5.0], np.float32)}, outs)
    with pytest.raises(RunFailed, match="2 numbers"):
        interpreted({"m": mask, "hu": np.array([-5.0, 1], np.float32)}, outs)


def test_yes_and_no(interpreted: Callable[..., Result]) -> None:
    out = {"tensor": "p", "kind": "multilabel", "activation": "sigmoid", "calibrated": True,
           "operating_points": [{"name": "low", "threshold": 0.1},
                                {"name": "use", "threshold": 0.6, "default": True}],
           "labels": [{"index": 0, "label": "Nodule", "finding": NODULE},
                      {"index": 1, "label": "Other thing"}]}  # fmt: skip
    found = interpreted({"p": np.array([[-3, 0], [2, 0], [0, 0]], np.float32)}, [out]).findings
    nodule, other = found.qualitative
    assert (nodule.value, nodule.sop_instance_uid, nodule.threshold) == (PRESENT, "1.1", 0.6)
    assert nodule.calibrated
    assert nodule.operating_point == "use"
    assert found.parameters == ("p: operating_point=use, threshold=0.6",)
    assert other.value == ABSENT
    assert other.finding.scheme == "99RADSEAL"
    assert found.kind == "classification"
    assert found.statement == "Threshold: Nodule."


@pytest.mark.parametrize(
    ("above", "score", "priority"),
    [(0.7, 0.71, "STAT"), (0.7, 0.69, "ROUTINE"), ("use", 0.6, "STAT"), ("use", 0.59, "ROUTINE")],
)
def test_triage(
    interpreted: Callable[..., Result], above: Any, score: float, priority: str
) -> None:
    out = {"tensor": "p", "kind": "multilabel", "labels": labels(0, 1),
           "operating_points": [{"name": "use", "threshold": 0.595}],
           "triage": {"priority_when": {"label": "Label 1", "above": above}}}  # fmt: skip
    scores = np.array([[0.99, 0.1], [0.99, score], [0.99, 0.2]], np.float64)
    found = interpreted({"p": scores}, [out]).findings
    assert found.priority == priority
    assert Findings.from_json(found.to_json()) == found
    del out["triage"]
    assert interpreted({"p": scores}, [out]).findings.priority is None


def test_softmax_and_its_background(interpreted: Callable[..., Result]) -> None:
    out = {"tensor": "p", "kind": "classification", "activation": "softmax",
           "labels": [{"index": 0, "label": "none"},
                      {"index": 1, "label": "Nodule", "finding": NODULE}]}  # fmt: skip
    found = interpreted({"p": np.array([[5, -5]] * 3, np.float32)}, [out]).findings
    assert found.nothing_found
    assert "none of the findings asked for (Nodule)" in found.statement


@pytest.mark.parametrize(
    ("tensor", "out", "words"),
    [
        (np.full((3, 1, 4, 5), 0.5, np.float32),
         {"kind": "segmentation", "labels": labels(1)}, "fractions"),
        (np.full((3, 1, 4, 5), -1, np.int32), {"kind": "segmentation", "labels": labels(1)},
         "outside 0..65535"),
        (np.zeros((3, 2, 4, 5), np.uint8), {"kind": "segmentation", "labels": labels(1)},
         "one channel"),
        (np.zeros((3, 1, 4, 4), np.uint8), {"kind": "segmentation", "labels": labels(1)},
         "another shape"),
        (np.full((3, 1), 3.4, np.float32), {"kind": "multilabel", "labels": labels(0)},
         "score outside"),
        (np.full((3, 1), 0.4, np.float32), {"kind": "multilabel", "labels": labels(3)},
         "beyond the model's outputs"),
    ],
)  # fmt: skip
def test_outputs_not_to_be_believed(
    interpreted: Callable[..., Result], tensor: Any, out: dict[str, Any], words: str
) -> None:
    with pytest.raises(RunFailed, match=words) as failed:
        interpreted({"m": tensor}, [{"tensor": "m", "decode": "none", **out}])
    assert failed.value.code == "bad_output"


def test_a_volume_of_one_slice_is_refused(interpreted: Callable[..., Result]) -> None:
    single = stack(1)
    flat = Volume(single.array, single.affine, single.frames, (0.0, 2.0, 0.5), "CT", "MONOCHROME2",
                  True, None, "1.9")  # fmt: skip
    out = {"tensor": "m", "kind": "segmentation", "labels": labels(1), "measurements": ML}
    with pytest.raises(RunFailed, match="more than one slice"):
        interpreted({"m": np.ones((1, 1, 4, 5), np.uint8)}, [out], flat)


def test_own_codes_are_short_and_distinct() -> None:
    assert own_code("VentralDC").value == "VENTRALDC"
    long, longer = own_code("Inferior-Lateral-Ventricle"), own_code("Inferior-Lateral-Ventricles")
    assert len(long.value) <= 16
    assert long.value != longer.value
    assert own_code("肺").value


def test_the_picture_has_square_pixels(
    interpreted: Callable[..., Result], make_package: Callable[..., Path]
) -> None:
    mask = np.zeros((3, 1, 4, 5), np.uint8)
    mask[2] = 3
    out = {"tensor": "m", "kind": "segmentation", "labels": labels(3)}
    found = interpreted({"m": mask}, [out])
    made = pictures(load(make_package(name="again")), stack(), found)
    grey, marks = made["image"], made["labels"]
    assert set(made) == {"image", "labels"}
    assert grey.shape == marks.shape == (16, 5)
    assert grey.dtype == marks.dtype == np.uint8
    assert (marks == 1).all()
