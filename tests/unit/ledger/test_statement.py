"""ledger.statement: what is signed stands for all that a leaf says, and for nothing else."""

from __future__ import annotations

import pytest

from ledger.statement import fault, statement

ORIGIN = "ledger.example.org/radiology"
BODY = {"model": "ab" * 32, "by": "dr-a", "mode": "shadow", "scope": {"source": ["CT1"]}}


def record(**changes):
    body = {**BODY, "authn": "proven", "key": "cd" * 32, "signature": "AA=="}
    body["statement"] = statement(ORIGIN, "model.activated", "model/1", body)
    return {"type": "model.activated", "idem": "model/1", "body": body, **changes}


def test_what_proves_it_is_no_part_of_it():
    assert statement(ORIGIN, "t", "i", BODY) == statement(ORIGIN, "t", "i", record()["body"])
    assert fault(ORIGIN, record()) is None


def test_a_known_statement_so_that_others_can_make_it():
    """SHA-256 of {"body":{"by":"x"},"idem":"i","origin":"o","type":"t"}."""
    assert statement("o", "t", "i", {"by": "x"}) == (
        "radseal-act/v1 a5572307ff2361f03894cef90d8885d0163e098a77714986509baaf6709ef336"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"by": "dr-b"}, {"mode": "active"}, {"scope": {"source": ["CT2"]}}, {"reason": "x"},
        {"model": "00" * 32},
    ],
)  # fmt: skip
def test_any_other_word_is_another_statement(change):
    one = record()
    one["body"] = {**one["body"], **change}
    assert "not what this leaf says" in (fault(ORIGIN, one) or "")


def test_another_log_type_or_fact_is_another_statement():
    assert fault("other.example.org/log", record()) is not None
    assert fault(ORIGIN, record(type="model.approved")) is not None
    assert fault(ORIGIN, record(idem="model/2")) is not None


def test_a_carried_leaf_was_signed_for_its_first_log():
    carried = record(carried={"origin": ORIGIN, "leaf": "x"})
    assert fault("ledger.example.org/next", carried) is None


@pytest.mark.parametrize("key", ["key", "statement", "signature"])
def test_proven_needs_all_of_the_proof(key):
    one = record()
    del one["body"][key]
    assert f"has no {key}" in (fault(ORIGIN, one) or "")


def test_what_is_only_asserted_is_not_judged():
    assert fault(ORIGIN, {"type": "t", "idem": "i", "body": {"authn": "asserted"}}) is None
    assert fault(ORIGIN, {"type": "t", "idem": "i", "body": {}}) is None
