"""bridge.follow: looking at an arrival until all is decided, with a real source to ask."""

from __future__ import annotations

import shutil

import pytest
from bench import MODEL, changed, images

from bridge import acts, follow
from bridge.engine import ROUTINE, URGENT
from bridge.files import Attention
from bridge.store import arrivals
from bridge.store.database import writing
from bridge.study import StudyState

SITE = "[completion]\nquiet_seconds = 30\nsettle_seconds = 5\nmax_wait_seconds = 600\n"


def look(desk, uid) -> float:
    study = desk.study(uid)
    return follow.look(desk.rooms, study.id, study.generation)


@pytest.fixture
def uid() -> str:
    return str(images(1)[0].StudyInstanceUID)


def series(number: int = 0) -> str:
    return str(images(1, series=f"series{number}" if number else "series")[0].SeriesInstanceUID)


def test_a_quiet_study_is_sealed_with_its_route_and_its_leaf(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(4))
    assert look(desk, uid) == pytest.approx(30)
    assert desk.story(uid).waiting.startswith("4 images, 0 s quiet")
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    (route,) = desk.rows("routes")
    assert len(route.arrivals["image"]) == 4
    assert route.evidence["kind"] == "quiet"
    assert desk.study(uid).state is StudyState.WORKING
    assert desk.generation(uid).sealed_at is not None
    assert [leaf["type"] for leaf in desk.leaves()][-1] == "study.received"
    assert look(desk, uid) == 0  # a repeat changes nothing
    assert len(desk.rows("routes")) == 1


def test_a_route_is_enqueued_with_its_row(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(4))
    desk.clock.pass_(30)
    look(desk, uid)
    (route,) = desk.rows("routes")
    assert desk.work.status(f"route/{route.id}/1") == "ENQUEUED"


@pytest.mark.parametrize(("said", "priority"), [("STAT", URGENT), ("ROUTINE", ROUTINE)])
def test_an_urgent_study_goes_before_others(new_site, uid, monkeypatch, said, priority):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*[changed(i, RequestedProcedurePriority=said) for i in images(4)])
    asked, enqueue_in = [], desk.rooms.work.enqueue_in

    def note(*args, **how):
        asked.append((args[1], how.get("priority")))
        return enqueue_in(*args, **how)

    monkeypatch.setattr(desk.rooms.work, "enqueue_in", note)
    desk.clock.pass_(30)
    look(desk, uid)
    assert asked == [("route", priority)]


def test_no_active_model(new_site, uid):
    desk = new_site(SITE)
    desk.receive(*images(2))
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    assert desk.study(uid).state is StudyState.UNWANTED
    assert desk.story(uid).line.state_words == "no model is active"


def test_an_unwanted_study_says_why(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(2, Modality="MR"))
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    told = desk.story(uid)
    assert told.line.state is StudyState.UNWANTED
    assert "MR" in told.routes[0].reason
    assert "not wanted" in desk.codes(uid)
    assert [leaf["type"] for leaf in desk.leaves()][-1] == "study.received"


def test_an_image_between_the_look_and_the_seal_is_not_lost(new_site, uid, monkeypatch):
    """The indexer commits while we decide: the route must not be opened without the image."""
    desk = new_site(SITE)
    desk.model()
    sent = images(4)
    desk.receive(*sent[:3])
    desk.clock.pass_(30)
    real = follow.route.plan

    def plan(*args):
        monkeypatch.setattr(follow.route, "plan", real)
        desk.receive(sent[3])
        return real(*args)

    monkeypatch.setattr(follow.route, "plan", plan)
    assert look(desk, uid) > 0
    assert not desk.rows("routes")
    assert desk.generation(uid).sealed_at is None
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    assert len(desk.rows("routes")[0].arrivals["image"]) == 4


def test_declared_complete_starts_at_once(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(2))
    assert look(desk, uid) > 0
    acts.complete(desk.rooms, uid)
    assert look(desk, uid) == 0
    assert desk.rows("routes")[0].evidence["kind"] == "explicit"


def test_a_restart_begins_the_quiet_period_anew(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(2))
    desk.clock.pass_(29)
    desk.clock.started = desk.clock.time  # the process starts again
    desk.clock.pass_(29)
    assert look(desk, uid) == pytest.approx(1)
    desk.clock.pass_(1)
    assert look(desk, uid) == 0


