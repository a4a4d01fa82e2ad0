"""bridge.audit: a result verified from its file alone, and every attack that we thought of."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from typer.testing import CliRunner

from bridge.audit import words
from bridge.audit.file import verify_file
from bridge.cli import app
from bridge.errors import RadsealError, Refused, WrongUse
from bridge.report import receipt
from ledger import leaf
from ledger.errors import BadKey
from ledger.policy import UNWITNESSED, Policy, of_keys

KINDS = ("seg", "sr", "summary")


@pytest.fixture(scope="module")
def paper(results, tmp_path_factory):
    return results.PaperResults(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="module")
def keys(paper) -> Policy:
    return of_keys(paper.vkeys)


@pytest.fixture
def verify(keys, tmp_path):
    """Verify bytes or a data set with the log's keys."""

    def call(what: bytes | Dataset, policy: Policy = keys, **how):
        path = tmp_path / "file.dcm"
        if isinstance(what, bytes):
            path.write_bytes(what)
        else:
            what.save_as(path, enforce_file_format=True, **how)
        return verify_file(path, policy)

    return call


def read(data: bytes) -> Dataset:
    return dcmread(BytesIO(data))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proven(paper, results, verify, kind):
    report = verify(paper.stamped[kind])
    assert report.changed == ()
    said = words.as_json(report, {})
    assert (said["identity"], said["kind"]) == ("unchanged", kind)
    assert said["index"] == paper.site.log.covered(leaf.unref(paper.leaves[kind]))
    assert said["proven"]["model"]["digest"] == results.paper_log.MODEL
    assert said["proven"]["model"]["approved_by"] == "head"
    assert said["proven"]["input"]["root"] == results.paper_log.value("input")
    assert said["proven"]["consent"]["decision"] == "permit"
    assert [one["kind"] for one in said["proven"]["results"]] == (["seg"] if kind == "sr" else [])
    assert said["not_carried"] == []
    assert [one["type"] for one in said["leaves"]][:1] == ["model.registered"]
    json.dumps(said)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("kind", KINDS)
def test_another_transfer_syntax_changes_nothing(paper, verify, kind, syntax):
    ds = read(paper.stamped[kind])
    ds.file_meta.TransferSyntaxUID = syntax
    implicit = syntax == ImplicitVRLittleEndian
    assert verify(ds, implicit_vr=implicit, little_endian=True).changed == ()


def test_compressed_on_the_way(paper, verify):
    ds = read(paper.stamped["summary"])
    ds.compress(RLELossless, generate_instance_uid=False)
    assert verify(ds).changed == ()


def test_a_corrected_identity_is_named_and_no_fault(paper, verify):
    ds = read(paper.stamped["sr"])
    ds.PatientID, ds.PatientName = "P-2", "Ménard^Zoé"
    report = verify(ds)
    assert report.changed == ("PatientName", "PatientID")
    assert words.as_text(report, {})[0] == (
        "content proven; patient identity is not the one it was composed for: "
        "PatientName, PatientID"
    )
    assert words.as_json(report, {})["identity"] == "changed"


def test_both_lists_are_said_and_nothing_of_the_patient(paper, verify):
    text = "\n".join(words.as_text(verify(paper.stamped["sr"]), {}))
    for piece in ("model", "input", "consent", "Proven by", "Not proven", *words.NOT_PROVEN):
        assert piece in text
    assert UNWITNESSED in text
    assert "Müller" not in text
    assert "P-1" not in text


def _content(ds: Dataset) -> None:
    ds.CompletionFlag = "PARTIAL"


def _overlay(ds: Dataset) -> None:
    ds.add_new(0x60003000, "OW", bytes(16))


def _private(ds: Dataset) -> None:
    ds.private_block(0x0011, "SOMEBODY", create=True).add_new(1, "LO", "x")


def _nested(ds: Dataset) -> None:
    ds.ContributingEquipmentSequence[0].add_new(0x00110010, "LO", "SOMEBODY")


def _second_block(ds: Dataset) -> None:
    ds.add_new((0x0099, 0x0011), "LO", "RADSEAL RECEIPT")


