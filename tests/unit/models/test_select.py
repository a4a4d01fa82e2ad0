"""Series rules: MONAI Deploy's meaning, and reasons in words."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.errors import PackageError
from models.package import Package, load
from models.rules import matches, plane
from models.select import READ, Choice, SeriesFacts, StudyFacts, Unwanted, choose

CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("wanted", "value", "met"),
    [
        ("CT", "ct", True),
        ("CT", "MR", False),
        ("(?i)t1|mprage", "anat-T1w", True),
        ("^T1$", "anat-T1w", False),
        ("C.T", "CT", False),
        ("a+b", "A+B", True),
        (5, 5.0, True),
        (5, "5", True),
        (5, 6, False),
        ([0.5, 8], 8, True),
        ([0.5, 8], "8.0", True),
        ([0.5, 8], 8.1, False),
        ([5, ">"], 6, True),
        ([5, ">"], 5, False),
        ([5, "<="], [5, 5], True),
        ([0.5, 1], [0.7, 0.7], True),
        ([0.5, 1], [0.7, 1.7], False),
        (["PRIMARY", "ORIGINAL"], ["ORIGINAL", "PRIMARY", "AXIAL"], True),
        (["primary", "!LOCALIZER"], ["ORIGINAL", "PRIMARY", "LOCALIZER"], False),
        (["PRIMARY", "MPR"], ["ORIGINAL", "PRIMARY"], False),
        (["!LOCALIZER"], None, True),
        (["!LOCALIZER"], "AXIAL", True),
        (["AXIAL"], "AXIAL", True),
        ("CT", None, False),
        ("CT", "", False),
        (None, None, True),
        ("", None, True),
        ("PRIMARY", ["ORIGINAL", "PRIMARY"], True),
        ([0.5, 8], "thick", False),
        ([0.5, 8], float("nan"), False),
    ],
)
def test_conditions(wanted: Any, value: Any, met: bool) -> None:
    assert matches("Keyword", wanted, value, 0.1) is met


@pytest.mark.parametrize(
    ("orientation", "name"),
    [
        (AXIAL, "Axial"),
        (CORONAL, "Coronal"),
        (SAGITTAL, "Sagittal"),
        (["0.999", "-0.02", "0.038", "0.0265", "0.9914", "-0.128"], "Axial"),
        ([1, 0, 0], None),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 0, 0, 0, 1, float("nan")], None),
        (None, None),
    ],
)
def test_planes(orientation: Any, name: str | None) -> None:
    assert plane(orientation) == name
    assert matches("ImageOrientationPatient", "axial", orientation, 0.1) is (name == "Axial")


def test_a_pattern_that_never_ends_is_stopped() -> None:
    start = time.monotonic()
    with pytest.raises(PackageError, match="too long"):
        matches("SeriesDescription", "(a|aa)+$", "a" * 60 + "b", 0.05)
    assert time.monotonic() - start < 2


def facts(uid: str = "1.1", count: int = 30, complete: bool = True, **attributes: Any) -> Any:
    base = {
        "Modality": "CT", "SOPClassUID": CT, "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ImageOrientationPatient": AXIAL, "SliceThickness": 2.0, "SeriesNumber": 3,
    }  # fmt: skip
    return SeriesFacts(uid, count, {**base, **attributes}, complete)


@pytest.fixture
def package(make_package: Callable[..., Path]) -> Callable[..., Package]:
    def make(**rules: Any) -> Package:
        return load(make_package(change={"deployment": {"input": rules}}))

    return make


def reason(found: Choice | Unwanted) -> str:
    assert isinstance(found, Unwanted)
    return found.reason


def test_one_series_that_fits(package: Callable[..., Package]) -> None:
    found = choose(package(), [facts(), facts("1.2", Modality="MR")], StudyFacts())
    assert found == Choice({"image": "1.1"}, (), True)


@pytest.mark.parametrize(
    ("rules", "attributes", "words"),
    [
        ({}, {"Modality": "MR"}, "Modality is MR, wanted CT"),
        ({}, {"SOPClassUID": "1.2.3"}, "SOPClassUID is 1.2.3, wanted"),
        ({"min_slices": 40}, {}, "30 images, wanted at least 40"),
        ({"max_slices": 20}, {}, "30 images, wanted at most 20"),
        ({"body_parts": ["HEAD"]}, {"BodyPartExamined": "CHEST"}, "BodyPartExamined is CHEST"),
        ({"body_parts": ["HEAD"], "body_part_required": True}, {}, "BodyPartExamined is absent"),
        ({"exclude_burned_in": True}, {"BurnedInAnnotation": "YES"}, "BurnedInAnnotation"),
        ({"exclude_derived": True}, {"ImageType": ["DERIVED"]}, "ImageType is DERIVED"),
        ({"min_bits": 12}, {"BitsStored": 8}, "BitsStored is 8, wanted at least 12"),
        ({"pixel_spacing_mm": [0.5, 1]}, {"PixelSpacing": [2, 2]}, "PixelSpacing is 2\\2"),
        ({}, {"QualityControlImage": "YES"}, "phantoms"),
        ({"view_positions": ["PA"]}, {"ViewPosition": "LL"}, "ViewPosition is LL, wanted PA"),
    ],
)
def test_reasons(package: Callable[..., Package], rules: Any, attributes: Any, words: str) -> None:
    said = reason(choose(package(**rules), [facts(**attributes)], StudyFacts()))
    assert words in said
    assert "series 3 (" in said


def test_reasons_never_quote_free_text(package: Callable[..., Package]) -> None:
    rules = {"series": [{"role": "image", "selections": [
        {"conditions": {"SeriesDescription": "lung"}}]}]}  # fmt: skip
    said = reason(choose(package(**rules), [facts(SeriesDescription="CANARY")], StudyFacts()))
    assert "CANARY" not in said
    assert "SeriesDescription does not match, wanted lung" in said


def test_preference_wins_whatever_the_order(package: Callable[..., Package]) -> None:
    rules = package(prefer={"ConvolutionKernel": "b[2-4]"})
    series = [
        facts("1.1", 90, ConvolutionKernel="B70f"), facts("1.2", 30, ConvolutionKernel="B40f"),
        facts("1.3", 30, ConvolutionKernel="B30f", SliceThickness=1.0), facts("1.4", Modality="MR"),
    ]  # fmt: skip
    for order in itertools.permutations(series):
        assert choose(rules, order, StudyFacts()) == Choice({"image": "1.3"}, (), False)


def test_settled_only_when_nothing_can_change(package: Callable[..., Package]) -> None:
    plain = package()
    assert choose(plain, [facts("1.1"), facts("1.2")], StudyFacts()).settled is False
    assert choose(package(prefer={"KVP": "1"}), [facts()], StudyFacts()).settled is False
    few = choose(package(min_slices=40), [facts(complete=False)], StudyFacts())
    assert isinstance(few, Unwanted)
    assert not few.settled
    assert choose(package(min_slices=40), [facts(complete=True)], StudyFacts()).settled


def test_age_and_sex(package: Callable[..., Package]) -> None:
    grown = package(patient={"min_age_years": 18, "max_age_years": 90, "sex": "F"})
    assert isinstance(choose(grown, [facts()], StudyFacts(42, "F")), Choice)
    assert "younger" in reason(choose(grown, [facts()], StudyFacts(17.9, "F")))
    assert "older" in reason(choose(grown, [facts()], StudyFacts(91, "F")))
    assert "sex" in reason(choose(grown, [facts()], StudyFacts(42, "M")))
    unknown = choose(grown, [facts()], StudyFacts(None, None))
    assert isinstance(unknown, Choice)
    assert len(unknown.warnings) == 2


def test_several_roles(package: Callable[..., Package]) -> None:
    rules = {"series": [
        {"role": "t1", "selections": [{"conditions": {"SeriesDescription": "t1"}}]},
        {"role": "t2", "selections": [{"conditions": {"SeriesDescription": "t2"}}],
         "same_frame_of_reference_as": "t1"},
        {"role": "flair", "selections": [{"conditions": {"SeriesDescription": "flair"}}],
         "required": False},
    ]}  # fmt: skip
    first = facts("1.1", SeriesDescription="T1", FrameOfReferenceUID="9")
    second = facts("1.2", SeriesDescription="T2", FrameOfReferenceUID="9")
    other = facts("1.2", SeriesDescription="T2", FrameOfReferenceUID="8")
    found = choose(package(**rules), [second, first], StudyFacts())
    assert found == Choice({"t1": "1.1", "t2": "1.2"}, (), False)
    said = reason(choose(package(**rules), [other, first], StudyFacts()))
    assert "FrameOfReferenceUID is another one" in said
    assert "for the role t2" in said


def test_frames_count_as_slices(package: Callable[..., Package]) -> None:
    found = choose(package(min_slices=60), [facts(count=1, NumberOfFrames="64")], StudyFacts())
    assert isinstance(found, Choice)


def test_an_empty_study(package: Callable[..., Package]) -> None:
    assert "no images" in reason(choose(package(), [], StudyFacts()))


def test_identity_is_not_asked_for() -> None:
    assert not [k for k in READ if k.startswith("Patient") and k != "PatientPosition"]


def test_the_examples_on_the_corpus_series(shared: Path) -> None:
    lung = load(shared / "models/packages/ct-lung-air")
    soft = facts("1.1", 30, ConvolutionKernel="B40f", SliceThickness=8)
    sharp = facts("1.2", 6, ConvolutionKernel="B70f", SliceThickness=8)
    found = choose(lung, [sharp, soft], StudyFacts(53, "F"))
    assert isinstance(found, Choice)
    assert found.roles == {"image": "1.1"}
    brain = load(shared / "models/packages/brain-subcortical-18")
    head = SeriesFacts("1.3", 384, {
        "Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "SliceThickness": "0.667",
        "SeriesDescription": "anat-T1w", "ImageType": ["DERIVED", "SECONDARY"]}, True)  # fmt: skip
    picked = choose(brain, [head, soft], StudyFacts(None, "F"))
    assert isinstance(picked, Choice)
    assert picked.settled
    assert "age is unknown" in picked.warnings[0]
