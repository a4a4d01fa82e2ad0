"""bridge.compose: durable bytes are never composed again; a revision names the former."""

from __future__ import annotations

import json

import pytest
from bench import BERT, every, images
from pydicom import dcmread

from bridge import acts, compose, infer
from bridge.report import content
from bridge.study import ArtifactKind

UID = str(images(1)[0].StudyInstanceUID)
PARTIAL = (
    '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
    "partial = true\n"
)


@pytest.fixture
def ran(new_site):
    """Make a desk whose one route has run."""

    def prepare(sent=None, toml="", change=None):
        desk = new_site(toml)
        desk.model(change)
        desk.receive(*(images(3) if sent is None else sent))
        (route_id,) = desk.seal(UID)
        return desk, desk.run(route_id)

    return prepare


def artifacts(desk) -> dict[str, object]:
    return {row.kind: row for row in desk.rows("artifacts")}


def composed(desk) -> list[dict]:
    return [leaf for leaf in desk.leaves() if leaf["type"] == "result.composed"]


def test_all_objects_of_a_run_with_their_leaves(ran):
    desk, run_id = ran()
    assert compose.compose(desk.rooms, run_id) == run_id
    made = artifacts(desk)
    assert set(made) == {"seg", "sr", "summary"}
    assert len(composed(desk)) == 3
    for row in made.values():
        dataset = desk.artifact(row)
        assert dataset.SOPInstanceUID == row.sop_instance_uid
        assert dataset.StudyInstanceUID == UID
        assert dataset.PatientID == "A-1"
    sr_leaf = next(leaf for leaf in composed(desk) if leaf["body"]["kind"] == "sr")
    assert [ref["rel"] for ref in sr_leaf["refs"]] == ["inference.completed", "result.composed"]
    desk.verify()


def test_repeating_it_composes_nothing_again(ran, monkeypatch):
    desk, run_id = ran()
    compose.compose(desk.rooms, run_id)
    before, leaves = artifacts(desk), composed(desk)
    monkeypatch.setattr(compose, "_build", None)
    compose.compose(desk.rooms, run_id)
    assert artifacts(desk) == before
    assert composed(desk) == leaves


