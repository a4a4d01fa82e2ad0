"""SEG, SR and summary: what they say, that they repeat themselves, and what the gate catches."""

from __future__ import annotations

import runpy
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from bridge.report import check, envelope, seg, sr, summary
from bridge.report.errors import ReportError
from bridge.report.identity import derived_uid, device_uid
from bridge.report.page import plain_number
from bridge.report.region import places
from models.findings import Measurement

TESTS = Path(__file__).resolve().parents[2]
made = SimpleNamespace(**runpy.run_path(str(TESTS / "reporting.py")))
GIVEN = (made.MODEL, made.GATEWAY)


def _bytes(ds: Dataset) -> bytes:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _seg(**changed):
    found = made.segmentation(**changed)
    return seg.compose(found, made.mask(), made.sources(), *GIVEN, made.naming("seg"))


def _sr(found=None, segmented=None, sources=None, **how):
    found = found or made.segmentation()
    sources = sources or made.sources()
    return sr.compose(found, sources, *GIVEN, made.naming("sr"), segmented, **how)


def _summary(found, sources=None, **how):
    grey = np.arange(120, dtype=np.uint8).reshape(10, 12)
    where = (sources or made.sources(), *GIVEN, made.naming("sum"))
    numbers = np.select([made.mask()[2] == 7, made.mask()[2] == 3], [1, 2], 0).astype(np.uint8)
    return summary.compose(found, grey, numbers, *where, **how)


def _items(ds, name):
    found = []
    for item in ds.get("ContentSequence") or []:
        if item.ConceptNameCodeSequence[0].CodeValue == name:
            found.append(item)
        found += _items(item, name)
    return found


def test_derived_uids_are_stable_and_apart():
    assert derived_uid("a", "b") == "2.25.80570676777572633702511940372177902698"
    assert derived_uid("a", "b") != derived_uid("ab", "")
    assert len(derived_uid("x")) <= 64
    assert device_uid("AB" * 32) == device_uid("ab" * 32) != device_uid("ac" * 32)


def test_composing_twice_gives_the_same_bytes():
    first = _seg()
    assert _bytes(first) == _bytes(_seg())
    assert _bytes(_sr(segmented=first)) == _bytes(_sr(segmented=_seg()))
    found = made.segmentation()
    assert _bytes(_summary(found)) == _bytes(_summary(found))


def test_segmentation_holds_the_voxels_under_the_right_numbers():
    ds = pydicom.dcmread(BytesIO(_bytes(_seg())))
    counts = {1: 0, 2: 0}
    frames = ds.pixel_array
    for frame, item in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        counts[number] += int(frame.sum())
    assert counts == {1: 32, 2: 4}
    assert ds.NumberOfFrames == 3
    assert (ds.Rows, ds.Columns) == (made.ROWS, made.COLUMNS)
    assert ds.SegmentSequence[0].TrackingUID == derived_uid("track", "1")
    assert check.faults(ds, made.sources()) == []


def test_one_segment_and_sixteen_bits():
    only = made.segmentation().segments[:1]
    found = made.segmentation(segments=only)
    mask = np.where(made.mask() == 7, 7, 0).astype(np.uint16)
    ds = seg.compose(found, mask, made.sources(), *GIVEN, made.naming("seg"))
    assert places(ds)[1].x0 == 3
    report = _sr(found, ds)
    assert [i.ValueType for i in _items(report, "LAA950")] == ["NUM"]
    assert check.faults(report, [*made.sources(), ds]) == []


@pytest.mark.parametrize("broken", ["order", "shape", "empty", "float", "no segments"])
def test_a_mask_that_does_not_belong_is_refused(broken):
    found, mask, sources = made.segmentation(), made.mask(), made.sources()
    if broken == "order":
        sources.reverse()
    elif broken == "shape":
        mask = mask[:, :-1]
    elif broken == "empty":
        mask = mask * 0
    elif broken == "float":
        mask = mask.astype(np.float32)
    else:
        found = made.segmentation(segments=())
    with pytest.raises(ReportError):
        seg.compose(found, mask, sources, *GIVEN, made.naming("seg"))


