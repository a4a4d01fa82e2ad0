"""Generations that overlap: a late image, a destination that is down, results that replace."""

from __future__ import annotations

import pytest
from bench import images

from bridge import acts, close, deliver, follow
from bridge.peers import dicom
from bridge.study import StudyState as S

UID = str(images(1)[0].StudyInstanceUID)
TOML = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the PACS answers next: the last one stays."""
    said = ["stored"]

    def store(_peer, objects):
        status = 0xA900 if said[0] == "permanent" else 0x0000
        return {uid: dicom.Sent(said[0], said[0], status) for uid, _ in objects}

    monkeypatch.setattr(dicom, "store", store)
    return said


def states(desk) -> dict[int, set[str]]:
    generation = {row.id: row.generation for row in desk.rows("routes")}
    route = {row.id: row.route_id for row in desk.rows("runs")}
    found: dict[int, set[str]] = {}
    for row in desk.rows("deliveries"):
        found.setdefault(generation[route[row.run_id]], set()).add(row.state)
    return found


def closed(desk) -> list[int]:
    return sorted(row.generation for row in desk.rows("generations") if row.closed_at)


def test_an_older_generation_closes_while_the_newer_one_waits(new_site, answers):
    desk = new_site(TOML)
    desk.model()
    answers[0] = "transient"
    sent = images(4)
    desk.receive(*sent[:3])
    (first,) = desk.walk(UID)
    desk.receive(sent[3])
    (second,) = desk.walk(UID)
    assert states(desk) == {1: {"cancelled"}, 2: {"waiting"}}
    assert deliver.send(desk.rooms, first, "pacs", 1) == deliver.DONE
    close.finish(desk.rooms, desk.study(UID).id, 1)  # as the first one's delivery does in the end
    assert closed(desk) == [1]
    assert desk.study(UID).state is S.WORKING
    answers[0] = "stored"
    deliver.send(desk.rooms, second, "pacs", 1)
    desk.finish(UID)
    assert closed(desk) == [1, 2]
    assert desk.study(UID).state is S.DELIVERED
    assert not desk.verify().open_studies


def test_a_dead_letter_is_replaced_by_the_newer_result_and_not_sent_by_retry(new_site, answers):
    desk = new_site(TOML)
    desk.model()
    answers[0] = "permanent"
    sent = images(4)
    desk.receive(*sent[:3])
    desk.walk(UID)
    assert desk.study(UID).state is S.ATTENTION
    answers[0] = "stored"
    desk.receive(sent[3])
    desk.walk(UID)
    assert states(desk) == {1: {"cancelled"}, 2: {"stored"}}
    assert desk.study(UID).state is S.DELIVERED
    with pytest.raises(acts.Refused):
        acts.retry(desk.rooms, UID)


def test_a_dead_letter_can_be_retried_again_and_again(new_site, answers):
    desk = new_site(TOML)
    desk.model()
    answers[0] = "permanent"
    desk.receive(*images(3))
    (run,) = desk.walk(UID)
    prefix = f"deliver/{run}/pacs/"
    for number in (1, 2):
        acts.retry(desk.rooms, UID)
        listed = desk.work._desk.list_workflows(name="deliver")
        assert sum(one.workflow_id.startswith(prefix) for one in listed) == number
        assert deliver.send(desk.rooms, run, "pacs", 0) == deliver.DONE
        assert states(desk) == {1: {"dead"}}


@pytest.mark.usefixtures("answers")
def test_an_image_late_for_a_series_that_is_being_read_opens_the_next_generation(new_site):
    desk = new_site(TOML)
    desk.model({"deployment": {"input": {"series": [{"role": "image", "selections": [
        {"name": "ct", "conditions": {"SeriesNumber": 1}}]}]}}})  # fmt: skip
    wanted, other = images(4, SeriesNumber=1), images(2, series="other", SeriesNumber=2)
    desk.receive(*wanted[:3])
    desk.clock.pass_(25)
    desk.receive(other[0])
    desk.clock.pass_(10)  # the first series is quiet, the study is not
    desk.look(UID)
    first = [row for row in desk.rows("routes") if row.generation == 1]
    assert first
    desk.receive(wanted[3])
    assert desk.study(UID).generation == 2
    assert follow.look(desk.rooms, desk.study(UID).id, 1) == 0
    desk.report(desk.run(first[0].id))
    close.finish(desk.rooms, desk.study(UID).id, 1)
    (second,) = desk.walk(UID)
    assert states(desk) == {1: {"cancelled"}, 2: {"stored"}}
    revisions = {row.run_id: row.revision for row in desk.rows("artifacts")}
    assert sorted(revisions.values()) == [1, 2]
    assert revisions[second] == 2
    close.finish(desk.rooms, desk.study(UID).id, 1)
    assert closed(desk) == [1, 2]
    assert not desk.verify().open_studies


@pytest.mark.usefixtures("answers")
def test_what_was_cancelled_during_its_run_is_closed_and_not_delivered(new_site):
    desk = new_site(TOML)
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    run = desk.run(route_id)  # the child still runs while a person cancels
    acts.cancel(desk.rooms, UID)
    assert closed(desk) == [1]
    assert desk.report(run) == []
    assert states(desk) == {}
    desk.finish(UID)
    assert desk.study(UID).state is S.FAILED
    assert not desk.verify().open_studies