def test_silence_says_nothing_while_nobody_listens(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    desk.receive(*images(2))
    listener = Attention(desk.rooms.files.instances / "listening")
    listener.pay(desk.clock.time)
    listener.cease()  # killed: this worker lives on in another process
    desk.clock.pass_(300)
    assert look(desk, uid) == pytest.approx(30)
    listener.pay(desk.clock.time)  # started again
    desk.clock.pass_(29)
    assert look(desk, uid) == pytest.approx(1)
    desk.clock.pass_(1)
    assert look(desk, uid) == 0
    listener.cease()


# Asking the source.


@pytest.fixture
def asking(new_site, archive):
    pacs = archive()
    desk = new_site(SITE + pacs.toml(destination=False))
    desk.model()
    return desk, pacs


def test_settled_counts_seal_long_before_the_quiet_period(asking, uid):
    desk, pacs = asking
    pacs.series = {series(): (4, "CT")}
    desk.receive(*images(4), ae="PACS")
    assert look(desk, uid) == pytest.approx(5)
    desk.clock.pass_(5)
    assert look(desk, uid) == 0
    assert pacs.asked == 2
    assert desk.rows("routes")[0].evidence == {
        "kind": "counts", "held": 4, "expected": 4, "seconds": 5, "incomplete": False,
    }  # fmt: skip


def test_a_pacs_that_forwards_slowly_causes_no_early_run(asking, uid):
    """It holds 4 from the start and sends them 40 s apart, longer than the quiet period."""
    desk, pacs = asking
    pacs.series = {series(): (4, "CT")}
    for image in images(4):
        assert not desk.rows("routes")
        desk.receive(image, ae="PACS")
        look(desk, uid)
        desk.clock.pass_(40)
        if len(desk.rows("instances")) < 4:
            assert look(desk, uid) > 0
    assert look(desk, uid) == 0  # the second answer since the last image
    assert desk.rows("routes")[0].evidence["kind"] == "counts"
    assert len(desk.rows("routes")[0].arrivals["image"]) == 4


def test_counts_that_grow_are_waited_for(asking, uid):
    desk, pacs = asking
    pacs.series = {series(): (2, "CT")}
    desk.receive(*images(4)[:2], ae="PACS")
    look(desk, uid)
    pacs.series = {series(): (4, "CT")}
    desk.clock.pass_(100)
    assert look(desk, uid) > 0
    assert desk.story(uid).waiting == "2 of 4 images"
    desk.receive(*images(4)[2:], ae="PACS")
    assert look(desk, uid) > 0
    desk.clock.pass_(5)
    assert look(desk, uid) == 0


def test_what_is_missing_at_the_longest_wait_is_said(asking, uid):
    desk, pacs = asking
    pacs.series = {series(): (12, "CT")}
    desk.receive(*images(4), ae="PACS")
    look(desk, uid)
    desk.clock.pass_(600)
    assert look(desk, uid) == 0
    assert desk.rows("routes")[0].evidence["incomplete"]
    assert desk.generation(uid).evidence.startswith("incomplete: 4 of 12 images")


def test_a_readable_series_not_yet_here_is_waited_for_and_an_unreadable_one_is_not(asking, uid):
    desk, pacs = asking
    pacs.series = {series(): (4, "CT"), "2.25.8": (1, "PR")}
    desk.receive(*images(4), ae="PACS")
    look(desk, uid)
    # The package says no modality of its input: any series could be read.
    assert desk.story(uid).waiting == "4 of 5 images"


@pytest.mark.parametrize("how", ["error", "empty", "strange", "no count", "down"])
def test_a_source_that_cannot_tell_leaves_the_quiet_period(asking, uid, how):
    desk, pacs = asking
    pacs.series = {series(): (4, "CT")}
    match how:
        case "error":
            pacs.find_status = 0xA700
        case "empty":
            pacs.series = {}
        case "strange":
            pacs.series = {series(): (b"many", "CT")}
        case "no count":
            pacs.series = {series(): (None, "CT")}
        case "down":
            pacs.close()
    desk.receive(*images(4), ae="PACS")
    assert look(desk, uid) == pytest.approx(30)
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    assert desk.rows("routes")[0].evidence["kind"] == "quiet"


def test_an_image_during_the_question_is_not_lost(asking, uid):
    desk, pacs = asking
    pacs.series = {series(): (3, "CT")}
    sent = images(4)
    desk.receive(*sent[:3], ae="PACS")
    look(desk, uid)
    desk.clock.pass_(5)
    pacs.before_answer.append(lambda: desk.receive(sent[3], ae="PACS"))
    assert look(desk, uid) > 0
    assert not desk.rows("routes")
    pacs.before_answer.clear()
    pacs.series = {series(): (4, "CT")}
    look(desk, uid)
    desk.clock.pass_(5)
    assert look(desk, uid) == 0
    assert len(desk.rows("routes")[0].arrivals["image"]) == 4


# Several models.


def test_a_package_whose_files_changed_holds_up_no_other_model(new_site, uid):
    desk = new_site(SITE)
    broken = desk.model({"deployment": {"identity": {"id": "test.broken"}}, "version": "9.9.9"},
                        name="broken")  # fmt: skip
    desk.rooms.catalog._open.clear()
    shutil.rmtree(desk.settings.folder / broken.folder)
    desk.model(model=bench_model())
    desk.receive(*images(4))
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    assert [row.model_id for row in desk.rows("routes")] == [MODEL]
    refused = next(r for r in desk.story(uid).routes if r.model == "test.broken")
    assert "cannot be used" in refused.reason


def bench_model():
    from bench import tiny

    return tiny.threshold_graph(above=90.0)


def test_a_second_generation_waits_for_itself(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    sent = images(4)
    desk.receive(*sent[:3])
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    desk.receive(sent[3])
    assert desk.study(uid).generation == 2
    assert look(desk, uid) > 0
    desk.clock.pass_(30)
    assert look(desk, uid) == 0
    assert sorted(len(row.arrivals["image"]) for row in desk.rows("routes")) == [3, 4]


def test_a_correction_during_the_quiet_period_begins_it_anew(new_site, uid):
    desk = new_site(SITE)
    desk.model()
    sent = images(2)
    desk.receive(*sent)
    desk.clock.pass_(20)
    desk.receive(changed(sent[0], StudyDescription="other"))
    desk.clock.pass_(10)
    assert look(desk, uid) == pytest.approx(20)


def test_a_generation_that_is_gone_is_over(new_site, uid):
    desk = new_site(SITE)
    desk.receive(*images(1))
    assert follow.look(desk.rooms, desk.study(uid).id, 7) == 0
    with writing(desk.rooms.database) as connection:
        arrivals.seal_generation(connection, desk.study(uid).id, 1, "x", desk.clock.steady())
    assert look(desk, uid) == 0