def test_after_a_crash_between_bytes_and_row_the_bytes_stand(ran, monkeypatch):
    desk, run_id = ran()
    with monkeypatch.context() as patch:
        patch.setattr(compose, "_record", lambda *_a, **_k: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            compose.compose(desk.rooms, run_id)
    (written,) = desk.rooms.files.artifacts.rglob("*.dcm")
    data = written.read_bytes()
    assert not desk.rows("artifacts")
    compose.compose(desk.rooms, run_id)
    assert written.read_bytes() == data
    row = artifacts(desk)["seg"]
    assert desk.settings.folder / row.file == written


def test_the_same_outcome_gets_the_same_uids_on_another_machine(ran):
    """UIDs are derived, so that a retry names the same instance (design §4.4)."""
    desk, run_id = ran()
    compose.compose(desk.rooms, run_id)
    made = {kind: row.sop_instance_uid for kind, row in artifacts(desk).items()}
    assert all(uid.startswith("2.25.") for uid in made.values())
    assert len(set(made.values())) == 3


def test_a_manifest_decides_what_there_is(ran):
    desk, run_id = ran(change={"deployment": {"results": {"secondary_capture": False}}})
    compose.compose(desk.rooms, run_id)
    assert set(artifacts(desk)) == {"seg", "sr"}


def broken(sent):
    sent[1].PixelData = sent[1].PixelData[:100]
    return sent


def test_a_failed_run_has_no_objects_unless_a_destination_asks(ran):
    desk, run_id = ran(broken(images(3)))
    compose.compose(desk.rooms, run_id)
    assert not desk.rows("artifacts")


def test_a_failed_run_has_a_partial_sr_where_a_destination_asks(ran):
    desk, run_id = ran(broken(images(3)), toml=PARTIAL)
    compose.compose(desk.rooms, run_id)
    row = artifacts(desk)["sr"]
    assert row.partial
    dataset = desk.artifact(row)
    assert dataset.CompletionFlag == "PARTIAL"
    (leaf,) = composed(desk)
    assert leaf["refs"][0]["rel"] == "inference.failed"
    assert leaf["body"]["partial"] is True
    desk.verify()


def test_an_incomplete_input_makes_a_partial_sr(new_site, archive):
    pacs = archive()
    desk = new_site("[completion]\nmax_wait_seconds = 60\n" + pacs.toml(destination=False))
    desk.model()
    sent = images(3)
    pacs.series = {str(sent[0].SeriesInstanceUID): (9, "CT")}
    desk.receive(*sent, ae="PACS")
    desk.look(UID)
    desk.clock.pass_(60)
    assert desk.look(UID) == 0
    run_id = desk.run(desk.rows("routes")[0].id)
    compose.compose(desk.rooms, run_id)
    assert desk.artifact(artifacts(desk)["sr"]).CompletionFlag == "PARTIAL"
    assert artifacts(desk)["sr"].partial


def test_a_new_generation_is_a_new_revision_that_names_its_predecessor(ran):
    sent = images(4)
    desk, run_id = ran(sent[:3])
    desk.report(run_id)
    first = artifacts(desk)["sr"]
    desk.receive(sent[3])
    (route_id,) = desk.seal(UID)
    compose.compose(desk.rooms, desk.run(route_id))
    second = next(row for row in desk.rows("artifacts") if row.kind == "sr" and row.revision == 2)
    assert second.sop_instance_uid != first.sop_instance_uid
    dataset = desk.artifact(second)
    named = dataset.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.sop_instance_uid
    leaf = next(
        x for x in composed(desk) if x["body"]["revision"] == 2 and x["body"]["kind"] == "sr"
    )
    assert "previous" in [ref["rel"] for ref in leaf["refs"]]
    desk.verify()


def test_a_retry_after_a_failure_is_a_new_revision(new_site, monkeypatch):
    desk = new_site(PARTIAL)
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    with monkeypatch.context() as patch:
        from models.errors import RunFailed

        def fail(**_options):
            raise RunFailed("memory", "too big")

        patch.setattr(infer.sandbox, "run", fail)
        compose.compose(desk.rooms, desk.run(route_id))
    compose.compose(desk.rooms, infer.run(desk.rooms, route_id, 2))
    revisions = sorted((r.kind, r.revision, r.partial) for r in desk.rows("artifacts"))
    assert ("sr", 1, True) in revisions
    assert ("sr", 2, False) in revisions
    desk.verify()


def test_a_revision_under_a_corrected_identity_begins_its_own_chain(ran):
    """The former leaf is of the former subject: no reference leads there (trace rule R0)."""
    sent = images(4)
    desk, run_id = ran(sent[:3])
    desk.report(run_id)
    desk.receive(*every(sent, PatientID=BERT.id))
    assert desk.study(UID).generation == 2
    (route_id,) = desk.seal(UID)
    compose.compose(desk.rooms, desk.run(route_id))
    assert max(row.revision for row in desk.rows("artifacts")) == 2
    desk.verify()


def test_leaves_commit_to_the_bytes_without_naming_anything(ran):
    desk, run_id = ran()
    compose.compose(desk.rooms, run_id)
    text = json.dumps(composed(desk))
    for row in artifacts(desk).values():
        assert row.sop_instance_uid not in text
        digest = content.content_digest(dcmread(desk.settings.folder / row.file))
        assert digest.hex() not in text
    for canary in ("A-1", "Alpha", "ACC-1", UID):
        assert canary not in text


def test_results_stay_in_the_study_when_its_acts_change_it(ran):
    desk, run_id = ran()
    desk.report(run_id)
    desk.finish(UID)
    kinds = {a.kind for route in desk.story(UID).routes for a in route.artifacts}
    assert kinds == {ArtifactKind.SEG, ArtifactKind.SR, ArtifactKind.SUMMARY}
    assert acts.find(desk.rooms, UID).id == desk.study(UID).id
