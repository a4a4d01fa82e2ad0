"""bridge.deliver and bridge.close: once, in order of proof, or a visible dead letter."""

from __future__ import annotations

import pytest
from bench import images
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from bridge import acts, compose, deliver
from bridge.close import _outcome
from bridge.engine import ROUTINE, URGENT
from bridge.home import publish
from bridge.store import work
from bridge.store.database import writing
from bridge.study import DeliveryState as D
from bridge.study import RouteState as R
from bridge.study import StudyState as S
from ledger.errors import NotCovered

UID = str(images(1)[0].StudyInstanceUID)
SR = "1.2.840.10008.5.1.4.1.1.88.34"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@given(st.integers(0, 10_000))
def test_backoff_grows_to_five_minutes_and_stays(attempt):
    assert 1 <= deliver.backoff(attempt) <= deliver.backoff(attempt + 1) <= 300


def test_backoff_is_quick_at_first():
    assert [deliver.backoff(n) for n in range(4)] == [1, 2, 4, 8]
    assert deliver.backoff(10_000) == 300


@pytest.fixture
def reported(new_site):
    """Make a desk whose one run is composed and published, its deliveries open."""

    def prepare(toml):
        desk = new_site(toml)
        desk.model()
        desk.receive(*images(3))
        (route_id,) = desk.seal(UID)
        run_id = desk.run(route_id)
        return desk, run_id, desk.report(run_id)

    return prepare


def test_what_a_model_calls_urgent_is_sent_first(new_site):
    desk = new_site("")
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    run_id = desk.run(route_id)
    for said, place in ((None, ROUTINE), ("ROUTINE", ROUTINE), ("STAT", URGENT)):
        with writing(desk.rooms.database) as connection:
            found = {**work.run_of(connection, run_id).findings, "priority": said}
            work.finish_run(connection, run_id, "completed", desk.rooms.now(), findings=found)
            assert deliver.priority(connection, run_id) == place


def states(desk) -> set[tuple[str, str]]:
    return {(row.destination, row.state) for row in desk.rows("deliveries")}


def delivered(desk) -> list[dict]:
    return [leaf for leaf in desk.leaves() if leaf["type"] == "result.delivered"]


def test_stored_objects_are_the_stored_bytes_with_their_receipt(reported, archive):
    pacs = archive()
    desk, run_id, names = reported(pacs.toml())
    assert names == ["pacs"]
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    assert states(desk) == {("pacs", "stored")}
    assert pacs.uids() == {row.sop_instance_uid for row in desk.rows("artifacts")}
    for row in desk.rows("artifacts"):
        got = next(d for d in pacs.received if d.SOPInstanceUID == row.sop_instance_uid)
        assert got == dcmread(desk.sent(row))
        del got[0x00990010:0x00991100]
        assert got == desk.artifact(row)
    assert {leaf["body"]["ack"]["status"] for leaf in delivered(desk)} == {"0x0000"}
    desk.finish(UID)
    assert desk.study(UID).state is S.DELIVERED
    assert desk.leaves()[-1]["type"] == "study.closed"
    desk.verify()


def test_a_retry_and_every_destination_get_the_same_bytes(reported, archive, monkeypatch):
    """The copy is made once: a later checkpoint, a crash or another destination changes nothing."""
    first, second = archive("A"), archive("B")
    desk, run_id, _ = reported(first.toml("a") + second.toml("b"))
    before = {row.kind: desk.sent(row).read_bytes() for row in desk.rows("artifacts")}
    assert sorted(before) == ["seg", "sr", "summary"]
    first.close()
    deliver.send(desk.rooms, run_id, "a", 0)
    desk.leaves()  # publishes: another checkpoint covers these results now
    sent = {}
    monkeypatch.setattr(deliver.dicom, "store", lambda _peer, files: sent.update(files) or {
        uid: deliver.dicom.Sent("stored", "stored", 0) for uid, _ in files
    })  # fmt: skip
    for name in ("a", "b"):
        assert deliver.send(desk.rooms, run_id, name, 1) == deliver.DONE
        for row in desk.rows("artifacts"):
            assert sent[row.sop_instance_uid].read_bytes() == before[row.kind]
    desk.verify()


