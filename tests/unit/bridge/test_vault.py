"""The vault: one key per patient, the same for all who ask, and gone when destroyed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bridge import commitments as c
from bridge import vault as v
from bridge.commitments import CommitmentError
from bridge.vault import SubjectErased, UnknownSubject, Vault, VaultError

SITE = bytes(range(32))
UID = "1.2.826.0.1.3680043.8.498.1"
CANARY = "CANARY-31415926"
VECTORS = Path(__file__).parents[2] / "vectors" / "commitments" / "commitments.json"


@pytest.fixture
def vault(tmp_path):
    made = Vault(tmp_path / "vault.db", SITE, random.Random(1).randbytes)
    yield made
    made.close()


def test_a_patient_keeps_his_key(vault, tmp_path):
    one = vault.subject("GH", CANARY)
    again = Vault(f"sqlite:///{tmp_path / 'vault.db'}", SITE, os.urandom)
    assert again.subject("GH", CANARY) == one
    assert again.study(one.ref, UID) == vault.study(one.ref, UID)
    assert len(vault.study(one.ref, UID)) == 32
    again.close()


def test_identity_is_compared_after_trimming(vault):
    assert vault.subject(" GH ", f"{CANARY} \0") == vault.subject("GH", CANARY)
    assert vault.subject(None, CANARY) == vault.subject("", CANARY)


@pytest.mark.parametrize("other", [("GH2", CANARY), ("GH", CANARY.lower()), ("", f"GH{CANARY}")])
def test_other_identity_other_subject(vault, other):
    one, two = vault.subject("GH", CANARY), vault.subject(*other)
    assert one.ref != two.ref
    assert one.alias != two.alias
    assert vault.study(one.ref, UID) != vault.study(two.ref, UID)


def test_issuer_and_id_cannot_be_shifted_into_each_other(vault):
    assert vault.subject("A|B", "C") != vault.subject("A", "B|C")
    assert vault.subject("AB", "C") != vault.subject("A", "BC")


@pytest.mark.parametrize("empty", ["", "   ", "\0"])
def test_without_patient_id_the_study_is_the_subject(vault, empty):
    with pytest.raises(VaultError):
        vault.subject("GH", empty)
    assert vault.unidentified(UID) == vault.unidentified(UID)
    assert vault.unidentified(UID) != vault.unidentified(UID + ".1")
    with pytest.raises(VaultError):
        vault.unidentified("")


def test_a_study_uid_as_patient_id_is_not_that_study(vault):
    assert vault.unidentified(UID) != vault.subject(None, UID)


def test_text_that_is_no_utf8_still_names_a_patient(vault):
    assert vault.subject(None, "a\udcff") == vault.subject(None, "a\udcff")


def test_many_at_once_agree_on_one_key(vault, tmp_path):
    vaults = [vault, *(Vault(tmp_path / "vault.db", SITE, os.urandom) for _ in range(3))]
    with ThreadPoolExecutor(8) as pool:
        seen = list(
            pool.map(lambda n: vaults[n % 4].subject("GH", f"{CANARY}-{n // 16}"), range(160))
        )
    assert len(set(seen)) == 10
    for other in vaults[1:]:
        other.close()


def test_documents_are_sealed_and_bound_to_the_patient(vault):
    one, two = vault.subject("GH", "1"), vault.subject("GH", "2")
    sealed = vault.seal(one.ref, b"document")
    assert vault.open(one.ref, sealed) == b"document"
    assert vault.seal(one.ref, b"document") != sealed
    assert vault.open(one.ref, vault.seal(one.ref, b"")) == b""
    for damaged in (sealed[:-1], sealed[:5], b"", b"\x02" + sealed[1:], sealed[:-1] + b"\0"):
        with pytest.raises(VaultError):
            vault.open(one.ref, damaged)
    with pytest.raises(VaultError):
        vault.open(two.ref, sealed)


def test_destroying_erases_meaning_and_leaves_a_suppression(vault):
    subject = vault.subject("GH", CANARY)
    sealed = vault.seal(subject.ref, b"document")
    key = vault.study(subject.ref, UID)
    assert not vault.suppressed("GH", CANARY)
    assert not vault.erased(subject.ref)
    assert vault.alias(subject.ref) == subject.alias
    assert vault.destroy(subject.ref) == subject.alias
    assert vault.destroy(subject.ref) == subject.alias
    assert vault.suppressed("GH", CANARY)
    assert vault.erased(subject.ref)
    assert vault.alias(subject.ref) == subject.alias
    for use in (
        lambda: vault.study(subject.ref, UID),
        lambda: vault.open(subject.ref, sealed),
        lambda: vault.seal(subject.ref, b""),
        lambda: vault.commit(subject.ref, b""),
    ):
        with pytest.raises(SubjectErased):
            use()
    back = vault.subject("GH", CANARY)
    assert back.ref != subject.ref
    assert vault.study(back.ref, UID) != key
    assert vault.suppressed("GH", CANARY)
    assert vault.lift("GH", CANARY)
    assert not vault.lift("GH", CANARY)
    assert not vault.suppressed("GH", CANARY)


def test_an_erased_study_without_patient_is_suppressed(vault):
    vault.destroy(vault.unidentified(UID).ref)
    assert vault.suppressed_unidentified(UID)
    assert not vault.suppressed_unidentified(UID + ".1")


def test_no_byte_of_a_destroyed_row_stays_in_the_files(vault, tmp_path):
    subject = vault.subject("GH", CANARY)
    with vault._engine.connect() as connection:
        wrapped = bytes(vault._row(connection, subject.ref).wrapped)
    files = lambda: b"".join(p.read_bytes() for p in tmp_path.iterdir())  # noqa: E731
    assert wrapped in files()
    vault.destroy(subject.ref)
    assert wrapped[12:44] not in files()


def test_the_files_hold_no_identity_and_no_key(tmp_path):
    drawn = []

    def entropy(size: int) -> bytes:
        drawn.append(os.urandom(size))
        return drawn[-1]

    other = Vault(tmp_path / "other.db", SITE, entropy)
    subject = other.subject("CANARY-ISSUER", CANARY)
    other.unidentified(UID)
    files = b"".join(p.read_bytes() for p in tmp_path.glob("other.db*"))
    for secret in (CANARY.encode(), b"CANARY-ISSUER", UID.encode(), SITE, drawn[0]):
        assert secret not in files
    assert hashlib.sha256(CANARY.encode()).digest() not in files
    assert subject.ref.encode() in files
    other.close()


@pytest.mark.usefixtures("vault")
def test_only_the_owner_can_read_the_file(tmp_path):
    assert stat.S_IMODE((tmp_path / "vault.db").stat().st_mode) == 0o600


@pytest.mark.usefixtures("vault")
def test_another_site_key_is_refused_at_once(tmp_path):
    with pytest.raises(VaultError, match="another site key"):
        Vault(tmp_path / "vault.db", bytes(32), os.urandom)
    with pytest.raises(CommitmentError, match="exactly 32"):
        Vault(tmp_path / "vault.db", b"short", os.urandom)
    with pytest.raises(VaultError):
        Vault("sqlite://", SITE, os.urandom)


def test_rows_cannot_be_exchanged(vault):
    one, two = vault.subject("GH", "1"), vault.subject("GH", "2")
    with vault._engine.begin() as connection:
        stolen = vault._row(connection, two.ref).wrapped
        connection.execute(
            v._subjects.update().where(v._subjects.c.ref == one.ref).values(wrapped=stolen)
        )
    with pytest.raises(VaultError, match="damaged"):
        vault.study(one.ref, UID)


def test_unknown_subjects_are_said_to_be_unknown(vault):
    for ask in (vault.destroy, vault.erased, vault.alias, lambda ref: vault.study(ref, UID)):
        with pytest.raises(UnknownSubject):
            ask("nobody")


def test_errors_name_nobody(vault):
    subject = vault.subject("GH", CANARY)
    vault.destroy(subject.ref)
    with pytest.raises(SubjectErased) as caught:
        vault.study(subject.ref, UID)
    assert CANARY not in str(caught.value)


def test_site_key_is_32_fresh_bytes():
    assert v.new_site_key(lambda n: b"x" * n) == b"x" * 32
    with pytest.raises(CommitmentError):
        v.new_site_key(lambda _: b"")


def test_commitments_equal_the_vectors(tmp_path):
    want = json.loads(VECTORS.read_text())
    key, digest = bytes.fromhex(want["subject_key"]), bytes.fromhex(want["digest"])
    vault = Vault(tmp_path / "vault.db", SITE, lambda n: key[:n])
    subject = vault.subject("GH", CANARY)
    assert subject.alias == c.subject_alias(key) == want["subject_alias"]
    study = vault.study(subject.ref, want["study_instance_uid"])
    assert study.hex() == want["study_key"]
    assert c.study_alias(study) == want["study_alias"]
    text = want["document"]["text"].encode()
    assert vault.commit(subject.ref, text).hex() == want["document"]["commitment"]
    assert c.uid_commitment(study, want["uid"]["uid"]).hex() == want["uid"]["commitment"]
    assert c.instance_commitment(study, digest).hex() == want["instance"]
    assert c.output_commitment(study, digest).hex() == want["output"]
    assert c.request_commitment(study, b"abc").hex() == want["request"]["commitment"]
    tied = want["document_of_study"]
    assert c.document_commitment(study, tied["text"].encode()).hex() == tied["commitment"]
    for artifact in want["artifacts"]:
        assert c.artifact_key(study, artifact["id"]).hex() == artifact["key"]
    first = c.artifact_key(study, want["artifacts"][0]["id"])
    assert c.content_commitment(first, digest).hex() == want["content"]
    assert c.signature_commitment(first, digest).hex() == want["signature"]
    for attribute in want["attributes"]:
        made = c.attribute_commitment(first, attribute["tag"], bytes.fromhex(attribute["value"]))
        assert made.hex() == attribute["commitment"]
    vault.close()


def test_keys_and_digests_of_other_lengths_are_refused():
    study = c.StudyKey(bytes(32))
    key = c.artifact_key(study, "1.2")
    for use in (
        lambda: c.artifact_key(c.StudyKey(bytes(31)), "1.2"),
        lambda: c.artifact_key(study, ""),
        lambda: c.uid_commitment(c.StudyKey(bytes(33)), "1.2"),
        lambda: c.instance_commitment(study, b""),
        lambda: c.output_commitment(study, bytes(20)),
        lambda: c.content_commitment(c.ArtifactKey(b""), bytes(32)),
        lambda: c.content_commitment(key, bytes(64)),
        lambda: c.signature_commitment(key, bytes(31)),
        lambda: c.attribute_commitment(key, "PatientID", b""),
        lambda: c.subject_alias(b""),
        lambda: c.study_alias(c.StudyKey(b"")),
        lambda: c.request_commitment(c.StudyKey(b""), b""),
    ):
        with pytest.raises(CommitmentError):
            use()
    spelled = {
        c.attribute_commitment(key, t, b"x") for t in ("0010,0020", "(0010,0020)", "00100020")
    }
    assert len(spelled) == 1
