"""bridge.audit: a study's records as one bundle, verified and executed again."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import bench
import pytest
from bench import ANNA, BERT, NOBODY, changed, consent, every, images
from pydicom import dcmread
from typer.testing import CliRunner

from bridge import acts, ambient, grant, permit, site
from bridge.audit import bundle, disclose, gather, reexecute
from bridge.audit import export as export_module
from bridge.audit.export import Wish, export
from bridge.cli import app
from bridge.consent.document import parse
from bridge.consent.policy import POLICIES
from bridge.continuity import succession
from bridge.engine import EngineClient
from bridge.erasure import erase
from bridge.errors import NotFound, RadsealError, Refused, StorageFull, WrongUse
from bridge.home import open_rooms, publish
from ledger import archive, note
from ledger.archive import Archive
from ledger.bodies import TYPES
from ledger.errors import NotCovered, StorageFailed, VerifyError
from ledger.policy import Policy, of_keys
from ledger.sequencer import sequence
from ledger.verify import read_vkeys

UID = str(images(1)[0].StudyInstanceUID)


def wish(**changes) -> Wish:
    return Wish(**{
        "study": UID, "by": "dr-records", "account": "os", "to": "authority", "purpose": "HQUALIMP",
        "study_key": True, **changes,
    })  # fmt: skip


def give(desk, name="bundle.zip", **changes):
    return export(
        desk.rooms, wish(**changes), desk.base / name, publish=publish, new_id=ambient.new_id
    )


def trusted(desk):
    return of_keys(read_vkeys((desk.settings.folder / "ledger.vkey").read_text()))


def check(desk, path, images=None):
    return bundle.verify(path, trusted(desk), images)


def keep(desk, answer, patient=ANNA, **options):
    data = consent(answer, patient, **options)
    return grant.keep(desk.rooms, data, parse(data), None, by="clerk"), data


@pytest.fixture(scope="module")
def read_once(tmp_path_factory):
    pacs = bench.Archive()
    desk = bench.Bench(tmp_path_factory.mktemp("read"), pacs.toml())
    desk.model()
    desk.receive(*images(4))
    keep(desk, "permit")
    desk.walk(UID)
    yield bench.Kept(desk)
    pacs.close()


@pytest.fixture
def read(read_once, copy_of):
    """A desk whose study was read, delivered and closed."""
    return copy_of(read_once)


def verdicts(found) -> dict[str, str]:
    return {one.where: one.verdict for one in found.checks}


def test_a_bundle_verifies_and_every_decision_is_the_same_when_executed_again(read):
    made = give(read, results=True)
    assert made.path.stat().st_mode & 0o777 == 0o600
    found = check(read, made.path)
    assert found.good
    assert set(verdicts(found).values()) == {"same"}
    kinds = {one.where.split("(")[-1].split("/")[-1][:20] for one in found.checks}
    assert len(kinds) > 3
    read.verify()


def test_without_disclosure_it_holds_nothing_of_the_patient(read):
    made = give(read, study_key=False)
    assert check(read, made.path).good
    data = made.path.read_bytes()
    for canary in (ANNA.id.encode(), b"Alpha", UID.encode(), b"ACC-1", b"Consent.provision\x00"):
        assert canary not in data


def test_two_bundles_of_one_moment_differ_only_by_the_leaf_of_their_disclosure(read):
    first, second = give(read, "a.zip"), give(read, "b.zip")
    with Archive(first.path) as one, Archive(second.path) as two:
        new = set(two.members) - set(one.members)
        kinds = {name.split("/")[0] for name in new}
        assert kinds <= {"records", "disclosed"}
    assert check(read, first.path).good
    assert check(read, second.path).good


def test_the_export_is_asked_of_consent_and_a_denial_is_a_leaf(read):
    keep(read, "deny", purpose="HQUALIMP")
    with pytest.raises(Refused, match="not exported: consent denies HQUALIMP"):
        give(read)
    assert not (read.base / "bundle.zip").exists()
    last = read.leaves()[-1]
    assert (last["type"], last["body"]["decision"], last["body"]["stage"]) == (
        "consent.checked", "deny", "release",
    )  # fmt: skip
    made = give(read, basis="Art. 58 GDPR")
    assert check(read, made.path).good
    said = next(one for one in read.leaves() if one["type"] == "access.disclosed")
    assert said["body"]["basis"] == "Art. 58 GDPR"
    assert "refs" not in said
    read.verify()


def test_the_leaf_says_who_gave_what_to_whom_and_stands_on_the_decision(read):
    give(read)
    said = read.leaves()[-1]
    assert said["type"] == "access.disclosed"
    assert said["actor"] == {"kind": "user", "id": "os"}
    body = said["body"]
    assert (body["recipient"], body["by"], body["authn"]) == ("authority", "dr-records", "asserted")
    assert body["what"] == {
        "records": 21, "study_key": True, "consent": 1, "requests": 2, "artifacts": 0,
    }  # fmt: skip
    assert [one["rel"] for one in said["refs"]] == ["consent.checked"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"purpose": "TREATD"}, "--purpose"), ({"to": ""}, "--to"), ({"by": "a\nb"}, "--by"),
        ({"basis": "x" * 300}, "--basis"), ({"study_key": False, "results": True}, "--disclose"),
        ({"study_key": False, "images": ("1.2",)}, "--disclose"),
    ],
)  # fmt: skip
def test_words_that_do_not_fit_are_wrong_use_and_leave_no_leaf(read, changes, words):
    before = len(read.leaves())
    with pytest.raises(WrongUse, match=words):
        give(read, **changes)
    assert len(read.leaves()) == before


def test_an_erasure_names_the_bundles_that_were_given_away(read):
    made = give(read)
    whose = erase.named(read.rooms, f"{ANNA.issuer}|{ANNA.id}", study=False)
    row, _, left = erase.request(
        read.rooms, whose, by="dr-a", account="pc1", basis=erase.BASIS, new_id=ambient.new_id()
    )
    bundles = [one for one in left if one.kind == "audit bundle"]
    assert [(one.destination, one.sop_instance_uid) for one in bundles] == [
        ("authority", made.leaves[0])
    ]
    done = erase.confirm(read.rooms, row.id, by="dr-b", account="pc2")
    assert bundles[0].sop_instance_uid in {one["sop_instance_uid"] for one in done.report["left"]}


def test_it_never_writes_over_a_file_and_knows_its_study(read):
    (read.base / "bundle.zip").write_text("mine")
    with pytest.raises(WrongUse, match="there already"):
        give(read)
    assert (read.base / "bundle.zip").read_text() == "mine"
    with pytest.raises(WrongUse, match="no folder"):
        give(read, "absent/bundle.zip")
    with pytest.raises(NotFound):
        give(read, "other.zip", study="1.2.3")


def test_what_was_said_later_of_a_document_that_was_used_comes_along(new_site):
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    identity, _ = keep(desk, "permit")
    desk.walk(UID)
    grant.withdraw(desk.rooms, identity)
    found = check(desk, give(desk).path)
    assert found.good
    types = [one.record["type"] for one in found.report.records]
    assert "consent.withdrawn" in types
    assert {"log.opened", "model.registered", "model.approved", "model.activated"} <= set(types)


def test_it_holds_nothing_of_other_studies_patients_and_models(read):
    other = images(3, study="other", patient=BERT)
    keep(read, "deny", BERT)
    read.receive(*other)
    read.walk(str(other[0].StudyInstanceUID))
    found = check(read, give(read).path)
    subjects = {one.record.get("subject") for one in found.report.records} - {None}
    studies = {one.record.get("study") for one in found.report.records} - {None}
    assert (len(subjects), len(studies)) == (1, 1)
    assert found.good


def test_a_study_in_the_midst_of_work_is_exported_as_far_as_it_is(new_site):
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    run_id = desk.run(route_id)
    made = give(desk, "midst.zip")
    found = check(desk, made.path)
    assert found.good
    assert len(found.report.open_studies) == 1
    desk.report(run_id)
    desk.finish(UID)
    assert check(desk, made.path).good
    later = check(desk, give(desk, "later.zip").path)
    assert later.good
    assert not later.report.open_studies


def test_two_patients_documents_are_tied_and_executed(new_site):
    sent = images(4)
    desk = new_site()
    desk.model()
    desk.receive(*sent[:3], changed(sent[3], PatientID=BERT.id))
    acts.accept(desk.rooms, UID, "dr-x")
    keep(desk, "permit", ANNA)
    keep(desk, "deny", BERT)
    desk.walk(UID)
    found = check(desk, give(desk, basis="law").path)
    assert found.good
    assert [one.verdict for one in found.checks if "consent.checked" in one.where] == ["same"]
    assert sum(one.where.startswith("disclosed/consent/") for one in found.checks) == 2
    assert len([r for r in found.report.records if r.record["type"] == "consent.granted"]) >= 1


def test_a_corrected_identity_brings_both_chains_and_both_keys(read):
    read.receive(*every(images(4), PatientID=BERT.id, PatientName=BERT.name))
    read.receive(*images(2, series="late", seed=7, patient=BERT))
    read.walk(UID)
    made = give(read)
    found = check(read, made.path)
    assert len(found.report.keys) == len(made.leaves)
    assert found.good, list(found.lines())


def test_a_study_without_patient_id_says_that_the_sites_rule_decided(new_site):
    sent = images(3, patient=NOBODY, study="nobody")
    desk = new_site('[consent]\nunidentified = "permit"\n')
    desk.model()
    desk.receive(*sent)
    uid = str(sent[0].StudyInstanceUID)
    desk.walk(uid)
    found = check(desk, give(desk, study=uid).path)
    assert found.good
    assert {"not checkable"} == {
        one.verdict for one in found.checks if "consent.checked" in one.where
    }


def test_one_image_is_shown_without_the_others(read):
    shown, *others = (str(one.SOPInstanceUID) for one in images(4))
    made = give(read, images=(shown,))
    data = made.path.read_bytes()
    assert shown.encode() in data
    assert not any(uid.encode() in data for uid in others)
    found = check(read, made.path, _folder(read, images(4)[:1]))
    assert found.good
    said = [one for one in found.checks if "input.sealed" in one.where]
    assert [(one.verdict, one.words) for one in said] == [
        ("same", "1 of the 4 images that were read are shown")
    ]
    assert "1 of the 1 images listed are among your files" in found.notes


def _folder(desk, datasets):
    folder = desk.base / "brought"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    for number, one in enumerate(datasets):
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def test_images_that_are_brought_are_compared(read):
    made = give(read)
    whole = check(read, made.path, _folder(read, images(4)))
    assert whole.good
    assert "4 of the 4 images listed are among your files" in whole.notes
    assert "1 of your files are not among the images listed" in whole.notes


def test_an_image_of_other_content_is_named(read):
    made = give(read)
    sent = images(4)
    sent[2].PixelData = bytes(len(sent[2].PixelData))
    found = check(read, made.path, _folder(read, sent))
    assert not found.good
    (odd,) = [one for one in found.checks if one.verdict == "different"]
    assert odd.where == "2.dcm"
    assert "other content" in odd.words


def test_a_newer_version_of_a_document_comes_along_with_the_one_before(new_site):
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    keep(desk, "permit", text="one")
    desk.walk(UID)
    keep(desk, "permit", text="one", end=ambient.now() + timedelta(days=1))
    found = check(desk, give(desk).path)
    assert found.good, list(found.lines())
    types = [one.record["type"] for one in found.report.records]
    assert {"consent.granted", "consent.amended"} <= set(types)
    assert {one.verdict for one in found.checks} == {"same"}
    assert sum(one.where.startswith("disclosed/consent/") for one in found.checks) == 2


def test_every_type_that_a_bundle_holds_has_words():
    assert set(TYPES) - {"witness.status"} <= set(gather._WORDS)
    for kind in TYPES:
        assert gather.describe({"type": kind, "body": {}})


# An operator who discloses what was not: consistent with its own leaf, and found out.


def lie(desk, monkeypatch, spoil):
    """Export with members spoilt before the leaf of the disclosure binds them."""
    honest = disclose.members

    def lying(*words, **more):
        made = honest(*words, **more)
        spoil(made)
        return made

    monkeypatch.setattr(disclose, "members", lying)
    return check(desk, give(desk, "lie.zip").path)


def differences(found) -> list[str]:
    assert not found.good
    assert any(line.startswith("NOT verified") for line in found.lines())
    return [str(one) for one in found.checks if one.verdict == "different"]


def test_another_consent_text_is_found_out(read, monkeypatch):
    def spoil(made):
        (name,) = [one for one in made if one.startswith("disclosed/consent/")]
        text = made.pop(name).replace(b'"permit"', b'"deny"')
        made[f"disclosed/consent/{hashlib.sha256(text).hexdigest()}.json"] = text

    found = lie(read, monkeypatch, spoil)
    assert any("no decision in these records was made from it" in one for one in differences(found))
    checks = [one for one in found.checks if "consent.checked" in one.where]
    assert {one.verdict for one in checks} == {"not checkable"}
    assert all("were not disclosed as they were then" in one.words for one in checks)


def test_a_consent_under_a_false_name_is_found_out(read, monkeypatch):
    def spoil(made):
        (name,) = [one for one in made if one.startswith("disclosed/consent/")]
        made[f"disclosed/consent/{'0' * 64}.json"] = made.pop(name)

    assert any("digest of its text" in one for one in differences(lie(read, monkeypatch, spoil)))


def test_another_request_is_found_out(read, monkeypatch):
    def spoil(made):
        name = next(one for one in sorted(made) if one.startswith("disclosed/requests/"))
        made[name] = made[name].replace(b"TREATDS", b"HRESCH")

    (odd,) = differences(lie(read, monkeypatch, spoil))
    assert "the disclosed request is not the one that was asked" in odd


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told["inputs"][0]["instances"].pop(),
        lambda told: told["inputs"][0]["instances"].append({"uid": "1.2", "sha256": "0" * 64}),
        lambda told: told["inputs"][0]["instances"][0].update(sha256="0" * 64),
        lambda told: told["inputs"][0]["instances"][0].update(sha256="zz"),
        lambda told: told["inputs"][0].update(instances=7),
        lambda told: told.update(inputs=[7]),
        lambda told: told.pop("inputs"),
    ],
)
def test_another_list_of_images_is_found_out(read, monkeypatch, spoil):
    def change(made):
        told = json.loads(made["disclosed/instances.json"])
        spoil(told)
        made["disclosed/instances.json"] = json.dumps(told).encode()

    (odd,) = differences(lie(read, monkeypatch, change))
    assert odd.startswith("leaf 6 (input.sealed): different: ")


def test_another_result_is_found_out(read, monkeypatch):
    honest = disclose.results

    def lying(rooms, study):
        made = honest(rooms, study)
        name, path = next(iter(made.items()))
        ds = dcmread(path)
        ds.SeriesNumber = 4711
        buffer = BytesIO()
        ds.save_as(buffer)
        return {**made, name: buffer.getvalue()}

    monkeypatch.setattr(disclose, "results", lying)
    (odd,) = differences(check(read, give(read, results=True).path))
    assert "is no result that these records say was composed" in odd


@pytest.mark.parametrize("data", [b"", b"no DICOM", bytes(128) + b"DICM", bytes(128) + b"DICM" * 9])
def test_a_result_that_is_none_is_found_out(read, monkeypatch, data):
    honest = disclose.results
    monkeypatch.setattr(
        disclose, "results", lambda *words: {**honest(*words), "disclosed/artifacts/1.2.dcm": data}
    )
    (odd,) = differences(check(read, give(read, results=True).path))
    assert odd.startswith("disclosed/artifacts/1.2.dcm: different: ")


def test_a_decision_that_the_documents_do_not_give_is_found_out(new_site, monkeypatch):
    """A site whose engine lies says permit where the patient's document denies."""
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    keep(desk, "deny")
    honest = permit.decide

    def lying(request, documents, policy):
        found = honest(request, documents, policy)
        return replace(found, decision="permit", reason="consent-permit")

    monkeypatch.setattr(permit, "decide", lying)
    desk.walk(UID)
    odd = differences(check(desk, give(desk).path))
    assert any('the log says decision "permit", executed "deny"' in one for one in odd)