def test_places_are_rectangles_on_the_fullest_image():
    place = places(_seg())[1]
    assert place.sop_instance_uid == derived_uid("image", "2")
    assert (place.x0, place.y0, place.x1, place.y1) == (3, 2, 8, 6)
    assert place.polyline()[0].tolist() == place.polyline()[-1].tolist()


def test_report_of_a_segmentation():
    segmented = _seg()
    ds = _sr(segmented=segmented)
    assert check.faults(ds, [*made.sources(), segmented]) == []
    groups = _items(ds, "125007")
    assert [g.ContentTemplateSequence[0].TemplateIdentifier for g in groups] == ["1411", "1411"]
    values = [n.MeasuredValueSequence[0].NumericValue for n in _items(ds, "118565006")]
    assert values == [0.032, 0.004]
    derived = _items(ds, "126011")[0]
    assert "LAA950" in {i.ConceptNameCodeSequence[0].CodeValue for i in derived.ContentSequence}
    assert [u.UID for u in _items(ds, "112040")] == [derived_uid("track", str(k)) for k in (1, 2)]
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99RADSEAL"
    text = sr.as_text(ds)
    assert "Volume: 0.032 mL" in text
    assert "Jürgen" not in text


def test_report_of_statements():
    ds = _sr(made.classification())
    assert check.faults(ds, made.sources()) == []
    certainty = [n.MeasuredValueSequence[0].NumericValue for n in _items(ds, "111012")]
    assert certainty == [10]  # only the calibrated one is a probability
    scores = [n.MeasuredValueSequence[0] for n in _items(ds, "MODEL_SCORE")]
    assert [(s.NumericValue, s.MeasurementUnitsCodeSequence[0].CodeValue) for s in scores] == [
        (0.83, "1")
    ]
    assert "%" not in sr.as_text(ds).partition("Model score")[2].splitlines()[0]
    assert [i.ConceptCodeSequence[0].CodeMeaning for i in _items(ds, "27925004")] == ["Present"]
    where = [i.ContentSequence[0].ReferencedSOPSequence[0] for i in _items(ds, "121112")]
    assert where[0].ReferencedSOPInstanceUID == derived_uid("image", "3")


def test_nothing_found_is_said_as_absent():
    found = made.segmentation(nothing_found=True, measurements=(), statement="No nodule found.")
    ds = _sr(found)
    assert check.faults(ds, made.sources()) == []
    assert [i.ConceptCodeSequence[0].CodeMeaning for i in _items(ds, "39607008")] == ["Absent"]


def test_partial_failure_and_predecessor():
    why = "400 of 412 images came before the time was over; the archive does not answer any more"
    ds = _sr(made.classification(), partial=why)
    assert ds.CompletionFlag == "PARTIAL"
    assert len(ds.CompletionFlagDescription) <= 64
    assert why in sr.as_text(ds)
    earlier = ("1.2.3", "1.2.4", "1.2.5", "1.2.840.10008.5.1.4.1.1.88.34")
    failed = sr.compose_failure(
        "the model ran out of time", made.sources(), *GIVEN, made.naming("f", predecessor=earlier)
    )
    assert check.faults(failed, made.sources()) == []
    assert failed.CompletionFlag == "PARTIAL"
    assert _items(failed, "111065")[0].ConceptCodeSequence[0].CodeMeaning == "Failed"
    assert "Absent" not in sr.as_text(failed)
    study = failed.PredecessorDocumentsSequence[0]
    series = study.ReferencedSeriesSequence[0]
    assert study.StudyInstanceUID == "1.2.5"
    assert series.SeriesInstanceUID == "1.2.3"
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.4"


def test_numbers_that_cannot_be_written_are_refused():
    for wrong in (float("nan"), float("inf")):
        found = made.segmentation(measurements=(Measurement(made.LOW, wrong, made.PERCENT),))
        with pytest.raises(ReportError):
            _sr(found)
    unsure = made.classification()
    too_sure = replace(unsure, qualitative=(replace(unsure.qualitative[0], probability=1.2),))
    with pytest.raises(ReportError):
        _sr(too_sure)


