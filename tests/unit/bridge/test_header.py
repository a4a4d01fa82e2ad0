"""bridge.header: hostile bytes in, an Instance or BadInstance out."""

from __future__ import annotations

import struct
import zlib

import pytest
from bench import changed, images
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from bridge.errors import BadInstance
from bridge.files import arrival_name
from bridge.header import dataset_of, read_header, read_instance, same_pixel_bytes

KEYWORDS = ("Modality", "SliceThickness", "ImageType", "SeriesNumber", "PixelSpacing")


def write(folder, dataset, ae="CT1"):
    path = folder / f"{arrival_name(1_700_000_000_000_000_000, 7, 3, ae)}.dcm"
    if isinstance(dataset, bytes):
        path.write_bytes(dataset)
    else:
        dataset.save_as(path, enforce_file_format=True)
    return path


def read(folder, dataset, ae="CT1"):
    return read_instance(
        write(folder, dataset, ae), KEYWORDS, lambda calling: f"issuer of {calling}"
    )


def one(**tags):
    return images(1, **tags)[0]


def test_an_image_is_read(tmp_path):
    found = read(tmp_path, one())
    assert found.patient.patient_id == "A-1"
    assert found.patient.issuer == "GH"
    assert found.calling_ae == "CT1"
    assert found.modality == "CT"
    assert found.received_at.timestamp() == 1_700_000_000
    assert found.attributes["SliceThickness"] == 3.0
    assert found.attributes["ImageType"] == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert found.attributes["SeriesNumber"] == 2
    assert found.attributes["AgeYears"] == pytest.approx(68.6, abs=0.1)
    assert not found.own


def test_the_issuer_is_asked_where_the_image_names_none(tmp_path):
    assert read(tmp_path, one(IssuerOfPatientID=None), "XY").patient.issuer == "issuer of XY"


def test_the_digest_is_over_the_dataset_alone(tmp_path):
    first = one()
    other = changed(first)
    other.file_meta.ImplementationVersionName = "OTHER"
    a, b = read(tmp_path, first), read(tmp_path, other)
    assert a.dataset_sha256 == b.dataset_sha256
    assert read(tmp_path, changed(first, PatientID="A-2")).dataset_sha256 != a.dataset_sha256


@pytest.mark.parametrize(
    ("tags", "years"),
    [
        ({"PatientBirthDate": "20000101", "StudyDate": "20260101"}, 26.0),
        ({"PatientBirthDate": "", "PatientAge": "042Y"}, 42.0),
        ({"PatientBirthDate": "", "PatientAge": "006M"}, 0.5),
        ({"PatientBirthDate": "20300101", "PatientAge": "042Y"}, None),  # born later
        ({"PatientBirthDate": "", "PatientAge": "42"}, None),
        ({"PatientBirthDate": "", "PatientAge": "²²²Y"}, None),
        ({"PatientBirthDate": "rubbish", "PatientAge": "xxxY"}, None),
    ],
)
def test_age_comes_from_the_dates_first_and_never_stops_anything(tmp_path, tags, years):
    age = read(tmp_path, one(**tags)).attributes["AgeYears"]
    assert age is None if years is None else age == pytest.approx(years, abs=0.05)


@pytest.mark.parametrize("padding", ["A-1 ", " A-1", "A-1\0", "A-1 \0"])
def test_ids_are_trimmed(tmp_path, padding):
    assert read(tmp_path, one(PatientID=padding)).patient.patient_id == "A-1"


@pytest.mark.parametrize(
    ("tag", "code"),
    [("SOPInstanceUID", "missing"), ("StudyInstanceUID", "missing"), ("SOPClassUID", "missing")],
)
def test_a_missing_uid_is_named(tmp_path, tag, code):
    dataset = one()
    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2", "1.3"
    setattr(dataset, tag, "")
    with pytest.raises(BadInstance) as bad:
        read(tmp_path, dataset)
    assert bad.value.code == code
    assert tag in str(bad.value)


@pytest.mark.parametrize("uid", ["1.2/../3", "abc", "1.2\\1.3", "1." + "2" * 64])
def test_what_is_no_uid_is_refused_without_repeating_it(tmp_path, uid):
    with pytest.raises(BadInstance) as bad:
        read(tmp_path, one(StudyInstanceUID=uid))
    assert uid not in str(bad.value)


def test_a_uid_with_leading_zeros_is_kept_as_sent(tmp_path):
    assert read(tmp_path, one(StudyInstanceUID="1.2.003")).study_instance_uid == "1.2.003"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "not_dicom"),
        (b"\0" * 132, "not_dicom"),
        (b"\0" * 128 + b"DICM", "not_dicom"),
        (b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + struct.pack("<L", 0xFFFFFFF0), "empty"),
    ],
)
def test_what_is_no_dicom_is_refused(tmp_path, data, code):
    with pytest.raises(BadInstance) as bad:
        read(tmp_path, data)
    assert bad.value.code == code