def _instance(ds: Dataset) -> None:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3"


def _class(ds: Dataset) -> None:
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"


def _model(ds: Dataset) -> None:
    for item in ds.ContributingEquipmentSequence:
        item.DeviceUID = "1.2.3"


def _no_receipt(ds: Dataset) -> None:
    for tag in [tag for tag in ds.keys() if tag.group == 0x0099]:  # noqa: SIM118
        del ds[tag]


def _damage(ds: Dataset) -> None:
    value = ds[0x0099, 0x1010].value
    ds[0x0099, 0x1010].value = value[:100] + bytes([value[100] ^ 1]) + value[101:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_content, "content is not what"),
        (_overlay, "content is not what"),
        (_private, "0011,0010. is a private element"),
        (_nested, "0011,0010. is a private element"),
        (_second_block, "two receipt blocks"),
        (_instance, "content is not what"),
        (_class, "another kind"),
        (_model, "another model"),
        (_no_receipt, "no receipt"),
        (_damage, "damaged"),
    ],
)
def test_a_changed_file_is_refused(paper, verify, change, said):
    ds = read(paper.stamped["sr"])
    change(ds)
    with pytest.raises(Refused, match=said):
        verify(ds)


@pytest.mark.parametrize("tag", [b"\0\x60\0\x30", b"\x10\x40\1\0"])
def test_an_element_as_un_is_refused(paper, verify, tag):
    """Also one of the dictionary, which pydicom would read as what it is there."""
    with pytest.raises(Refused, match="has the VR UN"):
        verify(paper.plain["sr"] + tag + b"UN\0\0\2\0\0\0ab")


def test_one_changed_voxel_is_refused(paper, verify):
    ds = read(paper.stamped["seg"])
    ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    with pytest.raises(Refused, match="content is not what"):
        verify(ds)


@pytest.mark.parametrize("other", ["seg", "summary"])
def test_a_block_of_another_file_is_refused(paper, verify, other):
    with pytest.raises(Refused):
        verify(paper.stamp("sr", receipt.read(read(paper.stamped[other])).key, paper.proofs(other)))


def test_a_block_of_another_result_of_the_same_kind_is_refused(results, paper, verify):
    ds = results.composed()["sr"]
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    moved = receipt.insert(results.encoded(ds), results.artifact_key(paper.plain["sr"]),
                           paper.proofs("sr"))  # fmt: skip
    with pytest.raises(Refused, match="belongs to another file"):
        verify(moved)


def test_another_key_in_the_block_is_refused(paper, verify):
    with pytest.raises(Refused, match="content is not what"):
        verify(paper.stamp("sr", bytes(32)))


def test_a_forged_block_is_refused(results, verify, tmp_path):
    """Whoever makes a log of his own and stamps by it gets no further than its key."""
    mine = results.paper_log.signers(name="forger")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results.paper_log, "signers", lambda *_: mine)
        forged = results.PaperResults(tmp_path).stamped["sr"]
    with pytest.raises(Refused, match="no key that you trust"):
        verify(forged)


def test_each_algorithm_that_you_brought_must_have_signed(paper, verify):
    def without_post_quantum(proofs):
        head, _, _ = proofs[0].rpartition("— ")
        gone = proofs[0][len(head) :]
        return [proof.replace(gone, "") for proof in proofs]

    stripped = paper.stamp("sr", proofs=without_post_quantum(paper.proofs("sr")))
    with pytest.raises(Refused, match="no signature by your key of type 06"):
        verify(stripped)
    assert verify(stripped, of_keys(paper.vkeys[:1])).changed == ()


def test_no_key_is_wrong_use(paper, verify):
    with pytest.raises(BadKey):
        verify(paper.stamped["sr"], of_keys([]))


def test_proofs_under_two_checkpoints_are_refused(results, tmp_path, verify):
    made = results.PaperResults(tmp_path)
    before = made.proofs("sr")
    made.site.fill(3)
    made.site.publish(1)
    assert before[0] != made.proofs("sr")[0]
    verify(made.stamp("sr"))
    with pytest.raises(Refused, match="different checkpoints"):
        verify(made.stamp("sr", proofs=[*before[:-1], made.proofs("sr")[-1]]))