# What cannot be checked is said, never told as good.


def words_of(found) -> set[str]:
    return {one.words for one in found.checks if one.verdict == "not checkable"}


def test_an_engine_that_is_not_installed_is_said(read, monkeypatch):
    made = give(read)
    monkeypatch.setattr(reexecute, "ENGINE", "radseal-consent/9")
    found = check(read, made.path)
    assert found.good
    said = "engine radseal-consent/1 is not installed; this is radseal-consent/9"
    assert words_of(found) == {said}


def test_a_policy_that_is_not_installed_as_it_was_is_said(read, monkeypatch):
    made = give(read)
    other = replace(POLICIES["opt-out-treatment"], combine="deny-overrides")
    monkeypatch.setattr(reexecute, "POLICIES", {other.id: other})
    found = check(read, made.path)
    assert words_of(found) == {"the policy opt-out-treatment as it was then is not installed"}


def test_a_log_that_did_not_commit_to_documents_yet_is_said(new_site, monkeypatch):
    monkeypatch.setattr(permit, "MOST_DOCUMENTS", -1)
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    keep(desk, "permit")
    desk.walk(UID)
    found = check(desk, give(desk).path)
    assert found.good
    assert words_of(found) == {"this log did not commit to documents under the study's key yet"}


def test_an_earlier_exports_own_question_is_not_kept(read):
    give(read, "first.zip")
    found = check(read, give(read, "second.zip").path)
    assert found.good
    assert words_of(found) == {"its request was not disclosed"}


