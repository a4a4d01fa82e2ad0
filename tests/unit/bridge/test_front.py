"""bridge.front: the house as pages and API see it, over real rows."""

from __future__ import annotations

import pytest
from bench import ANNA, images

from bridge.access import Principal, Role
from bridge.api.rooms import Act, StudyQuery
from bridge.errors import NotFound, Refused
from bridge.front import Front
from bridge.study import StudyState as S

UID = str(images(1)[0].StudyInstanceUID)


@pytest.fixture
def front(desk):
    desk.model()
    desk.receive(*images(2))
    return Front(desk.rooms, lambda: {"worker": True, "indexer": False})


@pytest.fixture
def who():
    return Principal("otto", Role.OPERATOR, frozenset(), "token")


def test_the_list(front):
    page = front.studies(StudyQuery())
    assert page.total == 1
    assert page.counts == {S.RECEIVING: 1}
    assert front.studies(StudyQuery(text=ANNA.id)).total == 1
    assert front.studies(StudyQuery(text="alpha")).total == 1
    assert front.studies(StudyQuery(text=UID)).total == 1
    assert front.studies(StudyQuery(text="1.2.3")).total == 0
    assert front.studies(StudyQuery(text="   ")).total == 1
    assert front.studies(StudyQuery(state=S.FAILED)).total == 0


def test_a_story_with_the_place_of_each_leaf(front, desk):
    desk.walk(UID)
    told = front.story(UID)
    assert all(
        line.index is not None for line in told.lines if line.leaf and line.code != "study.closed"
    )
    desk.leaves()  # publishes
    assert all(line.index is not None for line in front.story(UID).lines if line.leaf)
    assert front.story("1.2.3") is None


def test_acts_reach_the_rows(front, desk, who):
    assert front.act(Act.COMPLETE, UID, who)
    assert desk.generation(UID).declared
    with pytest.raises(Refused):
        front.act(Act.CANCEL, UID, who)
    with pytest.raises(Refused):
        front.act(Act.RETRY, UID, who)


def test_an_artifact_belongs_to_its_study(front, desk, who):
    desk.walk(UID)
    row = desk.rows("artifacts")[0]
    assert front.artifact(UID, row.sop_instance_uid, who).path.is_file()
    for study, artifact in (("1.2.3", row.sop_instance_uid), (UID, "1.2.3")):
        with pytest.raises(NotFound):
            front.artifact(study, artifact, who)


def test_a_receipt_comes_after_the_checkpoint(front, desk, who):
    (route_id,) = desk.seal(UID)
    from bridge import compose

    compose.compose(desk.rooms, desk.run(route_id))
    row = desk.rows("artifacts")[0]
    with pytest.raises(Refused, match="try again"):
        front.receipt(row.sop_instance_uid, who)
    desk.leaves()
    assert front.receipt(row.sop_instance_uid, who).startswith("c2sp.org/tlog-proof@v1")
    with pytest.raises(NotFound):
        front.receipt("1.2.3", who)


def test_the_ledgers_files(front, desk):
    assert front.ledger_file("checkpoint") is None
    desk.leaves()
    assert front.ledger_file("checkpoint").startswith(b"test.example.org/log\n")
    assert front.ledger_file("tile/0/999") is None


def test_readiness_names_what_does_not_run(front):
    checks = {check.name: check for check in front.ready()}
    assert checks["worker"].ok
    assert not checks["indexer"].ok
    assert "log" in checks["indexer"].words
    assert checks["disk"].ok


def test_metrics_hold_no_patient(front):
    text, kind = front.metrics()
    assert b"radseal_instances_indexed_total" in text
    assert kind.startswith("text/plain")
    for canary in (b"A-1", b"Alpha", UID.encode(), b"ACC-1"):
        assert canary not in text