def _index(proofs):
    return [proofs[0].replace("\nindex ", "\nindex 1", 1), *proofs[1:]]


def _leafless(proofs):
    lines = proofs[0].split("\n")
    return ["\n".join([lines[0], *lines[2:]]), *proofs[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda proofs: proofs[1:], "first leaf of the receipt is no result.composed"),
        (lambda proofs: proofs[:1], "does not carry the inference.completed"),
        (lambda proofs: [*proofs, proofs[1]], "one leaf twice"),
        (lambda proofs: ["nonsense\n", *proofs[1:]], "does not verify"),
        (_index, "does not verify"),
        (_leafless, "does not carry its leaf"),
    ],
)
def test_a_block_that_was_put_together_otherwise(paper, verify, change, said):
    with pytest.raises(Refused, match=said):
        verify(paper.stamp("sr", proofs=change(paper.proofs("sr"))))


@pytest.mark.parametrize("without", range(2, 10))
def test_each_leaf_of_the_chain_must_be_there(paper, verify, without):
    proofs = paper.proofs("sr")
    assert len(proofs) == 10
    with pytest.raises(Refused, match=r"does not carry the|stands on 0"):
        verify(paper.stamp("sr", proofs=[*proofs[:without], *proofs[without + 1 :]]))


def test_a_leaf_of_something_else_is_refused(paper, verify):
    strange = paper.proofs("summary")[0]
    with pytest.raises(Refused, match=r"result.composed .leaf 11. in the receipt is not of this"):
        verify(paper.stamp("sr", proofs=[*paper.proofs("sr"), strange]))


def _tampered(results, tmp_path, **how):
    return results.PaperResults(tmp_path, **how).stamped["sr"]


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        ({"consent.checked": {"decision": "deny"}}, "says deny"),
        ({"consent.checked": {"valid_until": "2026-01-02T03:04:05.678Z"}}, "had ended before"),
        ({"model.activated": {"model": "cd" * 32}}, "another model"),
        ({"model.approved": {"model": "cd" * 32}}, "another model"),
        ({"model.registered": {"model": "cd" * 32}}, "another model"),
        ({"inference.completed": {"model": "cd" * 32}}, "another model"),
        ({"input.sealed": {"route": {"model": "cd" * 32, "roles": []}}}, "another model"),
        ({"result.composed": {"model": "cd" * 32}}, "another model"),
        ({"result.composed": {"kind": "seg"}}, "another kind"),
        ({"result.composed": {"kind": "other"}}, "another kind"),
    ],
)
def test_a_log_that_tells_an_unlawful_story(results, tmp_path, verify, tell, said):
    with pytest.raises(Refused, match=said):
        verify(_tampered(results, tmp_path, tell=tell))


def test_a_permit_for_another_input(results, tmp_path, verify):
    def aim(refs):
        return results.paper_log.refs(("study.received", refs["study.received"]))

    with pytest.raises(Refused, match="another input"):
        verify(_tampered(results, tmp_path, aim={"consent.checked": aim}))


def test_attributes_without_a_commitment_are_named(results, tmp_path, verify):
    """A leaf that commits to fewer attributes proves no more than it says."""
    report = verify(_tampered(results, tmp_path, tell={"result.composed": {"attributes": {}}}))
    assert len(report.changed) == 9


# What is no file of ours, or can be read in two ways.


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda data: data[:131],
        lambda data: data[:140],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data + b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\0\x60\0\x30OW\0\0\2\0\0\0ab",
        lambda data: data + b"\xfe\xff\x0d\xe0\0\0\0\0",
        lambda data: data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1),
        lambda data: data[:140] + b"\xff\0\0\0" + data[144:],
        lambda data: data[:132] + b"\2\0\0\0XX" + data[138:],
    ],
)
@pytest.mark.parametrize("kind", ["sr", "seg"])
def test_what_cannot_be_read_is_refused_in_a_sentence(paper, verify, kind, spoil):
    with pytest.raises(RadsealError) as refused:
        verify(spoil(paper.stamped[kind]))
    assert not isinstance(refused.value, WrongUse)
    assert "Müller" not in str(refused.value)