def test_an_erased_patients_study_cannot_be_exported(read):
    read.rooms.vault.destroy(read.generation(UID).subject_ref)
    with pytest.raises(Refused, match="key was destroyed"):
        give(read)


# Each write fails two ways: it did not happen, or nobody was told.


def disclosures(desk) -> int:
    return sum(one["type"] == "access.disclosed" for one in desk.leaves())


def again(desk):
    assert check(desk, give(desk).path).good


def test_a_leaf_that_could_not_be_appended_leaves_no_file(read, monkeypatch):
    honest = read.rooms.record.say

    def failing(kind, *words, **more):
        if kind == "access.disclosed":
            raise StorageFailed
        return honest(kind, *words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(read.rooms.record, "say", failing)
        with pytest.raises(StorageFailed):
            give(read)
    assert disclosures(read) == 0
    assert list(read.base.glob("*bundle.zip*")) == []
    again(read)


def test_a_leaf_that_was_appended_and_not_told_leaves_no_file(read, monkeypatch):
    honest = read.rooms.record.say

    def failing(kind, *words, **more):
        said = honest(kind, *words, **more)
        if kind == "access.disclosed":
            raise StorageFailed
        return said

    with monkeypatch.context() as patch:
        patch.setattr(read.rooms.record, "say", failing)
        with pytest.raises(StorageFailed):
            give(read)
    assert disclosures(read) == 1  # too much is said rather than too little
    assert list(read.base.glob("*bundle.zip*")) == []
    again(read)
    assert disclosures(read) == 2
    read.verify()


@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_file_that_could_not_be_written_has_no_name(read, monkeypatch, point):
    def failing(*_words, **_more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        where = {
            "write": (archive, "write"), "fsync": (os, "fsync"), "rename": (Path, "rename"),
        }[point]  # fmt: skip
        honest_room = export_module._write

        def armed(members, output):
            patch.setattr(*where, failing)
            honest_room(members, output)

        patch.setattr(export_module, "_write", armed)
        with pytest.raises(StorageFull, match="No space left on device"):
            give(read)
    assert list(read.base.glob("*bundle.zip*")) == []
    again(read)


def test_a_crash_before_the_name_leaves_a_part_that_the_next_export_replaces(read, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(archive, "write", lambda file, _members: file.write(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            give(read)
    assert [one.name for one in read.base.glob("*bundle.zip*")] == [".bundle.zip.part"]
    again(read)
    assert [one.name for one in read.base.glob("*bundle.zip*")] == ["bundle.zip"]


def test_no_file_before_the_leaf_is_under_a_published_checkpoint(read, monkeypatch):
    monkeypatch.setattr(export_module, "COVERED_WITHIN", 0.0)
    calls = []

    def publish_once(rooms):
        calls.append(1)
        if len(calls) == 1:
            publish(rooms)

    with pytest.raises(NotCovered):
        export(
            read.rooms, wish(), read.base / "bundle.zip", publish=publish_once,
            new_id=ambient.new_id,
        )  # fmt: skip
    assert list(read.base.glob("*bundle.zip*")) == []


def test_a_withdrawal_while_it_is_made_stops_it(new_site):
    desk = new_site()
    desk.model()
    desk.receive(*images(3))
    desk.walk(UID)
    identity, _ = keep(desk, "permit", purpose="HQUALIMP")
    calls = []

    def publish_and_withdraw(rooms):
        publish(rooms)
        if not calls:
            grant.withdraw(desk.rooms, identity)
        calls.append(1)

    with pytest.raises(Refused, match="withdrawn while"):
        export(
            desk.rooms, wish(), desk.base / "bundle.zip", publish=publish_and_withdraw,
            new_id=ambient.new_id,
        )  # fmt: skip
    assert disclosures(desk) == 0


def test_a_full_disk_is_refused_before_anything_is_said(read, monkeypatch):
    monkeypatch.setattr(
        export_module.shutil, "disk_usage", lambda _path: type("Disk", (), {"free": 1 << 20})
    )
    with pytest.raises(StorageFull, match="no room"):
        give(read)
    assert disclosures(read) == 0


# Checkpoints of witnesses, logs that ended, people at the keyboard.


LATER = 4_000_000_000  # POSIX seconds
WITNESS = note.Ed25519Cosigner.generate("witness.example/w", lambda n: bytes(range(n)))


def witnessing(rooms):
    """Publish, have a witness cosign, then publish some more: the cosigned one is older."""
    publish(rooms)
    folder = rooms.record.log.folder
    text = (folder / "checkpoint").read_text()
    line = note.Line(
        WITNESS.name, WITNESS.key_id, WITNESS.sign(note.parse(text)[0].encode(), LATER)
    )
    (folder / "checkpoint.witnessed").write_text(f"{text}{line}")
    rooms.record.say(
        "config.changed", f"config/{len(text)}/{ambient.new_id()}", {"digest": "0" * 64}
    )
    publish(rooms)


def test_proofs_stand_under_the_cosigned_checkpoint_where_it_covers_them(read):
    made = export(
        read.rooms, wish(), read.base / "bundle.zip", publish=witnessing, new_id=ambient.new_id
    )
    assert made.witnessed
    lines = [f"log {key}\n" for key in read_vkeys(
        (read.settings.folder / "ledger.vkey").read_text())]  # fmt: skip
    text = f"{''.join(lines)}witness w {note.vkey(WITNESS)}\nquorum w\n"
    found = bundle.verify(made.path, Policy.parse(text))
    assert found.good
    assert found.report.verdict.cosigned == {"w": LATER}
    assert not any(line.startswith("unwitnessed") for line in found.lines())
    assert check(read, made.path).good


def test_without_a_cosigned_checkpoint_a_quorum_is_not_reached(read):
    made = give(read)
    assert not made.witnessed
    keys = "".join(f"log {key}\n" for key in read_vkeys(
        (read.settings.folder / "ledger.vkey").read_text()))  # fmt: skip
    with pytest.raises(VerifyError, match="checkpoint: is not witnessed"):
        bundle.verify(made.path, Policy.parse(f"{keys}witness w {note.vkey(WITNESS)}\nquorum w\n"))


def test_a_study_of_a_log_that_ended_is_exported_from_the_one_that_goes_on(read):
    folder = read.settings.folder
    publish(read.rooms)
    read.close()
    with succession.alone(folder):
        succession.begin(read.settings, "new.example.org/log", None, "size", "clerk")
        succession.finish(folder)
    read.settings = site.read(folder)
    read.work = EngineClient(read.settings.database_url)
    read.rooms = replace(open_rooms(read.settings, read.work), clock=read.clock)
    found = check(read, give(read).path)
    assert found.good, list(found.lines())
    types = [one.record["type"] for one in found.report.records]
    assert types[0] == "log.continued"
    assert {"study.received", "result.delivered", "study.closed"} <= set(types)
    assert {c.verdict for c in found.checks if "input.sealed" in c.where} == {"same"}
    assert {c.verdict for c in found.checks if "consent.checked" in c.where} == {"same"}


def test_random_changes_are_never_accepted(read):
    data = give(read).path.read_bytes()
    chance, path = random.Random(3), read.base / "spoilt.zip"
    for _ in range(150):
        place = chance.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))])
                         + data[place + 1 :])  # fmt: skip
        with pytest.raises(VerifyError):
            check(read, path)


