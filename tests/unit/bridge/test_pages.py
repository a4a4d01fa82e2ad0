"""The few words that templates use."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import JPEGBaseline8Bit

from bridge.errors import NotFound, Refused
from bridge.web import pages, picture


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Doe^John", "Doe, John"),
        ("Doe^John^Q^Dr", "Doe, John Q"),
        ("Doe", "Doe"),
        ("^John", "John"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou · 山田, 太郎 · やまだ, たろう"),
        ("=山田^太郎", "山田, 太郎"),
        ("", ""),
        ("^^^^", ""),
    ],
)
def test_person_names_for_people(written, read):
    assert pages.person(written) == read


def test_times_dates_and_sizes():
    at = datetime(2026, 11, 24, 11, 0, 3, 123456, tzinfo=timezone(timedelta(hours=1)))
    assert pages.iso(at) == "2026-11-24T10:00:03.123Z"
    assert pages.stamp(at) == "2026-11-24 10:00:03 UTC"
    assert pages.dicom_date("20261124") == "2026-11-24"
    assert pages.dicom_date("2026.11.24") == "2026.11.24"
    assert [pages.size(n) for n in (7, 18_422, 787_230, 2_500_000)] == [
        "7 B", "18 kB", "787 kB", "2.5 MB",
    ]  # fmt: skip


def test_facts_that_went_wrong_are_told_apart():
    assert pages.tone("inference.failed") == "bad"
    assert pages.tone("deny") == "warn"
    assert pages.tone("inference.completed") == ""


def test_only_a_plain_picture_is_opened(tmp_path):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "2.25.1"
    ds.save_as(tmp_path / "one.dcm", enforce_file_format=True)
    with pytest.raises(Refused):
        picture.png(tmp_path / "one.dcm")
    with pytest.raises(NotFound):
        picture.png(tmp_path / "gone.dcm")
