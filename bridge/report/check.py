"""The room's own gate: what no public validator says about an SR or SEG of ours.

dciodvfy knows modules, PixelMed knows templates; neither looks at tracking
identifiers, at a code's meaning or at the equality of names that IHE AIR asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import cast

from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts

__all__ = ["faults"]

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_TITLE = ("126000", "DCM")
_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_SR = "1.2.840.10008.5.1.4.1.1.88."
_ALSO_CALLED = {("CT", "DCM"), ("260753009", "SCT"), ("276214006", "SCT")}
_TEMPLATES = {"1410", "1411", "1501"}
_Code = tuple[str, str, str]


def _code(item: Dataset, keyword: str) -> _Code:
    sequence = item.get(keyword)
    if not sequence:
        return ("", "", "")
    first = sequence[0]
    value = first.get("CodeValue") or first.get("LongCodeValue") or first.get("URNCodeValue") or ""
    return (
        str(value),
        str(first.get("CodingSchemeDesignator", "")),
        str(first.get("CodeMeaning", "")),
    )


def _name(item: Dataset) -> str:
    return _code(item, "ConceptNameCodeSequence")[0]


def _children(item: Dataset) -> list[Dataset]:
    return list(item.get("ContentSequence") or [])


def _walk(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in _children(item):
        yield from _walk(child)


def _dictionary() -> dict[tuple[str, str], set[str]]:
    known: dict[tuple[str, str], set[str]] = {}
    for scheme, words in concepts.items():
        named = cast("dict[str, dict[str, tuple[str, list[int]]]]", words)
        for entries in named.values():
            for value, (meaning, _) in entries.items():
                known.setdefault((value, scheme), set()).add(meaning.casefold())
    return known


_KNOWN = _dictionary()


def _code_faults(ds: Dataset) -> list[str]:
    """Compare every code's meaning with PS3.16's; schemes 99… are the site's own."""
    wrong: list[str] = []
    for element in ds.iterall():
        if element.keyword != "CodeMeaning":
            continue
        meaning = str(element.value or "")
        if not meaning or len(meaning) > 64:
            wrong.append(f"a code meaning is empty or longer than 64 characters: {meaning[:20]!r}")
    for value, scheme, meaning in sorted(set(_codes(ds))):
        if not value or not scheme:
            wrong.append(f"the code {meaning!r} has no value or no scheme")
        expected = _KNOWN.get((value, scheme))
        if (value, scheme) in _ALSO_CALLED or expected is None or not meaning:
            continue
        if scheme == "UCUM" or meaning.casefold() in expected:
            continue
        wrong.append(f"code {value} {scheme} is called {meaning!r}, not {sorted(expected)[0]!r}")
    return wrong


def _codes(ds: Dataset) -> Iterator[_Code]:
    for element in ds:
        if element.VR != "SQ":
            continue
        for item in element.value or []:
            if "CodeMeaning" in item:
                value = item.get("CodeValue") or item.get("LongCodeValue") or ""
                yield (
                    str(value),
                    str(item.get("CodingSchemeDesignator", "")),
                    str(item.get("CodeMeaning", "")),
                )
            yield from _codes(item)


def _listed(ds: Dataset) -> tuple[dict[str, str], list[str]]:
    """Return SOP instance → SOP class of the evidence, and what is wrong with it."""
    listed: dict[str, str] = {}
    wrong: list[str] = []
    for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"):
        for study in ds.get(keyword) or []:
            own = study.StudyInstanceUID == ds.StudyInstanceUID
            if own != keyword.startswith("Current"):
                wrong.append("evidence stands under the wrong study")
            for series in study.ReferencedSeriesSequence:
                for item in series.ReferencedSOPSequence:
                    uid = str(item.ReferencedSOPInstanceUID)
                    if uid in listed:
                        wrong.append("an instance is listed twice in the evidence")
                    listed[uid] = str(item.ReferencedSOPClassUID)
    return listed, wrong