def run(*words: object, code: int = 0) -> str:
    """What a command printed, and its error; `code` is the status that main makes of it."""
    shown = CliRunner().invoke(app, [*map(str, words)])
    caught = shown.exception
    found = 2 if isinstance(caught, WrongUse) else 1 if isinstance(caught, RadsealError) else 0
    assert (found or shown.exit_code) == code, (shown.output, caught)
    return shown.output + ("" if code == 0 else str(caught))


def test_on_the_command_line(read, monkeypatch):
    monkeypatch.setenv("RADSEAL_SITE", str(read.settings.folder))
    out, keys = read.base / "bundle.zip", read.settings.folder / "ledger.vkey"
    words = ("audit", "export", UID, "-o", out, "--to", "authority", "--purpose", "HQUALIMP")
    told = json.loads(run(*words, "--by", "dr-a", "--disclose", "study", "--json"))
    assert told["bundle"] == str(out)
    said = run("verify", out, "--vkey", keys)
    assert "disclosed to authority for HQUALIMP (policy)" in said
    assert said.splitlines()[-1].startswith("verified: ")
    assert json.loads(run("verify", out, "--vkey", keys, "--json"))["verified"]
    plain = read.base / "plain.zip"
    assert "the log says who received them" in run("audit", "export", UID, "-o", plain)
    assert run("verify", plain, "--vkey", keys).splitlines()[-1].startswith("verified: ")
    assert "folder of images" in run(
        "verify", out, "--vkey", keys, "--images", read.base / "absent", code=2
    )
    assert "folder of images" in run(
        "verify", read.settings.folder / "ledger", "--vkey", keys, "--images", read.base,
        code=2,
    )  # fmt: skip
    assert "say whom you trust" in run("verify", out, code=2)
    out.write_bytes(out.read_bytes()[:-1])
    assert "NOT verified" in run("verify", out, "--vkey", keys, code=1)


