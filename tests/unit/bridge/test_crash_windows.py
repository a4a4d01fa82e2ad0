"""A crash in each window between two effects, one after the other: the outcome is the same.

Where tests/faults kills at random, this visits every place: before each commit of our tables,
after each leaf, each stored object and each object sent. The step that was hit is repeated, as
the engine does after a restart; the log, the rows and the PACS must then look as if nothing
had been, and the model must not have been given a second say.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, copies, images

from bridge import close, compose, deliver, follow, infer
from bridge.audit.file import verify_file
from bridge.files import Files
from bridge.home import publish
from bridge.peers import dicom
from bridge.study import StudyState
from ledger.log import Log
from ledger.policy import of_keys
from ledger.verify import read_vkeys
from models import sandbox, tasks
from models.errors import RunFailed

UID = str(images(1)[0].StudyInstanceUID)
TOML = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
STRIDE = 1 if os.environ.get("RADSEAL_SOAK") == "full" else 4
pytestmark = pytest.mark.timeout(600)


class Crash(BaseException):
    """The process ended here."""


@dataclass
class Windows:
    """Counts effects; raises Crash once, at number `at`."""

    at: int = -1
    armed: bool = False
    passed: int = 0
    received: dict[str, list[str]] = field(default_factory=dict)
    fickle: bool = False
    runs: int = 0

    def window(self, *_: Any) -> None:
        if self.armed:
            self.passed += 1
            if self.passed == self.at:
                raise Crash

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found = function(*args, **options)
            self.window()
            return found

        return call

    def store(self, _peer: Any, objects: Any) -> dict[str, dicom.Sent]:
        sent = {}
        for uid, path in objects:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.received.setdefault(uid, []).append(digest)
            sent[uid] = dicom.Sent("stored", "stored", 0x0000)
            self.window()
        return sent

    def ask(self, task: str, params: dict[str, Any], work: Path, _limits: Any) -> dict[str, Any]:
        """Do a child's task here; a `fickle` model fails when it is asked a second time."""
        work.mkdir(parents=True, exist_ok=True)
        self.runs += task == "run"
        if task == "run" and self.fickle and self.runs > 1:
            raise RunFailed("crashed", "the second opinion")
        found = tasks.TASKS[task]({**params, "threads": 1}, lambda _stage: None)
        return {**found, "peak_mb": 1}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    made = Windows()
    monkeypatch.setattr(Log, "append", made.after(Log.append))
    monkeypatch.setattr(Files, "keep_artifact", made.after(Files.keep_artifact))
    monkeypatch.setattr(Files, "keep_stamped", made.after(Files.keep_stamped))
    monkeypatch.setattr(Files, "settle", made.after(Files.settle))
    monkeypatch.setattr(Files, "clear", made.after(Files.clear))
    monkeypatch.setattr(dicom, "store", made.store)
    monkeypatch.setattr(sandbox, "_ask", made.ask)
    return made


def _insist(step: Callable[..., Any], *args: Any) -> Any:
    """Do a step; after a crash do it again, as the engine does."""
    try:
        return step(*args)
    except Crash:
        return step(*args)


def _index(desk: Bench) -> None:
    while desk.indexer.index(desk.clock.steady()):
        pass


def _generation(desk: Bench) -> None:
    """One generation, from the quiet period to its closing, each step as the pipeline calls it."""
    desk.clock.pass_(60)
    study = desk.study(UID)
    number = study.generation
    assert _insist(follow.look, desk.rooms, study.id, number) == 0
    _insist(close.finish, desk.rooms, study.id, number)
    for route in [r for r in desk.rows("routes") if r.generation == number]:
        assert _insist(infer.seal, desk.rooms, route.id) == infer.SEALED
        assert _insist(infer.permitted, desk.rooms, route.id)
        run = _insist(infer.run, desk.rooms, route.id, 1)
        _insist(compose.compose, desk.rooms, run)
        publish(desk.rooms)
        for name in _insist(deliver.open_deliveries, desk.rooms, run):
            while _insist(deliver.send, desk.rooms, run, name, 0) >= 0:
                pass
            _insist(close.finish, desk.rooms, study.id, number)
    _insist(close.finish, desk.rooms, study.id, number)


@pytest.fixture
def again(tmp_path: Path, windows: Windows) -> Iterator[Callable[[], Bench]]:
    """Give the same site again and again, with an active model and nothing received."""
    first = Bench(tmp_path / "first", TOML)
    first.model()
    first.close()
    with copies(tmp_path / "first", tmp_path / "copy", windows.window) as copy:
        yield copy


def _live(desk: Bench, windows: Windows, at: int) -> bool:
    """Let a study and a late image go the whole way, crash once; whether the crash came."""
    windows.at, windows.passed, windows.received, windows.armed = at, 0, {}, True
    sent = images(4)
    for batch in (sent[:3], sent[3:]):
        desk.lay(*batch)
        _insist(_index, desk)
        _generation(desk)
    windows.armed = False
    _judge(desk, windows)
    return windows.passed >= at


def _judge(desk: Bench, windows: Windows) -> None:
    desk.verify()
    counted = Counter(leaf["type"] for leaf in desk.leaves())
    expected = {
        "study.received": 2, "input.sealed": 2, "inference.started": 2, "inference.completed": 2,
        "result.composed": 6, "delivery.started": 6, "result.delivered": 6, "study.closed": 2,
    }  # fmt: skip
    assert {kind: counted[kind] for kind in expected} == expected
    assert counted["inference.failed"] == 0
    assert desk.states() == {"held": 4}
    assert not list(desk.rooms.files.inbox.iterdir())
    assert len(windows.received) == 6
    assert all(len(set(digests)) == 1 for digests in windows.received.values())
    assert len(desk.rows("artifacts")) == 6
    policy = of_keys(read_vkeys((desk.settings.folder / "ledger.vkey").read_text()))
    for row in desk.rows("artifacts"):
        data = desk.sent(row).read_bytes()
        assert windows.received[row.sop_instance_uid][0] == hashlib.sha256(data).hexdigest()
        assert verify_file(desk.sent(row), policy).changed == ()
    assert not list(desk.rooms.files.artifacts.rglob("*.part"))
    assert desk.study(UID).state is StudyState.DELIVERED
    assert len(desk.rows("generations")) == 2


@pytest.mark.soak
def test_a_crash_in_any_window_changes_nothing(
    again: Callable[[], Bench], windows: Windows
) -> None:
    at = 1
    while _live(again(), windows, at):
        at += STRIDE
    assert at > 60


def test_a_model_has_no_second_say_after_a_crash(
    again: Callable[[], Bench], windows: Windows
) -> None:
    windows.fickle = True
    for at in range(1, 8):
        desk = again()
        windows.at, windows.passed, windows.runs = at, 0, 0
        desk.receive(*images(3))
        (route_id,) = desk.seal(UID)
        infer.seal(desk.rooms, route_id)
        infer.permitted(desk.rooms, route_id)
        windows.armed = True
        run_id = _insist(infer.run, desk.rooms, route_id, 1)
        windows.armed = False
        desk.report(run_id)
        desk.verify()
        (row,) = desk.rows("runs")
        ends = [leaf for leaf in desk.leaves() if leaf["idem"] == f"ended/{run_id}"]
        assert [leaf["type"] for leaf in ends] == [f"inference.{row.state}"]
        assert windows.passed >= at or at > 5
