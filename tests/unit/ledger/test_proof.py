"""tlog-proof has one spelling."""

from __future__ import annotations

import base64
import hashlib

import pytest

from ledger.errors import MalformedProof
from ledger.proof import Proof

H1, H2 = (hashlib.sha256(text).digest() for text in (b"hash1", b"hash2"))


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (
            Proof(None, 5, (H1, H2), "test checkpoint\n"),
            f"c2sp.org/tlog-proof@v1\nindex 5\n{base64.b64encode(H1).decode()}\n"
            f"{base64.b64encode(H2).decode()}\n\ntest checkpoint\n",
        ),
        (
            Proof(b"extra information", 0, (), "checkpoint\n"),
            "c2sp.org/tlog-proof@v1\nextra ZXh0cmEgaW5mb3JtYXRpb24=\nindex 0\n\ncheckpoint\n",
        ),
    ],
)
def test_parse_is_the_inverse_of_str(proof, text):
    assert str(proof) == text
    assert Proof.parse(text) == proof


GOOD = str(Proof(b"x", 5, (H1,), "o\n1\n\n— sig\n"))


@pytest.mark.parametrize(
    "text",
    [
        "", "c2sp.org/tlog-proof@v1\n", GOOD.replace("@v1", "@v2"),
        GOOD.replace("index 5", "index 05"), GOOD.replace("index 5", "index -5"),
        GOOD.replace("index 5", "index +5"), GOOD.replace("index 5", "Index 5"),
        GOOD.replace("index 5", "index 5 "), GOOD.replace("index 5\n", ""),
        GOOD.replace("index 5", f"index {1 << 63}"), GOOD.replace("extra ", "extra  "),
        GOOD.replace("extra eA==", "extra eA"), GOOD[1:],
        GOOD.replace(base64.b64encode(H1).decode(), "AAAA"), GOOD.replace("\n", "\r\n"),
        str(Proof(None, 0, (H1,) * 64, "o\n")),
    ],
)  # fmt: skip
def test_every_other_spelling_is_refused(text):
    with pytest.raises(MalformedProof):
        Proof.parse(text)