def test_findings_on_the_command_line_are_exit_1(read):
    sent = images(4)
    sent[2].PixelData = bytes(len(sent[2].PixelData))
    out, keys = give(read).path, read.settings.folder / "ledger.vkey"
    said = run("verify", out, "--vkey", keys, "--images", _folder(read, sent), code=1)
    assert "FINDING 2.dcm: different: " in said


def test_audit_trace_says_that_the_log_is_lawful(read, monkeypatch):
    monkeypatch.setenv("RADSEAL_SITE", str(read.settings.folder))
    publish(read.rooms)
    assert run("audit", "trace").splitlines()[-1].startswith("OK test.example.org/log: ")
    (told,) = json.loads(run("audit", "trace", "--json"))
    assert (told["good"], told["findings"], told["open_studies"]) == (True, [], [])
    assert told["types"]["study.closed"] == 1


def test_audit_trace_names_leaf_and_rule(read, monkeypatch):
    monkeypatch.setenv("RADSEAL_SITE", str(read.settings.folder))
    chain = read.rooms.record.chain(read.generation(UID).subject_ref, UID)
    read.rooms.record.say(
        "subject.erased", "erased/too-soon", {"basis": "Art. 17"}, subject=chain.subject
    )
    give(read)  # asks consent of a patient whose key the log says was destroyed
    said = run("audit", "trace", code=1)
    assert "(consent.checked): R6: " in said
    assert "FAIL test.example.org/log: 2" in said
    (told,) = json.loads(CliRunner().invoke(app, ["audit", "trace", "--json"]).stdout)
    assert {one["rule"] for one in told["findings"]} == {"R6"}
    assert not check(read, read.base / "bundle.zip").good