def test_what_an_older_release_composed_is_stamped_before_it_is_sent(reported, archive):
    pacs = archive()
    desk, run_id, _ = reported(pacs.toml())
    for row in desk.rows("artifacts"):
        desk.sent(row).unlink()
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    assert all((0x0099, 0x1010) in one for one in pacs.received)


def test_sending_again_sends_nothing(reported, archive):
    pacs = archive()
    desk, run_id, _ = reported(pacs.toml())
    deliver.send(desk.rooms, run_id, "pacs", 0)
    assert deliver.send(desk.rooms, run_id, "pacs", 1) == deliver.DONE
    assert len(pacs.received) == 3


def test_each_destination_chooses(reported, archive):
    first, second = archive("A"), archive("B")
    desk, run_id, names = reported(
        first.toml("a", send=["sr"]) + second.toml("b", send=["seg", "summary"])
    )
    assert names == ["a", "b"]
    for name in names:
        deliver.send(desk.rooms, run_id, name, 0)
    assert [d.SOPClassUID for d in first.received] == [SR]
    assert len(second.received) == 2
    desk.verify()


def test_nothing_is_sent_before_a_checkpoint_covers_it(new_site, archive, monkeypatch):
    pacs = archive()
    desk = new_site(pacs.toml())
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    run_id = desk.run(route_id)
    compose.compose(desk.rooms, run_id)
    monkeypatch.setattr(deliver, "COVERED_WITHIN", 0.1)
    with pytest.raises(NotCovered):
        deliver.open_deliveries(desk.rooms, run_id)
    assert not desk.rows("deliveries")
    publish(desk.rooms)
    assert deliver.open_deliveries(desk.rooms, run_id) == ["pacs"]
    assert deliver.open_deliveries(desk.rooms, run_id) == ["pacs"]  # repeated
    assert len(desk.rows("deliveries")) == 3


def test_a_destination_that_is_down_is_tried_again_later(reported, archive):
    pacs = archive()
    desk, run_id, _ = reported(pacs.toml())
    pacs.close()
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == 1
    assert deliver.send(desk.rooms, run_id, "pacs", 3) == 8
    assert states(desk) == {("pacs", "waiting")}
    assert {row.attempts for row in desk.rows("deliveries")} == {2}
    desk.finish(UID)
    assert desk.study(UID).state is S.WORKING
    assert desk.codes(UID).count("retrying") == 3
    desk.verify()


def test_out_of_resources_is_tried_again_and_what_was_stored_is_not_sent_again(reported, archive):
    pacs = archive()
    pacs.status[SR] = 0xA700
    desk, run_id, _ = reported(pacs.toml())
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == 1
    pacs.status.clear()
    assert deliver.send(desk.rooms, run_id, "pacs", 1) == deliver.DONE
    assert [d.SOPClassUID for d in pacs.received].count(SR) == 1
    assert len(pacs.received) == 3
    desk.verify()


@pytest.mark.parametrize("status", [0xA900, 0xC001, 0x0122, 0x0124])
def test_a_refusal_is_a_dead_letter_and_retry_sends_it(reported, archive, status):
    pacs = archive()
    pacs.status[SR] = status
    desk, run_id, _ = reported(pacs.toml())
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    assert states(desk) == {("pacs", "stored"), ("pacs", "dead")}
    desk.finish(UID)
    assert desk.study(UID).state is S.ATTENTION
    dead = next(row for row in desk.rows("deliveries") if row.state == "dead")
    assert f"0x{status:04X}" in dead.words
    pacs.status.clear()
    assert acts.retry(desk.rooms, UID)
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    desk.finish(UID)
    assert desk.study(UID).state is S.DELIVERED
    desk.verify()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007])
def test_a_warning_is_stored(reported, archive, status):
    pacs = archive()
    pacs.status["*"] = status
    desk, run_id, _ = reported(pacs.toml())
    deliver.send(desk.rooms, run_id, "pacs", 0)
    assert states(desk) == {("pacs", "stored")}
    assert {leaf["body"]["ack"]["status"] for leaf in delivered(desk)} == {f"0x{status:04X}"}


