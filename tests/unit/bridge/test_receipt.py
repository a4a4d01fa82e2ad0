"""bridge.report.receipt: what is inserted, and what may come back from an archive."""

from __future__ import annotations

import hashlib
import json
import struct
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from bridge.report import content, receipt
from bridge.report.errors import ReceiptError, ReportError

KEY = bytes(range(32))
PROOFS = ("a proof\n", "another\n\n")
VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "receipt_block"


@pytest.fixture(scope="module")
def plain(results):
    return results.encoded(results.composed()["sr"])


def read(data: bytes) -> Dataset:
    return dcmread(BytesIO(data))


def hop(data: bytes) -> Dataset:
    """What an archive gives back that does not know the block and keeps Implicit VR."""
    ds, buffer = read(data), BytesIO()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.save_as(buffer, enforce_file_format=True, implicit_vr=True, little_endian=True)
    return read(buffer.getvalue())


@pytest.mark.parametrize("kind", ["seg", "sr", "summary"])
def test_every_other_byte_stays(results, kind):
    before = results.encoded(results.composed()[kind])
    after = receipt.insert(before, KEY, PROOFS)
    more = len(after) - len(before)
    differ = (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
    place = next(differ, len(before))
    assert before == after[:place] + after[place + more :]
    tags = list(read(after).keys())
    assert tags == sorted(tags)
    assert set(tags) - set(read(before).keys()) == {
        Tag(0x0099, low) for low in (0x10, 0x1001, 0x1002, 0x1010, 0x1011)
    }
    assert content.content_digest(read(after)) == content.content_digest(read(before))


def test_what_was_inserted_is_read(plain):
    ds = read(receipt.insert(plain, KEY, PROOFS))
    assert receipt.read(ds) == receipt.Receipt(KEY, PROOFS)
    assert [len(ds[0x0099, low].value) for low in (0x1010, 0x1011)] == [8, 10]


def test_the_digest_is_what_the_docstring_says(plain):
    ds = read(receipt.insert(plain, KEY, PROOFS))
    text = b"".join(
        struct.pack("<BL", low, len(value)) + value
        for low, value in ((1, KEY), (0x10, PROOFS[0].encode()), (0x11, PROOFS[1].encode()))
    )
    assert ds[0x0099, 0x1002].value == hashlib.sha256(text).digest()


def test_it_comes_back_as_un_and_is_read(plain):
    ds = hop(receipt.insert(plain, KEY, PROOFS))
    assert ds[0x0099, 0x1001].VR == "UN"
    assert receipt.read(ds) == receipt.Receipt(KEY, PROOFS)
    again = BytesIO()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(again, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert receipt.read(read(again.getvalue())) == receipt.Receipt(KEY, PROOFS)


@pytest.mark.parametrize("block", [0x11, 0xFF])
def test_an_archive_may_move_the_block(plain, block):
    ds = read(receipt.insert(plain, KEY, PROOFS))
    moved = Dataset()
    for tag in [tag for tag in ds.keys() if tag.group == 0x0099]:  # noqa: SIM118
        low = tag.element
        low = block if low < 0x100 else block << 8 | low & 0xFF
        moved.add_new((0x0099, low), ds[tag].VR, ds[tag].value)
    assert receipt.read(moved) == receipt.Receipt(KEY, PROOFS)
    assert content.content_digest(moved) == content.content_digest(Dataset())


def test_as_many_proofs_as_fit(plain):
    proofs = tuple(f"{n}\n" for n in range(receipt.MOST_PROOFS))
    assert receipt.read(read(receipt.insert(plain, KEY, proofs))).proofs == proofs
    for wrong in ((), (*proofs, "x")):
        with pytest.raises(ReportError, match="1 to 240"):
            receipt.insert(plain, KEY, wrong)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_has_32_bytes(plain, length):
    with pytest.raises(ReportError, match="exactly 32"):
        receipt.insert(plain, bytes(length), PROOFS)


def test_only_an_object_as_composed_is_stamped(plain):
    with pytest.raises(ReportError, match="already"):
        receipt.insert(receipt.insert(plain, KEY, PROOFS), KEY, PROOFS)
    buffer = BytesIO()
    hop(plain).save_as(buffer, enforce_file_format=True)
    with pytest.raises(ReportError, match="explicit"):
        receipt.insert(buffer.getvalue(), KEY, PROOFS)


def spoilt(plain, change) -> Dataset:
    ds = read(receipt.insert(plain, KEY, PROOFS))
    change(ds)
    return ds


def _put(tag: int, value: bytes | str, vr: str = "OB"):
    return lambda ds: ds.add_new((0x0099, tag), vr, value)


def _drop(tag: int):
    return lambda ds: ds.__delitem__((0x0099, tag))


def _all_again(ds: Dataset) -> None:
    for tag in [t for t in ds.keys() if t.group == 0x0099 and t.element > 0x100]:  # noqa: SIM118
        ds.add_new((0x0099, 0x1100 | tag.element & 0xFF), "OB", ds[tag].value)
    _put(0x0011, "RADSEAL RECEIPT", "LO")(ds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ds: ds.__delitem__(slice(Tag(0x0099, 0), Tag(0x0100, 0))), "no receipt"),
        (_drop(0x0010), "no receipt"),
        (_put(0x0010, "SOMEBODY", "LO"), "0010. is not of the receipt"),
        (_put(0x0010, "RADSEAL RECEIPTS", "LO"), "0010. is not of the receipt"),
        (_put(0x0011, "SOMEBODY", "LO"), "0011. is not of the receipt"),
        (_put(0x0009, "SOMEBODY", "LO"), "0009. is not of the receipt"),
        (_all_again, "two receipt blocks"),
        (_put(0x1110, b"ab"), "1110. is not of the receipt"),
        (_put(0x1003, b"ab"), "xx03. is unknown"),
        (_put(0x1013, b"ab"), "xx13. is unknown"),
        (_drop(0x1010), "xx11. is unknown"),
        (_drop(0x1001), "xx01. must be exactly 32"),
        (_put(0x1001, KEY[:30]), "xx01. must be exactly 32"),
        (_put(0x1001, KEY + b"\0\0"), "xx01. must be exactly 32"),
        (_drop(0x1002), "xx02. must be exactly 32"),
        (_put(0x1001, bytes(32)), "damaged"),
        (_put(0x1002, bytes(32)), "damaged"),
        (_put(0x1010, b"a proof!"), "damaged"),
        (_put(0x1012, b"ab"), "damaged"),
        (_drop(0x1011), "damaged"),
        (_put(0x1010, b"a proof\0\0\0"), "no text"),
        (_put(0x1010, b"a proof\n\0\0"), "no text"),
        (_put(0x1010, b"a \0roof\n"), "no text"),
        (_put(0x1010, b"a \xffroof\n"), "no text"),
        (_put(0x1010, b""), "no text"),
        (_put(0x1010, b"a proof"), "7 bytes"),
        (_put(0x1010, b"x" * ((1 << 20) + 2)), "1048578 bytes"),
        (_put(0x1010, "a proof\n", "UT"), "neither OB nor UN"),
        (_put(0x1010, [Dataset()], "SQ"), "neither OB nor UN"),
    ],
)
def test_what_is_refused(plain, change, words):
    with pytest.raises(ReceiptError, match=words):
        receipt.read(spoilt(plain, change))


def test_no_proofs_at_all():
    ds = Dataset()
    _put(0x0010, "RADSEAL RECEIPT", "LO")(ds)
    _put(0x1001, KEY)(ds)
    _put(0x1002, receipt.Receipt(KEY, ()).digest())(ds)
    with pytest.raises(ReceiptError, match="holds no proof"):
        receipt.read(ds)


def test_a_group_length_says_nothing(plain):
    assert receipt.read(spoilt(plain, _put(0x0000, 4, "UL"))) == receipt.Receipt(KEY, PROOFS)


def test_vector():
    vector = json.loads((VECTORS / "block.json").read_text("utf-8"))
    plain = (VECTORS / "composed.dcm").read_bytes()
    stamped = (VECTORS / "stamped.dcm").read_bytes()
    proofs = vector["proofs"]
    assert receipt.insert(plain, bytes.fromhex(vector["key"]), proofs) == stamped
    found = receipt.read(read(stamped))
    assert found.digest().hex() == vector["digest"]
    assert list(found.proofs) == proofs
    assert receipt.read(read((VECTORS / "implicit.dcm").read_bytes())) == found
