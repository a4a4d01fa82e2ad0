"""bridge.rerun: the same model on the same images again, against what the log holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bench import images, tiny
from sqlalchemy import update

from bridge import infer
from bridge.errors import NotFound, Refused
from bridge.rerun import COMMITMENT, FINDINGS, changed, rerun
from bridge.store.database import writing
from bridge.store.tables import runs
from models import sandbox

UID = str(images(1)[0].StudyInstanceUID)


@pytest.fixture
def ran(desk):
    """A desk with one completed run."""
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    return desk, desk.run(route_id)


def rewrite(desk, **values: Any) -> None:
    with writing(desk.rooms.database) as connection:
        connection.execute(update(runs).values(**values))


def test_the_same_model_on_the_same_images_is_equal_by_the_commitment(ran):
    desk, run_id = ran
    leaves, rows = len(desk.leaves()), desk.rows("runs")
    found = rerun(desk.rooms, run_id)
    assert found.differs == ()
    assert found.basis == COMMITMENT
    assert found.leaf == desk.rooms.record.find(f"ended/{run_id}")
    assert found.statement
    assert found.words.startswith("equal (compared: findings and mask, bit for bit")
    assert len(desk.leaves()) == leaves  # the permit of the run still stands
    assert desk.rows("runs") == rows
    assert not list(desk.rooms.files.work.rglob("rerun-*"))
    desk.verify()


def test_stored_findings_that_were_changed_are_named_without_their_values(ran):
    desk, run_id = ran
    findings = dict(desk.rows("runs")[0].findings)
    rewrite(desk, findings={**findings, "statement": "nothing at all"})
    found = rerun(desk.rooms, run_id)
    assert found.differs == ("statement",)
    assert "nothing at all" not in found.words


def test_another_mask_is_no_longer_what_the_leaf_commits_to(ran, monkeypatch):
    desk, run_id = ran
    run = sandbox.run

    def other(**options: Any) -> sandbox.Outcome:
        outcome = run(**options)
        np.savez_compressed(outcome.mask_path, mask=np.zeros((3, 4, 4), np.uint8))
        return outcome

    monkeypatch.setattr(sandbox, "run", other)
    found = rerun(desk.rooms, run_id)
    assert found.differs == ("the mask, or the findings as they were stored",)
    assert found.words.startswith("differs in the mask")


def test_without_a_commitment_only_the_findings_are_compared_and_it_is_said(ran, monkeypatch):
    desk, run_id = ran
    monkeypatch.setattr(desk.rooms.record, "find", lambda _idem: None)
    found = rerun(desk.rooms, run_id)
    assert (found.basis, found.leaf, found.differs) == (FINDINGS, None, ())
    assert "stored findings only" in found.words


def test_what_is_not_possible_says_why(ran):
    desk, run_id = ran
    with pytest.raises(NotFound, match="radseal runs"):
        rerun(desk.rooms, "0" * 32)
    route = desk.rows("routes")[0]
    with pytest.raises(NotFound):  # a route's id is not a run's
        rerun(desk.rooms, route.id)
    stored = [p for files in infer.paths_of(desk.rooms, desk.study(UID), route).values()
              for p in files]  # fmt: skip
    original = stored[0].read_bytes()
    stored[0].write_bytes(original[:-2] + bytes([original[-2] ^ 1, original[-1]]))
    with pytest.raises(Refused, match="not the ones that were sealed"):
        rerun(desk.rooms, run_id)
    stored[0].unlink()
    with pytest.raises(Refused, match="1 of 3 images of this run are no longer stored"):
        rerun(desk.rooms, run_id)
    rewrite(desk, state="failed", code="timeout")
    with pytest.raises(Refused, match=r"this run failed \(timeout\)"):
        rerun(desk.rooms, run_id)


def test_it_asks_consent_as_any_use_does(ran, monkeypatch):
    desk, run_id = ran
    denied = infer.permit.Answer(False, "consent denies it", "leaf")
    monkeypatch.setattr(infer.permit, "ask", lambda *_args, **_more: denied)
    with pytest.raises(Refused, match="may not be read again: consent denies it"):
        rerun(desk.rooms, run_id)


def test_a_runtime_that_is_not_as_it_was_is_named():
    then = {"version": "1.20", "cpu": "a", "process": "warm"}
    assert changed(then, {"version": "1.21", "cpu": "a", "process": "own"}) == ["version"]
    assert changed({}, then) == []


def test_a_model_that_is_not_what_it_was_does_not_run(ran):
    desk, run_id = ran
    row = desk.rows("models")[0]
    desk.rooms.catalog._open.clear()
    target = desk.settings.folder / row.folder / "models/model.onnx"
    target.write_bytes(tiny.threshold_graph(above=1.0).SerializeToString())
    with pytest.raises(Refused, match=r"not usable any more.*not the digest of models/model.onnx"):
        rerun(desk.rooms, run_id)