def test_an_element_that_stands_twice_is_refused(paper, verify):
    """Some readers show the first and some the last: the content that we would judge is one."""
    data = paper.stamped["sr"]
    place = data.index(b"\x40\x00\x91\xa4CS")
    length = 8 + int.from_bytes(data[place + 6 : place + 8], "little")
    flag = data[place : place + length]
    assert pydicom.dcmread(BytesIO(data)).CompletionFlag.encode() in flag
    other = b"\x40\x00\x91\xa4CS\x08\x00PARTIAL "
    twice = data[:place] + other + data[place:]
    assert dcmread(BytesIO(twice)).CompletionFlag == dcmread(BytesIO(data)).CompletionFlag
    with pytest.raises(Refused, match="two ways"):
        verify(twice)


# The command.


def run(*words_):
    return CliRunner().invoke(app, [str(word) for word in words_])


@pytest.fixture
def files(paper, tmp_path) -> Path:
    for kind, data in paper.stamped.items():
        (tmp_path / f"{kind}.dcm").write_bytes(data)
    (tmp_path / "vkey").write_text("\n".join(paper.vkeys) + "\n")
    (tmp_path / "policy").write_text(str(of_keys(paper.vkeys)))
    return tmp_path


def test_radseal_verify_a_file(files, monkeypatch):
    monkeypatch.chdir(files)
    for trust in (("--vkey", "vkey"), ("--policy", "policy")):
        done = run("verify", "sr.dcm", *trust)
        assert done.exit_code == 0, done.output
        assert done.output.startswith("content proven; patient identity is the one")
    said = json.loads(run("verify", "seg.dcm", "--vkey", "vkey", "--json").output)
    assert said["verified"] is True
    assert said["identity"] == "unchanged"


def test_radseal_verify_says_a_changed_identity_first(files):
    ds = dcmread(files / "sr.dcm")
    ds.PatientID = "corrected"
    ds.save_as(files / "sr.dcm")
    done = run("verify", files / "sr.dcm", "--vkey", files / "vkey")
    assert done.exit_code == 0
    assert done.output.splitlines()[0] == (
        "content proven; patient identity is not the one it was composed for: PatientID"
    )


def test_radseal_verify_refuses_and_says_why(files):
    ds = dcmread(files / "sr.dcm")
    ds.CompletionFlag = "PARTIAL"
    ds.save_as(files / "sr.dcm")
    done = run("verify", files / "sr.dcm", "--vkey", files / "vkey", "--json")
    assert isinstance(done.exception, Refused)  # main() makes exit 1 of it
    assert json.loads(done.output)["verified"] is False
    assert "the content is not what" in str(done.exception)


def test_radseal_verify_without_keys_is_wrong_use(files):
    for trust in ((), ("--vkey", "nonsense"), ("--vkey", files / "sr.dcm"),
                  ("--policy", files / "vkey"), ("--policy", files / "nowhere"),
                  ("--vkey", files / "vkey", "--policy", files / "policy")):  # fmt: skip
        assert isinstance(run("verify", files / "sr.dcm", *trust).exception, WrongUse), trust


def test_radseal_verify_knows_a_file_by_its_content(paper, files):
    (files / "sr.dcm").rename(files / "sr.tlog-proof")
    (files / "proof.dcm").write_text(paper.proofs("sr")[0], encoding="utf-8")
    (files / "picture").write_bytes(b"\x89PNG")
    assert run("verify", files / "sr.tlog-proof", "--vkey", files / "vkey").exit_code == 0
    assert run("verify", files / "proof.dcm", "--vkey", files / "vkey").exit_code == 0
    assert run("verify", paper.site.folder, "--vkey", files / "vkey").exit_code == 0
    done = run("verify", files / "picture", "--vkey", files / "vkey")
    assert isinstance(done.exception, Refused)
    assert "neither a DICOM file" in str(done.exception)