def test_patient_and_study_are_those_of_the_source_in_any_script():
    korean = {"SpecificCharacterSet": ["", "ISO 2022 IR 149"], "PatientName": "Hong^Gil=洪^吉洞"}
    sources = [pydicom.dcmread(BytesIO(_bytes_of_source(s))) for s in made.sources(**korean)]
    for ds in (_sr(sources=sources), _summary(made.segmentation(), sources)):
        copy = pydicom.dcmread(BytesIO(_bytes(ds)))
        assert copy.SpecificCharacterSet == "ISO_IR 192"
        assert str(copy.PatientName) == "Hong^Gil=洪^吉洞"
        assert copy.StudyInstanceUID == sources[0].StudyInstanceUID
        assert (copy.PatientID, copy.StudyDate, copy.AccessionNumber) == ("P-1", "20261124", "A-1")


def _bytes_of_source(ds: Dataset) -> bytes:
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    return _bytes(ds)


def test_values_that_a_scanner_spelled_wrong_do_not_stop_a_result():
    sources = made.sources()
    for source in sources:
        source.add_new("PatientAge", "AS", "42")
        source.add_new("PatientBirthDate", "DA", "1966-01-01")
        source.add_new("PatientSex", "CS", "X")
        source.add_new("PatientWeight", "DS", "0")
        del source.StudyID
    ds = _sr(sources=sources)
    assert "PatientAge" not in ds
    assert ds.PatientBirthDate == ""
    assert ds.PatientSex == "X"
    assert ds.StudyID == ""