def attempt(folder, data: bytes) -> tuple[str, str]:
    try:
        read(folder, data)
    except BadInstance as bad:
        return bad.code, str(bad)
    return "read", ""


def test_every_truncation_is_an_instance_or_a_fault(tmp_path):
    """However a file is cut off, nothing but BadInstance comes out."""
    whole = write(tmp_path, one()).read_bytes()
    outcomes = set()
    for length in range(0, len(whole), 37):
        outcome, words = attempt(tmp_path, whole[:length])
        outcomes.add(outcome)
        assert "Alpha" not in words
    assert {"read", "not_dicom"} <= outcomes


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_every_flipped_byte_is_an_instance_or_a_fault(tmp_path):
    whole = write(tmp_path, one()).read_bytes()
    for place in range(0, 1600, 3):
        data = bytearray(whole)
        data[place] ^= 0xFF
        assert "Alpha" not in attempt(tmp_path, bytes(data))[1]


def deflated(dataset_bytes: bytes) -> bytes:
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    meta = Dataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    uid = DeflatedExplicitVRLittleEndian.encode() + b"\0"
    element = b"\2\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    head = b"\2\0\0\0UL\4\0" + struct.pack("<L", len(element)) + element
    return b"\0" * 128 + b"DICM" + head + squeeze.compress(dataset_bytes) + squeeze.flush()


def test_a_deflated_dataset_is_read(tmp_path):
    path = write(tmp_path, one())
    data = path.read_bytes()
    start = 144 + struct.unpack("<L", data[140:144])[0]
    found = read(tmp_path, deflated(data[start:]))
    assert found.patient.patient_id == "A-1"
    assert found.transfer_syntax_uid == DeflatedExplicitVRLittleEndian


def test_a_deflate_bomb_is_a_sentence(tmp_path):
    bomb = b"\x08\x00\x05\x00CS\x02\x00  " + b"\0" * (600 * 1024 * 1024)
    with pytest.raises(BadInstance) as bad:
        read(tmp_path, deflated(bomb))
    assert bad.value.code == "bomb"


def test_our_own_results_are_known(tmp_path):
    item = Dataset()
    item.ContributionDescription = "CT lung density 1.0 run by radseal 0.1.0"
    assert read(tmp_path, one(ContributingEquipmentSequence=[item])).own
    item.ContributionDescription = "reconstruction"
    assert not read(tmp_path, one(ContributingEquipmentSequence=[item])).own


def test_values_are_plain_json(tmp_path):
    path = write(tmp_path, one(SliceThickness="1e999", PixelSpacing=["0.5", "nan"]))
    values = read_header(dataset_of(path), ["SliceThickness", "PixelSpacing", "PixelData", "Rows"])
    assert values["SliceThickness"] is None
    assert values["PixelSpacing"] == [0.5, None]
    assert "PixelData" not in values
    assert type(values["Rows"]) is int


def test_a_repr_shows_no_patient(tmp_path):
    shown = repr(read(tmp_path, one()))
    assert "Alpha" not in shown
    assert "A-1" not in shown
    assert "ACC-1" not in shown


def test_pixels_are_the_same_whatever_the_header_says_of_the_patient(tmp_path):
    (tmp_path / "other").mkdir()
    mine, first = one(), write(tmp_path, one())
    corrected = changed(mine, PatientID="B-2-of-another-length", StudyDescription="new")
    assert same_pixel_bytes(first, write(tmp_path / "other", corrected))


@pytest.mark.parametrize(
    "change",
    [
        {"PixelData": b"\1" * 512},
        {"PixelData": b"\0" * 510},
        {"Rows": 8, "Columns": 32},
        {"PixelRepresentation": 1},
        {"DataSetTrailingPadding": b"\0" * 8},
    ],
)
def test_pixels_that_could_be_others_are_not_called_the_same(tmp_path, change):
    (tmp_path / "other").mkdir()
    first = write(tmp_path, one())
    assert not same_pixel_bytes(first, write(tmp_path / "other", changed(one(), **change)))


def test_deflated_pixels_are_not_compared_by_their_bytes(tmp_path):
    data = write(tmp_path, one()).read_bytes()
    path = write(tmp_path, deflated(data[144 + struct.unpack("<L", data[140:144])[0] :]))
    assert not same_pixel_bytes(path, path)


def test_what_cannot_be_read_is_not_called_the_same(tmp_path):
    path = write(tmp_path, b"nothing of DICOM")
    assert not same_pixel_bytes(path, path)
    assert not same_pixel_bytes(path, tmp_path / "absent.dcm")
