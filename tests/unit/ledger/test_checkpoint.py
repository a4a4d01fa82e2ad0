"""A checkpoint has one spelling."""

from __future__ import annotations

import base64

import pytest

from ledger.checkpoint import Checkpoint, valid_origin
from ledger.errors import MalformedCheckpoint
from ledger.merkle import EMPTY

ROOT = base64.b64encode(b"r" * 32).decode()
TEXT = f"example.org/log\n17\n{ROOT}\n"


def test_parse_is_the_inverse_of_str():
    found = Checkpoint.parse(TEXT)
    assert found == Checkpoint("example.org/log", 17, b"r" * 32)
    assert str(found) == TEXT


@pytest.mark.parametrize(
    "text",
    [
        "", TEXT[:-1], TEXT + "\n", TEXT + "extension\n", TEXT.replace("\n", "\r\n"),
        TEXT.replace("17", "017"), TEXT.replace("17", "+17"), TEXT.replace("17", "1_7"),
        TEXT.replace("17", " 17"), TEXT.replace("17", "-1"), TEXT.replace("17", str(1 << 63)),
        TEXT.replace("17", "１７"), TEXT.replace("17", "x"), TEXT.replace(ROOT, ROOT[:-4]),
        TEXT.replace(ROOT, ROOT.rstrip("=")), TEXT.replace(ROOT, "!" + ROOT),
        TEXT.replace(ROOT, base64.b64encode(b"short").decode()),
        TEXT.replace("example.org/log", ""), TEXT.replace("example.org/log", "a b"),
        TEXT.replace("example.org/log", "a+b"), TEXT.replace("17", "0"),
    ],
)  # fmt: skip
def test_every_other_spelling_is_refused(text):
    with pytest.raises(MalformedCheckpoint):
        Checkpoint.parse(text)


def test_an_empty_log_has_the_root_of_nothing():
    assert Checkpoint.parse(str(Checkpoint("o", 0, EMPTY))).size == 0


def test_origins():
    assert valid_origin("ledger.example.org/radiology")
    assert not any(valid_origin(bad) for bad in ("", "a b", "a+b", "a\tb", "a\u2003b", "a\nb"))