def test_times_stand_in_the_zone_of_the_source():
    ds = _sr(sources=made.sources(TimezoneOffsetFromUTC="+0900"))
    assert (ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("190000.250000", "+0900")
    assert ds.ContributingEquipmentSequence[-1].ContributionDateTime.endswith("+0900")
    ds = _sr()
    assert (ds.ContentTime, ds.TimezoneOffsetFromUTC) == ("100000.250000", "+0000")
    local = datetime(2026, 11, 24, 5, 0, tzinfo=timezone(timedelta(hours=-5)))
    named = made.naming("sr", started=local, finished=local.astimezone(UTC))
    ds = sr.compose(made.classification(), made.sources(), *GIVEN, named, None)
    assert (ds.ContentTime[:6], ds.TimezoneOffsetFromUTC) == ("050000", "-0500")
    with pytest.raises(ReportError):
        envelope.dress(
            ds,
            source=made.sources()[0],
            model=GIVEN[0],
            gateway=GIVEN[1],
            naming=made.naming("sr", started=datetime(2026, 1, 1)),  # noqa: DTZ001
            description="x",
        )


def test_the_model_is_the_processing_equipment_of_every_object():
    for ds in (_seg(), _sr(), _summary(made.segmentation())):
        item = ds.ContributingEquipmentSequence[-1]
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
        assert item.DeviceUID == made.MODEL.device_uid
        assert (ds.Manufacturer, ds.DeviceSerialNumber) == ("radseal", "site-1")
        assert "not verified" in ds.SeriesDescription
        assert "highdicom" not in str(ds)


def test_summary_shows_outline_and_words_and_never_the_patient():
    found = made.segmentation(warnings=("The patient's age is unknown.",))
    ds = _summary(found)
    assert check.faults(ds, made.sources()) == []
    assert ds.pixel_array.shape == (512, 512, 3)
    assert (ds.BurnedInAnnotation, ds.ConversionType, ds.Laterality) == ("YES", "WSD", "")
    shown = ds.pixel_array[72:372, 16:304]  # the picture alone, without the rows' marks
    colours = {tuple(c) for c in shown.reshape(-1, 3).tolist()}
    assert {s.color for s in found.segments} <= colours
    other = made.sources(PatientName="Other^Name", PatientID="P-2", PatientBirthDate="19700101")
    assert _summary(found, other).PixelData == ds.PixelData


def test_summary_without_a_picture_with_many_rows_and_of_a_failure():
    sources, named = made.sources(), made.naming("sum")
    base = made.segmentation()
    many = tuple(
        replace(base.segments[0], number=k, index=k, label=f"Länge {k} ≥ 3 mm³ {'x' * 40}")
        for k in range(1, 31)
    )
    rows = tuple(Measurement(made.LOW, 10.0**k, made.PERCENT, k) for k in range(1, 31))
    found = made.segmentation(segments=many, measurements=rows, statement="word " * 200)
    first = summary.compose(found, None, None, sources, *GIVEN, named)
    second = summary.compose(None, None, None, sources, *GIVEN, named, failure="out of time")
    assert first.PixelData != second.PixelData
    with pytest.raises(ReportError):
        summary.compose(None, None, None, sources, *GIVEN, named)
    with pytest.raises(ReportError):
        summary.compose(
            found, np.zeros((4, 4), np.uint8), np.zeros((3, 4), np.uint8), sources, *GIVEN, named
        )


def test_numbers_as_a_person_reads_them():
    shown = [plain_number(v) for v in (14926.1, 842.4, -86.04, 3.214, 0.0)]
    assert shown == ["14,926", "842", "-86.0", "3.21", "0.00"]


def _without(item, name):
    item.ContentSequence = [
        c for c in item.ContentSequence if c.ConceptNameCodeSequence[0].CodeValue != name
    ]


def _group(ds):
    return _items(ds, "125007")[0]


BREAKS = {
    "no template id": lambda ds: ds.pop("ContentTemplateSequence"),
    "title": lambda ds: setattr(ds.ConceptNameCodeSequence[0], "CodeValue", "126001"),
    "title meaning": lambda ds: setattr(ds.ConceptNameCodeSequence[0], "CodeMeaning", "Report"),
    "no sections": lambda ds: [_without(ds, n) for n in ("126010", "126011", "C0034375")],
    "no observer": lambda ds: _without(ds, "121012"),
    "no tracking uid": lambda ds: _without(_group(ds), "112040"),
    "no finding": lambda ds: _without(_group(ds), "121071"),
    "no version": lambda ds: _without(_group(ds), "111003"),
    "no coordinates": lambda ds: _without(_group(ds), "121112"),
    "no source series": lambda ds: _without(_group(ds), "121232"),
    "no name": lambda ds: _group(ds).ContentSequence[-1].pop("ConceptNameCodeSequence"),
    "evidence": lambda ds: ds.pop("CurrentRequestedProcedureEvidenceSequence"),
    "verified": lambda ds: setattr(ds, "VerificationFlag", "VERIFIED"),
    "other study": lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"),
    "device uid": lambda ds: setattr(ds.ContributingEquipmentSequence[-1], "DeviceUID", "1.2.3"),
    "no equipment": lambda ds: ds.pop("ContributingEquipmentSequence"),
    "same tracking uid": lambda ds: setattr(
        _items(ds, "112040")[0], "UID", _items(ds, "112040")[1].UID
    ),
    "tracking uid is text": lambda ds: setattr(_items(ds, "112040")[0], "UID", "x"),
    "unit": lambda ds: setattr(
        _items(ds, "118565006")[0].MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
        "CodingSchemeDesignator",
        "99X",
    ),
    "open outline": lambda ds: setattr(
        _items(ds, "121112")[0], "GraphicData", [0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    ),
    "empty number": lambda ds: setattr(_items(ds, "118565006")[0], "MeasuredValueSequence", []),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_the_gate_catches(name):
    segmented = _seg()
    ds = pydicom.dcmread(BytesIO(_bytes(_sr(segmented=segmented))))
    evidence = [*made.sources(), segmented]
    assert check.faults(ds, evidence) == []
    BREAKS[name](ds)
    assert check.faults(ds, evidence) != []


def test_the_gate_catches_a_segmentation_without_names():
    for keyword in ("TrackingUID", "RecommendedDisplayCIELabValue"):
        ds = _seg()
        del ds.SegmentSequence[0][keyword]
        assert check.faults(ds, made.sources()) != []
    ds = _seg()
    ds.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion = "2"
    assert check.faults(ds, made.sources()) != []


def test_any_report_can_be_read_as_text():
    item = Dataset()
    item.ValueType, item.RelationshipType = "NUM", "CONTAINS"
    ds = Dataset()
    ds.ContentSequence = [item, Dataset()]
    assert sr.as_text(ds).startswith("Structured report")
    assert sr.as_text(Dataset()) == "Structured report ()\n"
