"""The content digest: vectors, and what may happen to a file without changing it."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from bridge.audit.part10 import frames_in_child
from bridge.report import content
from bridge.report.errors import ContentError

TESTS = Path(__file__).resolve().parents[2]
VECTORS = sorted((TESTS / "vectors" / "content_digest").glob("*.json"))


def _read(ds: Dataset, **how: object) -> Dataset:
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True, **how)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


@pytest.fixture(scope="module")
def objects(results) -> dict[str, Dataset]:
    return results.composed()


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path):
    vector = json.loads(path.read_text("utf-8"))
    ds = Dataset.from_json(vector["dataset"])
    if vector.get("refused"):
        with pytest.raises(ContentError):
            content.content_digest(ds)
        return
    stream = b"".join(content.canonical_stream(ds))
    assert stream.hex() == vector["stream"]
    assert hashlib.sha256(stream).hexdigest() == vector["sha256"]
    assert content.content_digest(ds) == bytes.fromhex(vector["sha256"])


def test_vectors_are_there_and_planes_equal_pixels():
    assert len(VECTORS) >= 10
    named = {p.stem: json.loads(p.read_text("utf-8")) for p in VECTORS}
    assert named["colour"]["stream"] == named["planes"]["stream"]


def test_a_stream_by_hand():
    ds = Dataset()
    ds.SOPInstanceUID = "1.2"
    ds.Rows = 258
    item = Dataset()
    item.CodeValue = "é "
    ds.ConceptNameCodeSequence = [item]
    inner = b"\x08\x00\x00\x01SH\x02\x00\x00\x00" + "é".encode()
    expected = (
        b"\x08\x00\x18\x00UI\x03\x00\x00\x001.2"
        + b"\x28\x00\x10\x00US\x02\x00\x00\x00\x02\x01"
        + b"\x40\x00\x43\xa0SQ\x14\x00\x00\x00"
        + b"\x01\x00\x00\x00\x0c\x00\x00\x00"
        + inner
    )
    assert b"".join(content.canonical_stream(ds)) == expected


@pytest.mark.parametrize("kind", ["seg", "sr", "summary"])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_survives_another_transfer_syntax(objects, kind, syntax):
    ds = objects[kind]
    digest = content.content_digest(ds)
    copy = _read(ds)
    assert content.content_digest(copy) == digest
    copy.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    again = _read(copy, implicit_vr=implicit, little_endian=True)
    assert again.file_meta.TransferSyntaxUID == syntax
    assert content.content_digest(again) == digest


def test_survives_rle_and_back(objects):
    ds = _read(objects["summary"])
    digest = content.content_digest(ds)
    ds.compress(RLELossless, generate_instance_uid=False)
    assert ds.file_meta.TransferSyntaxUID == RLELossless
    packed = _read(ds)
    assert content.content_digest(packed, frames_in_child) == digest
    with pytest.raises(ContentError, match="nobody was named"):
        content.content_digest(packed)
    packed.decompress(generate_instance_uid=False)
    assert content.content_digest(_read(packed)) == digest


@pytest.mark.parametrize("kind", ["seg", "sr", "summary"])
def test_coercion_is_seen_in_the_attributes_only(objects, kind):
    ds = _read(objects[kind])
    digest, before = content.content_digest(ds), content.attribute_digests(ds)
    ds.PatientID = "P-1-corrected"
    ds.SpecificCharacterSet = "ISO_IR 100"
    copy = _read(ds)
    after = content.attribute_digests(copy)
    assert content.content_digest(copy) == digest
    assert {tag for tag in before if before[tag] != after[tag]} == {"00100020"}
    assert after["00100010"] == "Müller^Jürgen".encode()


def test_every_other_change_is_seen(objects):
    digest = content.content_digest(objects["sr"])
    for keyword, value in (
        ("StudyInstanceUID", "1.2.3"),
        ("CompletionFlag", "PARTIAL"),
        ("ContentTime", "100001"),
        ("RetrieveAETitle", "PACS"),
    ):
        ds = _read(objects["sr"])
        setattr(ds, keyword, value)
        assert content.content_digest(ds) != digest, keyword
    ds = _read(objects["seg"])
    ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    assert content.content_digest(ds) != content.content_digest(objects["seg"])


def test_the_receipt_block_changes_nothing_and_others_are_refused(objects):
    ds = _read(objects["sr"])
    digest = content.content_digest(ds)
    block = ds.private_block(0x0099, "RADSEAL RECEIPT", create=True)
    block.add_new(0x01, "OB", bytes(32))
    block.add_new(0x10, "UT", "a proof")
    assert content.content_digest(_read(ds)) == digest
    ds.private_block(0x0099, "SOMEBODY", create=True).add_new(0x01, "LO", "x")
    with pytest.raises(ContentError, match="0099"):
        content.content_digest(ds)


def test_hidden_elements_are_refused(objects):
    ds = _read(objects["sr"])
    ds.ContentSequence[0].add_new(0x00110010, "LO", "SOMEBODY")
    with pytest.raises(ContentError):
        content.content_digest(ds)
    ds = _read(objects["seg"])
    ds.PixelData = ds.PixelData[:4]
    with pytest.raises(ContentError, match="shorter"):
        content.content_digest(ds)
    ds = _read(objects["seg"])
    ds.PixelData += b"ab"
    with pytest.raises(ContentError, match="longer"):
        content.content_digest(ds)


def test_pixels_that_do_not_decode_are_refused(objects):
    ds = _read(objects["summary"])
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.PixelData = ds.PixelData[:16] + b"\xff" * (len(ds.PixelData) - 16)
    with pytest.raises(ContentError, match="does not decode"):
        content.content_digest(ds, frames_in_child)
