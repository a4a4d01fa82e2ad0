"""bridge.acts: what people do to a study; each act once, with a reason."""

from __future__ import annotations

import pytest
from bench import changed, images

from bridge import acts, deliver, infer
from bridge.errors import NotFound, Refused
from bridge.study import Patient
from bridge.study import StudyState as S

UID = str(images(1)[0].StudyInstanceUID)


@pytest.fixture
def desk_with(new_site):
    def make(*objects, toml=""):
        desk = new_site(toml)
        desk.model()
        desk.receive(*objects)
        return desk

    return make


def strangers(count: int = 1, **tags) -> list:
    return [changed(one, **({"PatientID": "B-2"} | tags)) for one in images(3 + count)[3:]]


def test_an_unknown_study(desk):
    for act in (acts.complete, acts.retry, acts.cancel):
        with pytest.raises(NotFound, match="radseal studies"):
            act(desk.rooms, "1.2.3")
    for act in (acts.accept, acts.discard):
        with pytest.raises(NotFound):
            act(desk.rooms, "1.2.3", "dr-x")


def test_a_study_is_declared_complete_once(desk_with):
    desk = desk_with(*images(2))
    assert "complete" in acts.complete(desk.rooms, UID)
    assert desk.look(UID) == 0
    with pytest.raises(Refused, match="already"):
        acts.complete(desk.rooms, UID)


def test_our_own_id_is_as_good_as_the_uid(desk_with):
    desk = desk_with(*images(2))
    acts.complete(desk.rooms, desk.study(UID).id)
    assert desk.generation(UID).declared


def test_there_is_nothing_to_retry_or_cancel(desk_with):
    desk = desk_with(*images(2))
    desk.walk(UID)
    with pytest.raises(Refused, match="nothing of this study failed"):
        acts.retry(desk.rooms, UID)
    with pytest.raises(Refused, match="left to cancel"):
        acts.cancel(desk.rooms, UID)


def test_a_failed_run_is_tried_again_as_a_new_attempt(desk_with, monkeypatch):
    desk = desk_with(*images(2))
    (route_id,) = desk.seal(UID)
    with monkeypatch.context() as patch:
        from models.errors import RunFailed

        def fail(**_options):
            raise RunFailed("memory", "too big")

        patch.setattr(infer.sandbox, "run", fail)
        desk.report(desk.run(route_id))
    desk.finish(UID)
    assert desk.study(UID).state is S.FAILED
    acts.retry(desk.rooms, UID)
    assert desk.study(UID).state is S.WORKING
    desk.report(infer.run(desk.rooms, route_id, 2))
    desk.finish(UID)
    assert desk.study(UID).state is S.DELIVERED
    assert [run.attempt for run in desk.rows("runs")] == [1, 2]
    desk.verify()


def test_what_was_retried_can_be_retried_again(desk_with, archive):
    """Each retry is a workflow of its own: an id that was used starts nothing."""
    pacs = archive()
    pacs.status["*"] = 0xC000
    desk = desk_with(*images(2), toml=pacs.toml())
    (run_id,) = desk.walk(UID)
    for _ in range(3):
        assert desk.study(UID).state is S.ATTENTION
        acts.retry(desk.rooms, UID)
        deliver.send(desk.rooms, run_id, "pacs", 0)
        desk.finish(UID)
    import sqlalchemy as sa

    with desk.rooms.database.connect() as connection:
        found = connection.execute(
            sa.text("SELECT count(*) FROM workflow_status WHERE workflow_uuid LIKE 'deliver/%'")
        ).scalar_one()
    assert found == 3


def test_a_waiting_delivery_can_be_cancelled(desk_with, archive):
    pacs = archive()
    desk = desk_with(*images(2), toml=pacs.toml())
    pacs.close()
    (run_id,) = desk.walk(UID)
    assert desk.study(UID).state is S.WORKING
    acts.cancel(desk.rooms, UID)
    assert deliver.send(desk.rooms, run_id, "pacs", 1) == deliver.DONE
    desk.finish(UID)
    assert desk.study(UID).state is S.FAILED
    assert "cancelled by a person" in desk.story(UID).line.state_words


