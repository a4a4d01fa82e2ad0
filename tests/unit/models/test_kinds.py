"""What a manifest must say of its outputs and their codes; each fault names its key and its fix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.sr._concepts_dict import concepts

from models import codes, kinds
from models.admission import check
from models.fault import Fault
from models.package import MANIFEST, PackageError, load

NODULE = {"value": "27925004", "scheme": "SCT", "meaning": "Nodule"}
ML = {"value": "mL", "scheme": "UCUM", "meaning": "milliliter"}
VOLUME = {"value": "118565006", "scheme": "SCT", "meaning": "Volume"}
BOXES = {"format": "xyxy", "scores": "scores"}
LABELS = [{"index": 1, "label": "Nodule", "finding": NODULE}]
TENSOR = {"type": "x", "format": "x", "dtype": "float32"}


def detection(**changed: Any) -> dict[str, Any]:
    return {"tensor": "mask", "kind": "detection", "boxes": BOXES, "labels": LABELS, **changed}


def faults(make: Callable[..., Path], *outputs: dict[str, Any], dims: Any = None) -> list[Fault]:
    change = {
        "network_data_format": {"outputs": {"scores": TENSOR, "heat": TENSOR}},
        "deployment": {"outputs": list(outputs)},
    }
    return kinds.check(load(make(change=change)), dims or {})


def test_a_whole_detection_has_no_fault(make_package: Callable[..., Path]) -> None:
    heat = {"tensor": "heat", "kind": "map"}
    assert faults(make_package, detection(), heat, dims={"mask": [None, 5, 4]}) == []


SEGMENTED = {"tensor": "mask", "kind": "segmentation", "labels": LABELS}
POINT = {"name": "a", "threshold": 0.5}


@pytest.mark.parametrize(
    ("output", "key", "words"),
    [
        ({"tensor": "mask", "kind": "detection", "labels": LABELS}, "boxes", "is missing"),
        (detection(labels=[]), "labels", "is missing"),
        (detection(boxes={**BOXES, "format": "xyzxyz"}), "boxes.format", "the 2 axes"),
        (detection(boxes={**BOXES, "scores": "nowhere"}), "boxes.scores", "nowhere is not"),
        (detection(boxes={**BOXES, "classes": "none"}), "boxes.classes", "none is not"),
        (detection(threshold=7), "threshold", "outside 0..1"),
        (detection(labels=[{"index": 1, "label": "x", "threshold": -1}]), "threshold", "outside"),
        (detection(operating_points=[POINT, POINT]), "operating_points", "stands twice"),
        (detection(operating_points=[{**POINT, "default": True},
                                     {"name": "b", "threshold": 0.1, "default": True}]),
         "operating_points", "2 of 2 are the default"),
        ({**SEGMENTED, "boxes": BOXES}, "boxes", "for kind detection only"),
        ({**SEGMENTED, "overlapping": True}, "overlapping", "read by threshold"),
        ({**SEGMENTED, "overlapping": True, "decode": "threshold",
          "labels": [{"index": i, "label": str(i)} for i in range(33)]}, "labels", "more than 32"),
        ({"tensor": "mask", "kind": "map", "labels": LABELS}, "labels", "nothing by itself"),
        ({"tensor": "mask", "kind": "embedding"}, "kind", "not supported"),
        ({"tensor": "gone", "kind": "map"}, "", "is not declared"),
        (detection(triage={"priority_when": {"label": "x", "above": 0.5}}),
         "triage.priority_when.label", "none of the labels"),
        (detection(triage={"priority_when": {"label": "Nodule", "above": "high"}}),
         "triage.priority_when.above", "no operating point"),
        ({**SEGMENTED, "triage": {"priority_when": {"label": "Nodule", "above": 0.5}}}, "triage",
         "has no score"),
    ],
)  # fmt: skip
def test_what_an_output_lacks(
    make_package: Callable[..., Path], output: dict[str, Any], key: str, words: str
) -> None:
    found = faults(make_package, output)
    (fault,) = [f for f in found if words in f.text]
    assert not fault.warning
    assert fault.key == f"deployment.outputs.{output['tensor']}" + (f".{key}" if key else "")
    assert fault.fix


def test_the_graph_is_asked_for_the_size_of_a_box(make_package: Callable[..., Path]) -> None:
    (fault,) = faults(make_package, detection(), dims={"mask": [1, 10, 6]})
    assert "a box has 4 numbers, the last axis of the graph's tensor 6" in fault.text


def test_outputs_that_share_no_report(make_package: Callable[..., Path]) -> None:
    mask = {"tensor": "scores", "kind": "segmentation", "decode": "argmax", "labels": LABELS}
    assert any("share no report" in f.text for f in faults(make_package, detection(), mask))
    two = [{"tensor": name, "kind": "map"} for name in ("scores", "heat")]
    assert any("2 of kind map" in f.text for f in faults(make_package, *two))


@pytest.mark.parametrize("boxes", [{"format": "xxxx", "scores": "s"}, {**BOXES, "code": "x"}])
def test_a_format_nobody_knows_is_refused(
    make_package: Callable[..., Path], boxes: dict[str, Any]
) -> None:
    root = make_package(change={"deployment": {"outputs": [detection(boxes=boxes)]}})
    with pytest.raises(PackageError, match="boxes"):
        load(root)


def coded(**code: str) -> list[Fault]:
    return codes.check({"outputs": [{"labels": [{"finding": {**NODULE, **code}}]}]}, MANIFEST)


def test_codes_of_the_dictionary() -> None:
    assert coded() == []
    assert coded(meaning="nodule") == []
    (wrong,) = coded(meaning="Pneumothorax")
    assert (wrong.key, wrong.warning) == ("deployment.outputs[0].labels[0].finding.meaning", False)
    assert wrong.fix.startswith('Write "Nodule"')
    (digit,) = coded(value="27925005")
    assert "no SNOMED CT identifier" in digit.text
    assert not digit.warning
    (retired,) = coded(value="M-03010")
    assert "SRT" in retired.fix
    for note in (coded(value="138875005"), coded(scheme="DCM", value="999999"),
                 coded(scheme="ACME", value="1")):  # fmt: skip
        assert [f.warning for f in note] == [True]
    assert coded(scheme="99ACME", value="whatever") == []


@pytest.mark.parametrize(
    "unit", ["mL", "mm3", "[hnsf'U]", "1", "%", "/min", "10*3/uL", "kg/m2", "mg/(24.h)", "{ratio}",
             "mmol/kg{WetWeight}", "dyn.s.cm-5", "m[H2O]"],
)  # fmt: skip
def test_units_of_ucum(unit: str) -> None:
    assert codes.is_ucum(unit)


@pytest.mark.parametrize(
    "unit", ["", "m L", "mL/", "mm^3", "µm", "mm³", "(m", "m)", "{a", "/", "5 mm", "m..s", "-3",
             "{a}}", "()"],
)  # fmt: skip
def test_spellings_that_are_no_units(unit: str) -> None:
    assert not codes.is_ucum(unit)


def test_every_unit_of_the_standard_passes() -> None:
    units = [value for named in concepts["UCUM"].values() for value in named]
    assert len(units) > 90
    assert [u for u in units if not codes.is_ucum(u)] == []


def test_admission_says_what_is_wrong_with_codes(make_package: Callable[..., Path]) -> None:
    bad = [{"what": VOLUME, "unit": {**ML, "value": "m l"}, "per": "label"},
           {"what": VOLUME, "unit": {**ML, "scheme": "99X"}, "per": "label"}]  # fmt: skip
    label = {"index": 1, "label": "x", "type": {**NODULE, "meaning": "Cyst"}}
    found = check(load(make_package(change={"deployment": {"outputs": [
        {**SEGMENTED, "labels": [label], "measurements": bad}]}})))  # fmt: skip
    text = " | ".join(f.text for f in found)
    assert "'m l' is not spelled as a UCUM unit" in text
    assert "is not UCUM" in text
    assert "called 'Nodule', not 'Cyst'" in text