def test_audit_trace_lists_a_study_that_is_still_open_and_blames_it_after_the_sla(
    new_site, monkeypatch
):
    desk = new_site()
    monkeypatch.setenv("RADSEAL_SITE", str(desk.settings.folder))
    desk.model()
    desk.receive(*images(3))
    desk.seal(UID)
    publish(desk.rooms)
    assert "still open: study.received at leaf" in run("audit", "trace")
    later = ambient.now() + timedelta(hours=2)
    monkeypatch.setattr(desk.rooms.record, "now", lambda: later)
    desk.rooms.record.say("config.changed", "config/later", {"digest": "0" * 64})
    sequence(desk.rooms.record.log, later)
    assert "R4: not closed within 60 seconds" in run("audit", "trace", "--sla", 60, code=1)


def test_audit_trace_says_which_file_does_not_hold(read, monkeypatch):
    monkeypatch.setenv("RADSEAL_SITE", str(read.settings.folder))
    publish(read.rooms)
    size = read.rooms.record.log.size()
    tile = read.settings.folder / f"ledger/tile/0/000.p/{size}"
    tile.chmod(0o600)
    tile.write_bytes(bytes(len(tile.read_bytes())))
    said = run("audit", "trace", code=1)
    assert f"FAIL site: tile/0/000.p/{size}: was changed" in said


def test_audit_trace_before_the_first_checkpoint_says_what_to_do(new_site, monkeypatch):
    desk = new_site()
    monkeypatch.setenv("RADSEAL_SITE", str(desk.settings.folder))
    assert "no checkpoint yet" in run("audit", "trace", code=1)
