"""The signed bytes of tlog-cosignature, written out by hand."""

from __future__ import annotations

import pytest

from ledger import cosignature
from ledger.checkpoint import Checkpoint
from ledger.errors import MalformedCheckpoint, MalformedNote

TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"


def test_the_ed25519_message_is_the_one_of_the_specification():
    assert cosignature.ed25519_message(TEXT, 1679315147) == (
        b"cosignature/v1\ntime 1679315147\n" + TEXT.encode()
    )


def test_the_mldsa44_message_is_the_structure_of_the_specification():
    root = Checkpoint.parse(TEXT).root
    assert cosignature.mldsa44_message("w.example", TEXT, 1679315147) == (
        b"subtree/v1\n\0" + b"\x09w.example" + (1679315147).to_bytes(8, "big")
        + b"\x1bexample.com/behind-the-sofa" + bytes(8) + (20852163).to_bytes(8, "big") + root
    )  # fmt: skip


def test_only_a_checkpoint_can_be_signed_so():
    with pytest.raises(MalformedCheckpoint):
        cosignature.mldsa44_message("w", "text\n", 0)
    with pytest.raises(MalformedNote):
        cosignature.mldsa44_message("w" * 256, TEXT, 0)


def test_payloads():
    assert cosignature.unpack(cosignature.pack(7, b"s" * 64), 64) == (7, b"s" * 64)
    for bad in (b"", b"s" * 71, b"s" * 73, b"\x80" + b"s" * 71):
        with pytest.raises(MalformedNote):
            cosignature.unpack(bad, 64)
