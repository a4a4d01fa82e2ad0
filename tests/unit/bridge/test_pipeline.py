"""bridge.pipeline: a fault of ours is seen and retried, trouble that passes is waited for."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy
from bench import Bench, images

from bridge import acts, ambient, compose, deliver, follow, infer, pipeline
from bridge.engine import Engine
from bridge.errors import Refused, StorageFull
from bridge.home import publish
from bridge.peers import dicom
from bridge.report.errors import ReportError
from bridge.study import StudyState as S
from ledger.errors import NotCovered, StorageFailed
from models.errors import PackageError

UID = str(images(1)[0].StudyInstanceUID)
TOML = (
    "[completion]\nquiet_seconds = 0.2\n"
    '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
)
pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        PermissionError(),
        StorageFull(),
        StorageFailed(),
        NotCovered(),
        sqlalchemy.exc.OperationalError("", {}, Exception()),
        sqlalchemy.exc.TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_passes_is_waited_for(error):
    assert pipeline._passes(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        KeyError("x"),
        ReportError("x"),
        Refused("x"),
        PackageError("f", "k", "x", "fix"),
        sqlalchemy.exc.IntegrityError("", {}, Exception()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_does_not_pass_is_not_waited_for(error):
    assert not pipeline._passes(error)


class Trouble:
    """Stands in for a stage: raises what it is given, `times` times, then does the work."""

    def __init__(self, stage: Callable[..., Any], error: Exception, times: int) -> None:
        self.stage, self.error, self.left = stage, error, times

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise self.error
        return self.stage(*args, **options)


@pytest.fixture
def served(new_site, monkeypatch) -> Iterator[Callable[[], Bench]]:
    """Serve a site in this process with the real engine: `served()` after the stages are set."""
    desk = new_site(TOML)
    monkeypatch.setattr(
        dicom, "store",
        lambda _peer, objects: {uid: dicom.Sent("stored", "stored", 0) for uid, _ in objects},
    )  # fmt: skip
    engine = Engine(desk.settings.database_url, desk.settings.folder / ".locks", "test")

    def start() -> Bench:
        desk.model()
        desk.rooms = replace(desk.rooms, work=engine, clock=ambient.Clock())
        pipeline.declare(engine, desk.rooms)
        engine.launch()
        desk.clock = desk.rooms.clock
        desk.indexer = desk._indexer()
        desk.receive(*images(3))
        study = desk.study(UID)
        engine.enqueue("study", "study", f"study/{study.id}/1", study.id, 1)
        return desk

    yield start
    engine.close()


def _until(desk: Bench, *states: S, seconds: float = 60) -> S:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        publish(desk.rooms)
        state = desk.study(UID).state
        if state in states:
            return state
        time.sleep(0.1)
    raise AssertionError(desk.story(UID))


@pytest.mark.parametrize(
    ("room", "stage"),
    [
        (follow, "look"), (infer, "seal"), (infer, "permitted"), (infer, "run"),
        (compose, "compose"), (deliver, "open_deliveries"), (deliver, "send"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_fault_in_any_stage_is_seen_and_retry_goes_on(served, monkeypatch, room, stage):
    monkeypatch.setattr(room, stage, Trouble(getattr(room, stage), KeyError("a fault"), 1))
    desk = served()
    _until(desk, S.ATTENTION, S.FAILED)
    assert "KeyError" in " ".join(line.words for line in desk.story(UID).lines)
    acts.retry(desk.rooms, UID)
    _until(desk, S.DELIVERED)
    desk.verify()
    with pytest.raises(Refused):
        acts.retry(desk.rooms, UID)


@pytest.mark.parametrize(
    ("room", "stage"),
    [
        (follow, "look"), (infer, "seal"), (infer, "run"), (compose, "compose"),
        (deliver, "open_deliveries"), (deliver, "send"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_full_disk_in_any_stage_is_waited_for(served, monkeypatch, room, stage):
    full = OSError(errno.ENOSPC, "full")
    monkeypatch.setattr(room, stage, Trouble(getattr(room, stage), full, 2))
    desk = served()
    assert _until(desk, S.DELIVERED, S.ATTENTION, S.FAILED) is S.DELIVERED
    desk.verify()
