"""Boxes, overlapping segments and heat maps in SR, SEG and summary."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from bridge.report import check, seg, sr, summary
from bridge.report.errors import ReportError
from bridge.report.identity import derived_uid
from bridge.report.region import of_box
from models.findings import ABSENT, Box, Code, Findings, Qualitative

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[2] / "reporting.py")))
GIVEN = (made.MODEL, made.GATEWAY)
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")


def box(**changed: Any) -> Box:
    first = Box(made.NODULE, "Nodule", 0.91, 2, 1, 3, 2.5, 1.0, 7.25, 6.0, False, 0.4, "balanced")
    return replace(first, **changed)


def found(*boxes: Box) -> Findings:
    return Findings(
        kind="detection", statement="Two nodules.",
        frames=tuple(str(s.SOPInstanceUID) for s in made.sources()),
        qualitative=(Qualitative(PNEUMOTHORAX, ABSENT, 0.02, True, 0.5),),
        parameters=("boxes: operating_point=balanced, threshold=0.4",),
        boxes=boxes or (box(), box(score=0.7, frame=0, first=0, last=0, x0=0.0, x1=12.0)),
    )  # fmt: skip


def _items(ds: Dataset, name: str) -> list[Dataset]:
    out = []
    for item in ds.get("ContentSequence") or []:
        if item.ConceptNameCodeSequence[0].CodeValue == name:
            out.append(item)
        out += _items(item, name)
    return out


def report(findings: Findings, **how: Any) -> Dataset:
    segmented = how.pop("segmented", None)
    return sr.compose(findings, made.sources(), *GIVEN, made.naming("sr"), segmented, **how)


def test_findings_with_boxes_survive_as_json_and_older_ones_still_read() -> None:
    assert Findings.from_json(found().to_json()) == found()
    older = made.classification().to_json()
    del older["boxes"]
    for said in older["qualitative"]:
        del said["operating_point"]
    assert Findings.from_json(older) == made.classification()


def test_a_box_is_a_group_with_its_rectangle_on_its_image() -> None:
    ds = report(found())
    assert check.faults(ds, made.sources()) == []
    groups = _items(ds, "125007")
    assert len(groups) == 3
    first = groups[1]
    region = _items(first, "121112")[0]
    assert [float(v) for v in region.GraphicData] == [2.5, 1, 7.25, 1, 7.25, 6, 2.5, 6, 2.5, 1]
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == derived_uid("image", "2")
    assert _items(first, "121071")[0].ConceptCodeSequence[0].CodeMeaning == "Nodule"
    score = _items(first, "MODEL_SCORE")[0].MeasuredValueSequence[0]
    assert (score.NumericValue, _items(first, "111012")) == (0.91, [])
    said = [i.TextValue for i in _items(first, "111002")]
    assert {"operating_point=balanced", "threshold=0.4"} <= set(said)
    assert "Extends over 3 images." in [i.TextValue for i in _items(first, "121106")]


def test_the_same_box_keeps_its_tracking_uid_and_another_gets_its_own() -> None:
    both = [i.UID for i in _items(report(found()), "112040")]
    assert len(set(both)) == 3
    turned = found(found().boxes[1], found().boxes[0])
    assert set(both) == {i.UID for i in _items(report(turned), "112040")}
    moved = {i.UID for i in _items(report(found(box(x0=3.5))), "112040")}
    assert len(moved & set(both)) == 1  # the statement's


@pytest.mark.parametrize(
    "wrong", [{"frame": 9}, {"x1": 12.5}, {"y0": -0.5}, {"x0": 8.0}, {"score": 1.5}]
)
def test_a_box_that_lies_nowhere_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ReportError):
        report(found(box(**wrong)))


def test_a_box_on_a_multi_frame_image_names_its_frame() -> None:
    source = made.sources(NumberOfFrames=4)[0]
    uid = str(source.SOPInstanceUID)
    assert of_box([source], [uid] * 4, box(frame=2)).frame == 3


def test_boxes_beside_a_segmentation_are_refused() -> None:
    segmented = seg.compose(
        made.segmentation(), made.mask(), made.sources(), *GIVEN, made.naming("seg")
    )
    with pytest.raises(ReportError, match="beside"):
        report(made.segmentation(boxes=(box(),)), segmented=segmented)


def _picture(findings: Findings, **how: Any) -> np.ndarray:
    grey = np.full((10, 12), 60, np.uint8)
    return summary.picture(findings, grey, None, made.sources(), *GIVEN, **how)


def test_summary_draws_boxes_and_heat() -> None:
    rows = np.array([[0, 2.5, 1, 7.25, 6]], np.float32)
    plain, drawn = _picture(found()), _picture(found(), boxes=rows)
    changed = np.argwhere((plain != drawn).any(axis=2))
    assert len(changed) > 100
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    # pixels of 0.8 x 0.5 mm: 10 rows fill the picture's 300, 12 columns 225 in its middle
    assert [left, right] == pytest.approx([47 + 2.5 * 18.75, 46 + 7.25 * 18.75], abs=1)
    assert [top, bottom] == pytest.approx([72 + 30, 71 + 6 * 30], abs=1)
    heat = np.zeros((10, 12), np.uint8)
    heat[:, :6] = 255
    warm = _picture(found(), heat=heat)
    assert warm[222, 60, 0] > warm[222, 60, 2] + 80
    assert warm[222, 260].tolist() == plain[222, 260].tolist()
    for wrong in (np.zeros((3, 3), np.uint8), heat[:-1]):
        with pytest.raises(ReportError, match="shape"):
            _picture(found(), heat=wrong)
    for wrong in (rows[:, :4], rows + 7, rows * np.nan):
        with pytest.raises(ReportError):
            _picture(found(), boxes=wrong)


def test_an_uncalibrated_score_is_never_a_percentage() -> None:
    rows = summary._rows(found())
    assert [r.value for r in rows] == ["score 0.91", "score 0.70", "Absent"]
    assert rows[2].under == "probability 2 %"
    assert "%" not in "".join(r.value + r.under for r in rows[:2])


def test_sr_and_summary_name_the_priority() -> None:
    urgent = replace(found(), priority="STAT")
    assert "Triage priority: STAT." in [i.TextValue for i in _items(report(urgent), "121106")]
    assert "Triage" not in sr.as_text(report(found()))
    assert check.faults(report(urgent), made.sources()) == []
    assert (_picture(urgent) != _picture(found())).any()


def test_overlapping_segments_keep_all_their_voxels() -> None:
    findings = made.segmentation()
    layers = np.zeros((made.FRAMES, made.ROWS, made.COLUMNS, 2), np.uint8)
    layers[1:3, 2:6, 3:8, 0] = 1
    layers[2, 4:9, 5:9, 1] = 1  # shares voxels with the first
    ds = seg.compose(findings, layers, made.sources(), *GIVEN, made.naming("seg"))
    assert check.faults(ds, made.sources()) == []
    counts = {1: 0, 2: 0}
    for frame, item in zip(ds.pixel_array, ds.PerFrameFunctionalGroupsSequence, strict=True):
        counts[item.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
    assert counts == {1: 40, 2: 20}
    assert check.faults(report(findings, segmented=ds), [*made.sources(), ds]) == []
    with pytest.raises(ReportError, match="layers"):
        seg.compose(findings, layers * 2, made.sources(), *GIVEN, made.naming("seg"))
