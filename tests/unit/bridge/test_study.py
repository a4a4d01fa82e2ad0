"""bridge.study: the frozen words."""

from __future__ import annotations

import pytest

from bridge.study import AETitle, Evidence, Patient, is_uid, is_uid_as_sent, uid_name


@pytest.mark.parametrize("text", ["1.2.840.10008.1.1", "0", "1.0.3", "1" * 64])
def test_uids(text):
    assert is_uid(text)
    assert is_uid_as_sent(text)


@pytest.mark.parametrize("text", ["", "1.", ".1", "1..2", "1.02", "1" * 65, "a", "1.2\n", "١.٢"])
def test_no_uids(text):
    assert not is_uid(text)


@pytest.mark.parametrize("text", ["", "1.2\n", "1/2", "1 2", "../1", "1" * 65, "١.٢", "1.2\0"])
def test_what_cannot_pass_as_sent(text):
    assert not is_uid_as_sent(text)


def test_uid_names_are_hex_and_differ():
    names = {uid_name(uid) for uid in ("1.2", "1.3", "", "../..", "\udc80")}
    assert len(names) == 5
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in names)


@pytest.mark.parametrize("text", ["A", " PACS ", "A B-C_d", "1234567890123456"])
def test_ae_titles(text):
    assert AETitle(text) == text.strip()


@pytest.mark.parametrize("text", ["", "   ", "a\\b", "12345678901234567", "Ä", "a\nb", "a\0"])
def test_no_ae_titles(text):
    with pytest.raises(ValueError, match="AE title"):
        AETitle(text)


def test_a_patient_is_not_shown():
    patient = Patient("GH", "CANARY")
    assert "CANARY" not in repr(patient)
    assert "GH" not in repr(patient)
    assert patient.identified
    assert not Patient("GH", "").identified


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (Evidence("counts", 10, 10, 3), "the source counts 10 images"),
        (Evidence("explicit", 10, None, 0), "declared complete"),
        (Evidence("quiet", 10, None, 30), "nothing new for 30 s"),
        (Evidence("max-wait", 10, None, 3600), "the longest wait of 3600 s"),
        (Evidence("max-wait", 400, 412, 3600, incomplete=True), "incomplete: 400 of 412"),
    ],
)
def test_evidence_in_words(evidence, words):
    assert words in evidence.words
