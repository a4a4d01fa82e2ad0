"""bridge.receive: files become rows, once, whatever happens in between."""

from __future__ import annotations

import copy

import bench
import pytest
from bench import ANNA, BERT, NOBODY, every, images
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from bridge.store.database import writing
from bridge.study import Patient, StudyState


def uid_of(datasets) -> str:
    return str(datasets[0].StudyInstanceUID)


def inbox(desk) -> list:
    return list(desk.rooms.files.inbox.iterdir())


def stored(desk, uid: str) -> int:
    return len(list(desk.rooms.files.instance(uid, "x").parent.glob("*.dcm")))


class Crash(Exception):
    pass


def test_a_study_is_indexed_and_its_generation_opened(desk):
    sent = images(4)
    desk.receive(*sent)
    study = desk.study(uid_of(sent))
    assert desk.states() == {"held": 4}
    assert study.patient == Patient("GH", "A-1")
    assert study.generation == 1
    assert desk.opened == [(study.id, 1)]
    assert not inbox(desk)
    assert stored(desk, uid_of(sent)) == 4
    assert desk.generation(uid_of(sent)).sealed_at is None


def test_times_are_by_the_steady_clock(desk):
    sent = images(2)
    desk.receive(sent[0])
    later = desk.clock.pass_(10)
    desk.receive(sent[1])
    assert sorted({row.received_at for row in desk.rows("instances")})[-1] == later
    assert desk.generation(uid_of(sent)).last_received_at == later


def test_the_issuer_comes_from_the_source_where_the_image_names_none(new_site):
    desk = new_site('[[sources]]\nname = "ct2"\nae_title = "CT2"\nissuer = "OTHER"\n')
    own, other = images(1, study="a"), images(1, study="b")
    for dataset in (*own, *other):
        del dataset.IssuerOfPatientID
    desk.receive(*own)
    desk.receive(*other, ae="CT2")
    assert desk.study(uid_of(own)).patient.issuer == "GH"
    assert desk.study(uid_of(other)).patient.issuer == "OTHER"


def test_ids_are_compared_after_trimming(desk):
    sent = images(2)
    sent[0].PatientID, sent[1].PatientID = "A-1 ", " A-1\0"
    desk.receive(*sent)
    assert desk.states() == {"held": 2}


# Crashes: the same end, whatever was done already.


@pytest.mark.parametrize("step", ["settle", "clear", "drop"])
def test_a_crash_anywhere_is_repeated_to_the_same_end(desk, monkeypatch, step):
    sent = images(3)
    desk.receive(sent[0])
    with monkeypatch.context() as patch:
        real = getattr(desk.rooms.files, step)

        def crash(*args):
            if step == "settle":
                real(*args)
            raise Crash

        patch.setattr(desk.rooms.files, step, crash)
        desk.lay(*sent)  # one of them again
        with pytest.raises(Crash):
            desk.indexer.index(desk.clock.steady())
    while desk.indexer.index(desk.clock.steady()):
        pass
    assert desk.states() == {"held": 3}
    assert not inbox(desk)
    assert desk.study(uid_of(sent)).generation == 1
    assert len(desk.opened) == 1
    assert stored(desk, uid_of(sent)) == (4 if step == "drop" else 3)