def test_a_kind_that_the_peer_does_not_take_is_a_dead_letter_that_says_what_to_do(
    reported, archive
):
    pacs = archive(takes=[SR])
    desk, run_id, _ = reported(pacs.toml())
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    words = {row.words for row in desk.rows("deliveries") if row.state == "dead"}
    assert len(words) == 2
    assert all("take it out of `send`" in text for text in words)


def test_a_destination_that_left_site_toml_is_a_dead_letter(reported, archive):
    pacs = archive()
    desk, run_id, _ = reported(pacs.toml())
    object.__setattr__(desk.rooms.site, "__dict__", {
        **desk.rooms.site.__dict__, "destinations": (),
    })  # fmt: skip
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    assert states(desk) == {("pacs", "dead")}


def test_a_newer_result_takes_the_place_of_what_was_not_delivered(new_site, archive):
    pacs = archive()
    desk = new_site(pacs.toml())
    desk.model()
    sent = images(4)
    desk.receive(*sent[:3])
    (route_id,) = desk.seal(UID)
    first = desk.run(route_id)
    desk.report(first)
    desk.receive(sent[3])
    (second,) = desk.walk(UID)
    assert deliver.send(desk.rooms, first, "pacs", 0) == deliver.DONE
    assert len(pacs.received) == 3
    by_run = {(row.run_id, row.state) for row in desk.rows("deliveries")}
    assert by_run == {(first, "cancelled"), (second, "stored")}
    assert desk.study(UID).state is S.DELIVERED
    desk.verify()


def test_without_a_destination_the_study_is_read(reported):
    desk, _, names = reported("")
    assert names == []
    desk.finish(UID)
    assert desk.study(UID).state is S.DELIVERED
    assert "no destination" in desk.story(UID).line.state_words


# Closing.


def test_a_generation_is_closed_once(reported, archive):
    pacs = archive()
    desk, run_id, _ = reported(pacs.toml())
    deliver.send(desk.rooms, run_id, "pacs", 0)
    for _ in range(3):
        desk.finish(UID)
    assert [leaf["type"] for leaf in desk.leaves()].count("study.closed") == 1
    assert desk.generation(UID).closed_at is not None


def test_an_older_generation_does_not_say_where_the_study_stands(new_site):
    from bridge import close

    desk = new_site()
    desk.model()
    sent = images(4)
    desk.receive(*sent[:3])
    (route_id,) = desk.seal(UID)
    desk.receive(sent[3])
    desk.report(desk.run(route_id))
    close.finish(desk.rooms, desk.study(UID).id, 1)
    assert desk.study(UID).state is S.RECEIVING


@pytest.mark.parametrize(
    ("routes", "sent", "state"),
    [
        ([], [], S.UNWANTED),
        ([R.REPORTED], [D.STORED], S.DELIVERED),
        ([R.REPORTED], [], S.DELIVERED),
        ([R.REPORTED], [D.STORED, D.DEAD], S.ATTENTION),
        ([R.FAILED], [], S.FAILED),
        ([R.FAILED, R.REPORTED], [D.STORED], S.FAILED),
        ([R.DENIED], [], S.DENIED),
        ([R.DENIED, R.REPORTED], [D.STORED], S.DELIVERED),
        ([R.REPORTED], [D.HELD], S.DENIED),
        ([R.CARRIED], [], S.DELIVERED),
        ([R.CANCELLED], [], S.FAILED),
        ([R.REPORTED], [D.CANCELLED], S.FAILED),
        ([R.REPORTED], [D.CANCELLED, D.STORED], S.DELIVERED),
    ],
)
def test_where_a_study_stands(routes, sent, state):
    class Row:
        def __init__(self, state):
            self.state, self.reason, self.shadow = state, "the reason", False

    class Shadow(Row):
        def __init__(self, state):
            super().__init__(state)
            self.shadow = True

    live = [Row(one) for one in routes]
    found, words = _outcome(live, sent)
    assert found is state
    assert words
    if live:  # a shadow beside them changes nothing, however it ended
        for one in (R.FAILED, R.REPORTED, R.DENIED):
            assert _outcome([*live, Shadow(one)], sent) == (found, words)