def test_a_route_can_be_cancelled_before_it_runs(desk_with):
    desk = desk_with(*images(2))
    desk.seal(UID)
    acts.cancel(desk.rooms, UID)
    assert {row.state for row in desk.rows("routes")} == {"cancelled"}
    desk.finish(UID)
    assert desk.study(UID).state is S.FAILED
    desk.verify()


# Quarantine.


def test_nothing_in_quarantine(desk_with):
    desk = desk_with(*images(2))
    for act in (acts.accept, acts.discard):
        with pytest.raises(Refused, match="in quarantine"):
            act(desk.rooms, UID, "dr-x")


def test_accepted_images_join_the_study_while_it_is_received(desk_with):
    desk = desk_with(*images(3), *strangers())
    acts.accept(desk.rooms, UID, "dr-x")
    study = desk.study(UID)
    assert study.identities == (Patient("GH", "A-1"), Patient("GH", "B-2"))
    assert study.generation == 1
    assert desk.states() == {"held": 4}
    (route_id,) = desk.seal(UID)
    assert len(desk.rows("routes")[0].arrivals["image"]) == 4
    desk.run(route_id)
    desk.verify()


def test_accepted_images_open_the_next_generation_of_a_closed_study(desk_with):
    desk = desk_with(*images(3), *strangers())
    desk.walk(UID)
    assert desk.study(UID).state is S.ATTENTION
    acts.accept(desk.rooms, UID, "dr-x")
    assert desk.study(UID).generation == 2
    assert desk.work.status(f"study/{desk.study(UID).id}/2") == "ENQUEUED"
    desk.walk(UID)
    assert desk.study(UID).state is S.DELIVERED
    assert max(row.revision for row in desk.rows("artifacts")) == 2
    desk.verify()


def test_the_accepted_patients_later_images_are_the_studys(desk_with):
    first, second = strangers(2)
    desk = desk_with(*images(3), first)
    acts.accept(desk.rooms, UID, "dr-x")
    desk.receive(second)
    assert desk.states() == {"held": 5}


def test_discarded_images_are_kept_and_not_read(desk_with):
    desk = desk_with(*images(3), *strangers())
    acts.discard(desk.rooms, UID, "dr-x")
    assert desk.states() == {"held": 3, "discarded": 1}
    folder = desk.rooms.files.instance(UID, "x").parent
    assert len(list(folder.glob("*.dcm"))) == 4
    desk.walk(UID)
    assert desk.study(UID).state is S.DELIVERED


@pytest.mark.parametrize("what", ["stranger", "conflict"])
def test_after_a_discard_the_study_stands_where_it_stood(desk_with, what):
    desk = desk_with(*images(3))
    desk.walk(UID)
    assert desk.study(UID).state is S.DELIVERED
    desk.receive(*(strangers() if what == "stranger" else images(1, seed=1)))
    assert desk.study(UID).state is S.ATTENTION
    acts.discard(desk.rooms, UID, "dr-x")
    assert desk.study(UID).state is S.DELIVERED
    assert not desk.story(UID).quarantined
    assert [leaf["type"] for leaf in desk.leaves()].count("study.closed") == 1


def test_an_unwanted_study_is_unwanted_again_after_a_discard(desk_with):
    desk = desk_with(*images(3, Modality="MR"))
    desk.walk(UID)
    desk.receive(*strangers(Modality="MR"))
    acts.discard(desk.rooms, UID, "dr-x")
    assert desk.study(UID).state is S.UNWANTED


def test_a_study_of_nothing_but_conflicts_is_over_after_a_discard(desk_with):
    desk = desk_with(*images(1))
    desk.receive(changed(images(1)[0], StudyInstanceUID="2.25.77"))
    assert desk.study("2.25.77").state is S.ATTENTION
    acts.discard(desk.rooms, "2.25.77", "dr-x")
    assert desk.study("2.25.77").state is S.UNWANTED


def test_a_conflict_cannot_be_accepted(desk_with):
    desk = desk_with(*images(3))
    desk.receive(*images(1, seed=1))
    with pytest.raises(Refused):
        acts.accept(desk.rooms, UID, "dr-x")


def test_the_story_says_who_decided(desk_with):
    desk = desk_with(*images(3), *strangers())
    acts.accept(desk.rooms, UID, "dr-x")
    assert any("dr-x" in line.words for line in desk.story(UID).lines)