def test_a_crash_before_the_commit_changes_nothing(desk, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(desk.indexer, "_opened", lambda *_: (_ for _ in ()).throw(Crash))
        desk.lay(*images(2))
        with pytest.raises(Crash):
            desk.indexer.index(desk.clock.steady())
    assert desk.rows("instances") == desk.rows("studies") == []
    assert len(inbox(desk)) == 2
    desk.indexer.index(desk.clock.steady())
    assert desk.states() == {"held": 2}


# Copies.


def test_identical_re_sends_change_nothing(desk):
    sent = images(3)
    desk.receive(*sent)
    desk.receive(*sent)
    desk.receive(sent[0], sent[0])
    assert desk.states() == {"held": 3}
    assert stored(desk, uid_of(sent)) == 3
    assert desk.codes(uid_of(sent)).count("resent") == 1
    assert len(desk.opened) == 1


def test_a_re_send_after_the_seal_opens_no_generation(desk):
    sent = images(3)
    desk.receive(*sent)
    seal(desk, sent)
    desk.receive(*sent)
    assert desk.study(uid_of(sent)).generation == 1


def seal(desk, sent, *, close: bool = False) -> None:
    from bridge.store import arrivals

    study = desk.study(uid_of(sent))
    with writing(desk.rooms.database) as connection:
        at = desk.clock.steady()
        arrivals.seal_generation(connection, study.id, study.generation, "test", at)
        if close:
            arrivals.close_generation(connection, study.id, study.generation, at)
            arrivals.set_state(connection, study.id, StudyState.DELIVERED, "done", at)


def test_late_images_open_the_next_generation(desk):
    desk.model()
    sent = images(4)
    desk.receive(*sent[:3])
    seal(desk, sent)
    desk.receive(sent[3])
    assert desk.study(uid_of(sent)).generation == 2
    assert len(desk.opened) == 2


def test_late_objects_that_no_model_reads_open_none(desk):
    desk.model()
    sent = images(3)
    desk.receive(*sent[:2])
    seal(desk, sent)
    capture = bench.changed(sent[2], SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    desk.receive(capture)
    assert desk.study(uid_of(sent)).generation == 1
    assert desk.states() == {"held": 3}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_another_encoding_of_thesame_pixels_is_no_news(desk, syntax):
    sent = images(2)
    desk.receive(*sent)
    other = copy.deepcopy(sent[0])
    if syntax == RLELossless:
        other.compress(RLELossless, generate_instance_uid=False)
    else:
        other.file_meta.TransferSyntaxUID = syntax
    desk.receive(other)
    assert desk.states() == {"held": 2, "discarded": 1}
    assert "correction" in desk.codes(uid_of(sent))
    assert "conflict" not in desk.codes(uid_of(sent))
    assert sent[0].file_meta.TransferSyntaxUID == ExplicitVRLittleEndian


def test_other_pixels_under_the_same_uid_are_a_conflict(desk):
    sent = images(2)
    desk.receive(*sent)
    seal(desk, sent, close=True)
    desk.receive(images(2, seed=1)[0])
    assert desk.states() == {"held": 2, "conflict": 1}
    story = desk.story(uid_of(sent))
    assert story.line.state is StudyState.ATTENTION
    assert "other pixels" in story.quarantined[0][0]


@pytest.mark.parametrize(
    ("tag", "words"), [("StudyInstanceUID", "study"), ("SeriesInstanceUID", "series")]
)
def test_the_same_uid_elsewhere_is_a_conflict(desk, tag, words):
    sent = images(2)
    desk.receive(*sent)
    desk.receive(bench.changed(sent[0], **{tag: "2.25.99"}))
    assert desk.states() == {"held": 2, "conflict": 1}
    conflict = next(row for row in desk.rows("instances") if row.state == "conflict")
    assert f"another {words}" in conflict.reason


def test_a_study_that_began_with_a_conflict_is_its_own_patients(desk):
    """A stray copy of another patient's image must not name the study that comes later."""
    sent = images(1)
    desk.receive(*sent)
    later = images(2, study="later", patient=BERT)
    desk.receive(bench.changed(sent[0], StudyInstanceUID=later[0].StudyInstanceUID))
    assert desk.study(uid_of(later)).generation == 0
    desk.receive(*later)
    assert desk.study(uid_of(later)).patient.patient_id == "B-2"
    ref = desk.rooms.vault.subject("GH", "B-2").ref
    assert desk.generation(uid_of(later)).subject_ref == ref


def test_copies_in_one_group_are_compared_as_well(desk):
    first, second = images(1)[0], images(1, seed=1)[0]
    desk.receive(first, bench.changed(first, StudyDescription="other"), second)
    assert desk.states() == {"held": 1, "discarded": 1, "conflict": 1}


def test_a_report_without_pixels_can_be_corrected(desk):
    report = images(1, Modality="PR", SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1", PixelData=None)
    desk.receive(*report)
    desk.receive(*every(report, PatientID="A-7"))
    assert desk.states() == {"held": 1, "discarded": 1}
    assert desk.study(uid_of(report)).patient.patient_id == "A-7"


def test_the_service_compares_pixels_in_a_child(tmp_path):
    from bridge.indexing import same_pixels

    first, other = images(1)[0], images(1, seed=1)[0]
    paths = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path, dataset in zip(
        paths, [first, bench.changed(first, PatientID="A-7"), other], strict=False
    ):
        dataset.save_as(path, enforce_file_format=True)
    paths[3].write_bytes(b"no DICOM")
    a, b, c, d = paths
    assert same_pixels(a, b) is True
    assert same_pixels(a, c) is False
    assert same_pixels(a, d) is None


# Identity.


def test_a_second_patient_is_quarantined_alone(desk):
    sent = images(3)
    stranger = bench.changed(images(4)[3], PatientID="B-2", PatientName="Beta^Bert")
    desk.receive(*sent[:2], stranger, sent[2])
    assert desk.states() == {"held": 3, "quarantined": 1}
    study = desk.study(uid_of(sent))
    assert study.patient.patient_id == "A-1"
    assert study.state is StudyState.RECEIVING


def test_a_quarantine_after_the_end_asks_for_attention(desk):
    sent = images(3)
    desk.receive(*sent[:2])
    seal(desk, sent, close=True)
    desk.receive(bench.changed(sent[2], PatientID="B-2"))
    assert desk.study(uid_of(sent)).state is StudyState.ATTENTION
    assert desk.study(uid_of(sent)).generation == 1


def test_an_empty_patient_id_is_quarantined_in_an_identified_study(desk):
    sent = images(3)
    desk.receive(*sent[:2], bench.changed(sent[2], PatientID=""))
    assert desk.states() == {"held": 2, "quarantined": 1}


def test_a_study_without_patient_id_is_held_under_a_key_of_its_own(desk):
    first, second = images(2, study="x", patient=NOBODY), images(2, study="y", patient=NOBODY)
    desk.receive(*first, *second)
    assert desk.states() == {"held": 4}
    refs = {desk.generation(uid_of(one)).subject_ref for one in (first, second)}
    assert len(refs) == 2
    desk.receive(images(3, study="x", patient=ANNA)[2])
    assert desk.states() == {"held": 4, "quarantined": 1}


def test_a_quarantined_image_in_another_encoding_stays_in_quarantine(desk):
    sent = images(2)
    stranger = bench.changed(images(3)[2], PatientID="B-2")
    desk.receive(*sent, stranger)
    other = copy.deepcopy(stranger)
    other.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    desk.receive(other)
    desk.receive(other)
    assert desk.states() == {"held": 2, "quarantined": 1, "discarded": 1}


@pytest.mark.parametrize("late", [False, True])
def test_a_quarantined_image_with_its_identity_corrected_joins_its_study(desk, late):
    desk.model()
    sent = images(3)
    desk.receive(*sent[:2], bench.changed(sent[2], PatientID="B-2"))
    if late:
        seal(desk, sent, close=True)
    desk.receive(sent[2])
    assert desk.states() == {"held": 3, "discarded": 1}
    assert desk.study(uid_of(sent)).generation == (2 if late else 1)


def test_an_identity_corrected_on_all_images_is_the_studys(desk):
    sent = images(3)
    desk.receive(*sent)
    seal(desk, sent, close=True)
    corrected = every(sent, PatientID="A-7", PatientName="Alpha^Annabel")
    desk.receive(*corrected)
    study = desk.study(uid_of(sent))
    assert study.patient.patient_id == "A-7"
    assert desk.story(uid_of(sent)).line.patient_name == "Alpha^Annabel"
    assert study.generation == 1
    assert study.state is StudyState.DELIVERED
    assert "identity" in desk.codes(uid_of(sent))
    assert desk.states() == {"held": 3, "discarded": 3}


def test_half_of_a_correction_changes_nothing_yet_and_quarantines_nothing(desk):
    sent = images(4)
    desk.receive(*sent[:3])
    desk.receive(bench.changed(sent[0], PatientID="A-7"))
    assert desk.study(uid_of(sent)).patient.patient_id == "A-1"
    assert "correcting" in desk.codes(uid_of(sent))
    # The sender goes on with both: what it corrects, and what it had not sent yet.
    desk.receive(bench.changed(sent[3], PatientID="A-7"), *every(sent[1:3], PatientID="A-7"))
    assert desk.study(uid_of(sent)).patient.patient_id == "A-7"
    assert desk.states() == {"held": 4, "discarded": 3}


# Our own results, and what cannot be read.


def test_a_result_of_ours_is_ignored(desk):
    from pydicom.dataset import Dataset

    sent = images(2)
    desk.receive(*sent)
    mark = Dataset()
    mark.ContributionDescription = "ct_lung run by radseal 0.1"
    back = bench.changed(images(3)[2], ContributingEquipmentSequence=[mark])
    desk.receive(back)
    assert desk.states() == {"held": 2, "own": 1}
    assert stored(desk, uid_of(sent)) == 2
    elsewhere = bench.changed(back, StudyInstanceUID="2.25.5", SOPInstanceUID="2.25.6")
    desk.receive(elsewhere)
    assert len(desk.rows("studies")) == 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"no DICOM at all",
        b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0\xff\xff\xff\xff",
    ],
)
def test_an_unreadable_file_is_quarantined_without_a_study(desk, damage):
    desk.receive(damage, *images(1))
    assert desk.states() == {"quarantined": 1, "held": 1}
    assert not inbox(desk)
    row = next(row for row in desk.rows("instances") if row.state == "quarantined")
    assert row.study_id is None
    assert row.reason


@pytest.mark.parametrize("tag", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", "../../etc/passwd", "1.2/3"])
def test_a_hostile_uid_never_becomes_a_path(desk, tag, value):
    desk.receive(bench.changed(images(1)[0], **{tag: value}))
    assert desk.states() == {"quarantined": 1}
    everything = {path.name for path in desk.settings.folder.rglob("*")}
    assert not everything & {"passwd", "3"}