def _evidence_faults(ds: Dataset, evidence: Sequence[Dataset]) -> list[str]:
    listed, wrong = _listed(ds)
    given = {str(e.SOPInstanceUID): str(e.SOPClassUID) for e in evidence}
    for item in _walk(ds):
        for reference in item.get("ReferencedSOPSequence") or []:
            uid = str(reference.ReferencedSOPInstanceUID)
            if uid not in listed:
                wrong.append("the tree refers to an instance that the evidence does not list")
            elif listed[uid] != str(reference.ReferencedSOPClassUID):
                wrong.append("tree and evidence name different SOP classes for one instance")
            if given and uid not in given:
                wrong.append("the tree refers to an instance that was not an input")
    for uid, sop_class in given.items():
        if uid not in listed:
            wrong.append("an input is not listed in the evidence")
        elif listed[uid] != sop_class:
            wrong.append("the evidence names a wrong SOP class for an input")
    return sorted(set(wrong))


def _number_faults(item: Dataset) -> list[str]:
    measured = item.get("MeasuredValueSequence")
    if not measured:
        if item.get("NumericValueQualifierCodeSequence"):
            return []
        return ["a NUM has neither a value nor a qualifier"]
    text = str(measured[0].NumericValue)
    unit = _code(measured[0], "MeasurementUnitsCodeSequence")
    wrong = []
    if len(text) > 16 or not math.isfinite(float(text)):
        wrong.append(f"a NUM holds {text!r}")
    if unit[1] != "UCUM" or not unit[0]:
        wrong.append(f"the unit {unit[0]!r} is not from UCUM")
    return wrong


def _template(item: Dataset) -> tuple[str, str]:
    sequence = item.get("ContentTemplateSequence")
    if not sequence:
        return ("", "")
    return str(sequence[0].get("TemplateIdentifier")), str(sequence[0].get("MappingResource"))


def _group_faults(group: Dataset) -> list[str]:
    """Check one measurement group: AIR's profile, and what OHIF and Stone stumble on."""
    wrong = []
    names = [_name(child) for child in _children(group)]
    if names[:2] != ["112039", "112040"]:
        wrong.append("a group does not start with Tracking Identifier and Unique Identifier")
    for needed, what in (
        ("121071", "Finding"),
        ("111001", "Algorithm Name"),
        ("111003", "Algorithm Version"),
    ):
        if names.count(needed) != 1:
            wrong.append(f"a group has {names.count(needed)} {what} items")
    if "" in names:
        wrong.append("a child of a group has no concept name")
    if not any(c.get("ValueType") in {"SCOORD", "SCOORD3D"} for c in _children(group)):
        wrong.append("a group has no coordinates, which OHIF refuses")
    template = _template(group)[0]
    if template not in _TEMPLATES:
        wrong.append("a group names no template 1410, 1411 or 1501")
    if ("121191" in names) != (template == "1411"):
        wrong.append("Referenced Segment and template 1411 go together")
    if template == "1411" and names.count("121232") + ("121233" in names) != 1:
        wrong.append("a volumetric group names not exactly one of source series and images")
    return wrong


def _scoord_faults(item: Dataset) -> list[str]:
    points = [float(v) for v in item.get("GraphicData") or []]
    images = _children(item)
    wrong = []
    if len(points) % 2 or not points or not all(math.isfinite(p) for p in points):
        wrong.append("coordinates are not pairs of finite numbers")
    elif item.GraphicType == "POLYLINE" and points[:2] != points[-2:]:
        wrong.append("an outline is not closed")
    if len(images) != 1 or images[0].get("RelationshipType") != "SELECTED FROM":
        wrong.append("coordinates are not selected from exactly one image")
    return wrong


def _tree_faults(ds: Dataset) -> list[str]:
    wrong = []
    if _template(ds) != ("1500", "DCMR"):
        wrong.append("the report does not name template 1500 of DCMR")
    if _code(ds, "ConceptNameCodeSequence")[:2] != _TITLE:
        wrong.append("the title is not Imaging Measurement Report (126000, DCM)")
    names = [_name(child) for child in _children(ds)]
    if not {"126010", "126011", "C0034375"} & set(names):
        wrong.append("the report has no measurements and no evaluations")
    if names.count("126010") > 1:
        wrong.append("the report has two Imaging Measurements containers")
    if not {"121005", "121012"} <= set(names) or "121058" not in names:
        wrong.append("observer type, device UID or procedure is missing")
    return wrong + _content_faults(ds)


