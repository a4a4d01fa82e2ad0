"""Any byte of a stamped file may be changed: it is noticed, or it says nothing."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from bridge.audit.file import verify_file
from bridge.errors import RadsealError
from bridge.report import receipt
from ledger.policy import of_keys

TESTS = Path(__file__).resolve().parents[1]
SAYS_HOW = {0x00080005, 0x4FFE0001, 0xFFFCFFFC}  # how it is spelled, signatures, padding


def _by_path(name: str) -> Any:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def paper():
    with tempfile.TemporaryDirectory() as folder:
        yield _by_path("paper_results").PaperResults(Path(folder))


def seen(ds: Dataset) -> dict[int, Any]:
    """What a reader sees: every element but those that the content leaves out."""
    return {
        int(element.tag): _value(element.value)
        if element.keyword != "PixelData"
        else ds.pixel_array.tobytes()  # not the byte that pads it
        for element in ds
        if element.tag not in SAYS_HOW and element.tag.group != 0xFFFA and element.tag.element
    }


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return value.rstrip(" \0")
    if isinstance(value, Sequence):
        return [seen(item) for item in value]
    if isinstance(value, MultiValue | list):
        return [_value(one) for one in value]
    return value if isinstance(value, bytes) else str(value).strip(" \0")


@given(data=st.data(), kind=st.sampled_from(["sr", "seg"]))
def test_a_changed_byte_is_noticed_or_says_nothing(paper, data, kind):
    whole = bytearray(paper.stamped[kind])
    start = 144 + int.from_bytes(whole[140:144], "little")
    place = data.draw(st.integers(start, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    assert bytes(whole) != paper.stamped[kind]
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(whole)
        file.flush()
        try:
            report = verify_file(Path(file.name), of_keys(paper.vkeys))
        except RadsealError:
            return
    before, after = (dcmread(BytesIO(one)) for one in (paper.stamped[kind], bytes(whole)))
    differ = {tag for tag in seen(before) if seen(before)[tag] != seen(after).get(tag)}
    assert {before[tag].keyword for tag in differ} == set(report.changed)
    assert set(seen(before)) == set(seen(after))


@given(st.binary(max_size=2000))
def test_whatever_stands_in_the_block_is_an_error_in_words(paper, rubbish):
    ds = dcmread(BytesIO(paper.stamped["sr"]))
    for low in (0x1001, 0x1002, 0x1010):
        other = dcmread(BytesIO(paper.stamped["sr"]))
        other[0x0099, low].value = rubbish
        if other[0x0099, low].value != ds[0x0099, low].value:
            with pytest.raises(RadsealError):
                receipt.read(other)


@given(cut=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["sr", "seg", "summary"]))
def test_a_truncated_file_is_never_accepted(paper, cut, kind):
    data = paper.stamped[kind]
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(data[: int(len(data) * cut)])
        file.flush()
        with pytest.raises(RadsealError):
            verify_file(Path(file.name), of_keys(paper.vkeys))