def _content_faults(ds: Dataset) -> list[str]:
    wrong = []
    groups = [item for item in _walk(ds) if _name(item) == "125007"]
    for group in groups:
        wrong += _group_faults(group)
    kinds = {_template(group)[0] for group in groups}
    if len(kinds) > 1:
        wrong.append("one report mixes kinds of groups")
    for item in _walk(ds):
        kind = item.get("ValueType")
        if kind == "NUM":
            wrong += _number_faults(item)
        elif kind == "SCOORD":
            wrong += _scoord_faults(item)
        elif kind == "UIDREF" and not _UID.fullmatch(str(item.get("UID", ""))):
            wrong.append(f"{_code(item, 'ConceptNameCodeSequence')[2]} is not a UID")
    tracked = [str(item.get("UID", "")) for item in _walk(ds) if _name(item) == "112040"]
    if len(set(tracked)) != len(tracked):
        wrong.append("two groups have one Tracking UID")
    return wrong


def _text_of(ds: Dataset, name: str) -> set[str]:
    return {
        str(item.get("TextValue") or item.get("UID") or "")
        for item in _walk(ds)
        if _name(item) == name
    }


def _algorithm_faults(ds: Dataset) -> list[str]:
    """Check AIR table 6.5.3.1-1: one algorithm, named alike wherever it is named."""
    items = [
        item
        for item in ds.get("ContributingEquipmentSequence") or []
        if _code(item, "PurposeOfReferenceCodeSequence")[:2] == ("109102", "DCM")
    ]
    if len(items) != 1:
        return [f"{len(items)} items of contributing equipment say Processing Equipment"]
    item = items[0]
    said = {
        "Manufacturer": {"121014"},
        "ManufacturerModelName": {"121015", "111001"},
        "SoftwareVersions": {"111003"},
        "DeviceUID": {"121012"},
    }
    wrong = []
    for keyword, names in said.items():
        value = str(item.get(keyword, "") or "")
        if not value:
            wrong.append(f"the algorithm in contributing equipment has no {keyword}")
        wrong += [
            f"{keyword} of the algorithm and content item {name} differ"
            for name in sorted(names)
            if _text_of(ds, name) - {value}
        ]
    for segment in ds.get("SegmentSequence") or []:
        for used in segment.get("SegmentationAlgorithmIdentificationSequence") or []:
            pairs = (
                ("ManufacturerModelName", "AlgorithmName"),
                ("SoftwareVersions", "AlgorithmVersion"),
                ("Manufacturer", "AlgorithmSource"),
            )
            wrong += [
                f"{mine} of the algorithm and {theirs} of a segment differ"
                for mine, theirs in pairs
                if str(item.get(mine, "")) != str(used.get(theirs, ""))
            ]
    return wrong


def _segment_faults(ds: Dataset) -> list[str]:
    numbers = [int(s.SegmentNumber) for s in ds.SegmentSequence]
    wrong = []
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append("segments are not numbered from 1")
    if not ds.get("ReferencedSeriesSequence"):
        wrong.append("the segmentation names no referenced series, which OHIF refuses")
    for segment in ds.SegmentSequence:
        if not segment.get("TrackingID") or not _UID.fullmatch(str(segment.get("TrackingUID", ""))):
            wrong.append(f"segment {segment.SegmentNumber} has no tracking identifiers")
        if not segment.get("RecommendedDisplayCIELabValue"):
            wrong.append(f"segment {segment.SegmentNumber} has no colour")
    return wrong


def faults(ds: Dataset, evidence: Sequence[Dataset]) -> list[str]:
    """Return what is wrong with an SR, SEG or summary of ours, as sentences; [] if nothing.

    `evidence` are the headers of everything the object may refer to (for an SR
    with a SEG: that too). The sentences name no patient.
    """
    wrong = _algorithm_faults(ds) + _code_faults(ds)
    for given in evidence:
        if given.StudyInstanceUID != ds.StudyInstanceUID:
            wrong.append("the object lies in another study than its source")
            break
    if str(ds.SOPClassUID).startswith(_SR):
        wrong += _tree_faults(ds) + _evidence_faults(ds, evidence)
        if ds.get("VerificationFlag") != "UNVERIFIED":
            wrong.append("an AI report claims to be verified")
    elif str(ds.SOPClassUID) == _SEG:
        wrong += _segment_faults(ds)
    return wrong
