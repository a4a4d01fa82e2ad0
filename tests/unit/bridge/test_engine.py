"""The engine's verbs, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from bridge.engine import Engine, EngineClient, EngineError, StepFailed
from bridge.errors import NotFound, RadsealError

CANARY = "Canary^Patient"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("database_url"))


@pytest.fixture
def engine(url: str, tmp_path: Path) -> Iterator[Engine]:
    made = Engine(url, tmp_path / "locks", "test host")
    yield made
    made.close()


@pytest.fixture
def ours(url: str) -> Iterator[sa.Engine]:
    """Our own connection to the same database, with a table of ours."""
    made = sa.create_engine(url)
    with made.begin() as connection:
        connection.execute(sa.text("CREATE TABLE ours (id VARCHAR(80) PRIMARY KEY)"))
    yield made
    made.dispose()


def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for something to become true, and give it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not become true in time")


def over(engine: EngineClient, workflow_id: str, state: str = "SUCCESS") -> None:
    until(lambda: engine.status(workflow_id) == state)


def rows(url: str) -> str:
    """Every value in the engine's tables, as one text."""
    database = sa.create_engine(url)
    schema = None if url.startswith("sqlite") else "dbos"
    meta = sa.MetaData()
    meta.reflect(database, schema=schema)
    with database.begin() as connection:
        found = [str(connection.execute(sa.select(one)).all()) for one in meta.sorted_tables]
    database.dispose()
    return "\n".join(found)


# ---------------------------------------------------------------- steps and workflows


def test_a_workflow_runs_its_steps_and_keeps_their_results(engine: Engine) -> None:
    calls: list[int] = []

    @engine.step("double")
    def double(number: int) -> dict[str, int]:
        calls.append(number)
        return {"twice": 2 * number}

    @engine.workflow("sum")
    def total(number: int) -> int:
        return double(number)["twice"] + double(number + 1)["twice"]

    engine.queue("work", 2)
    engine.launch()
    engine.enqueue("work", "sum", "sum/1", 20)
    over(engine, "sum/1")
    assert calls == [20, 21]
    assert engine.alive()


def test_a_step_outside_a_workflow_is_the_plain_function(engine: Engine) -> None:
    @engine.step("plain")
    def plain() -> str:
        raise KeyError(CANARY)

    with pytest.raises(KeyError):
        plain()


def test_the_same_id_runs_once(engine: Engine) -> None:
    ran: list[int] = []
    engine.workflow("once")(lambda number: ran.append(number))
    engine.queue("work", 2)
    engine.launch()
    for _ in range(5):
        engine.enqueue("work", "once", "once/1", 1)
    over(engine, "once/1")
    time.sleep(0.5)
    assert ran == [1]
    with pytest.raises(EngineError, match="another name"):
        engine.enqueue("work", "other", "once/1")


def test_arguments_are_json_or_refused(engine: Engine) -> None:
    engine.workflow("any")(lambda _value: None)
    engine.queue("work", 1)
    engine.launch()
    with pytest.raises(TypeError):
        engine.enqueue("work", "any", "any/1", object())
    with pytest.raises(EngineError, match="priority 0"):
        engine.enqueue("work", "any", "any/2", 1, priority=0)


def test_a_step_is_tried_again_and_then_gives_up_in_one_form(engine: Engine) -> None:
    tries: list[str] = []
    seen: list[StepFailed] = []

    class SpokenError(RadsealError):
        """Safe to keep."""

        code = "not_today"

    @engine.step("flaky", attempts=3, interval=0.01)
    def flaky() -> str:
        tries.append("flaky")
        if len(tries) < 3:
            raise ConnectionError(CANARY)
        return "there"

    @engine.step("mute", attempts=5, interval=0.01, retry_on=lambda e: isinstance(e, OSError))
    def mute() -> None:
        tries.append("mute")
        raise ValueError(CANARY)

    @engine.step("spoken")
    def spoken() -> None:
        raise SpokenError("the disk is full")

    @engine.workflow("trying")
    def trying() -> str:
        there = flaky()
        for step in (mute, spoken):
            try:
                step()
            except StepFailed as failed:
                seen.append(failed)
        return there

    engine.queue("work", 1)
    engine.launch()
    engine.enqueue("work", "trying", "trying/1")
    over(engine, "trying/1")
    assert tries == ["flaky", "flaky", "flaky", "mute"]
    assert (seen[0].kind, seen[0].text, seen[0].code) == ("ValueError", "", None)
    assert (seen[1].kind, seen[1].text, seen[1].code) == (
        "SpokenError",
        "the disk is full",
        "not_today",
    )


def test_a_replay_sees_the_same_failure_and_runs_no_finished_step(
    engine: Engine, url: str, tmp_path: Path
) -> None:
    seen: list[tuple[str, str, Any]] = []
    calls: list[str] = []

    def declare(one: Engine) -> None:
        @one.step("fails")
        def fails() -> None:
            calls.append("fails")
            raise StopError("no")

        @one.workflow("replayed")
        def replayed() -> None:
            try:
                fails()
            except StepFailed as failed:
                seen.append((failed.kind, failed.text, failed.code))
            one.wait(60)

        one.queue("work", 1)

    class StopError(RadsealError):
        """No."""

        code = 7

    declare(engine)
    engine.launch()
    engine.enqueue("work", "replayed", "replayed/1")
    until(lambda: seen)
    engine.close()
    second = Engine(url, tmp_path / "locks", "second")
    declare(second)
    second.launch()
    with contextlib.closing(second):
        until(lambda: len(seen) == 2)
        assert second.wake("replayed/1")
        over(second, "replayed/1")
    assert calls == ["fails"]
    assert seen[0] == seen[1] == ("StopError", "no", 7)


def test_priority_orders_what_waits(engine: Engine) -> None:
    ran: list[str] = []
    engine.workflow("note")(ran.append)
    engine.queue("work", 1, poll=0.05)
    engine.launch(work=False)
    for name, priority in (("routine", 100), ("stat", 1), ("urgent", 50)):
        engine.enqueue("work", "note", name, name, priority=priority)
    engine.close()
    engine.launch()
    over(engine, "routine")
    assert ran == ["stat", "urgent", "routine"]


def test_a_delayed_workflow_starts_later(engine: Engine) -> None:
    ran: list[float] = []
    engine.workflow("later")(lambda: ran.append(time.monotonic()))
    engine.queue("work", 1)
    engine.launch()
    began = time.monotonic()
    engine.enqueue("work", "later", "later/1", delay=0.8)
    assert engine.status("later/1") == "DELAYED"
    over(engine, "later/1")
    assert ran[0] - began >= 0.8


def test_limits_of_a_queue_and_of_its_partitions(engine: Engine) -> None:
    lock, now, peak = threading.Lock(), {"a": 0, "b": 0, "all": 0}, {"a": 0, "b": 0, "all": 0}

    @engine.step("busy")
    def busy(kind: str) -> None:
        with lock:
            now[kind] += 1
            peak[kind] = max(peak[kind], now[kind])
        time.sleep(0.05)
        with lock:
            now[kind] -= 1

    engine.workflow("busy")(busy)
    engine.queue("plain", 3, poll=0.05)
    engine.queue("parted", 2, partitioned=True, poll=0.05)
    engine.launch()
    for n in range(12):
        engine.enqueue("plain", "busy", f"plain/{n}", "all")
        engine.enqueue("parted", "busy", f"parted/{n}", "ab"[n % 2], partition="ab"[n % 2])
    for n in range(12):
        over(engine, f"plain/{n}")
        over(engine, f"parted/{n}")
    assert peak["all"] <= 3
    assert peak["a"] <= 2
    assert peak["b"] <= 2
    assert max(peak.values()) > 1


def test_children_belong_to_their_parent_and_a_cascade_cancels_them(engine: Engine) -> None:
    @engine.workflow("parent")
    def parent() -> None:
        engine.enqueue("work", "child", f"{engine.current_id()}/child")
        engine.wait(60)

    engine.workflow("child")(lambda: engine.wait(60))
    engine.queue("work", 5)
    engine.launch()
    engine.enqueue("work", "parent", "parent")
    over(engine, "parent/child", "PENDING")
    engine.cancel("parent", children=True)
    assert engine.status("parent") == engine.status("parent/child") == "CANCELLED"
    until(lambda: not engine._running())


# ---------------------------------------------------------------- our transaction


def test_enqueue_in_our_transaction_exists_only_if_that_commits(
    engine: Engine, ours: sa.Engine
) -> None:
    ran: list[str] = []
    engine.workflow("note")(ran.append)
    engine.queue("work", 4, poll=0.05)
    engine.launch()
    insert = sa.text("INSERT INTO ours VALUES (:id)")
    with ours.connect() as connection:
        connection.execute(insert, {"id": "lost"})
        engine.enqueue_in(connection, "work", "note", "lost", "lost")
        connection.rollback()
    with ours.begin() as connection:
        connection.execute(insert, {"id": "kept"})
        engine.enqueue_in(connection, "work", "note", "kept", "kept", priority=1)
        engine.enqueue_in(connection, "work", "note", "kept", "kept", priority=1)
        found = connection.scalars(sa.text("SELECT id FROM ours")).all()
        assert found == ["kept"]  # our own statements still work on this connection
    over(engine, "kept")
    assert engine.status("lost") is None
    assert ran == ["kept"]


def test_a_crowd_of_our_transactions_beside_the_engine_loses_nothing(
    engine: Engine, ours: sa.Engine, url: str
) -> None:
    """Contention: four writers of ours enqueue in transactions while the engine runs the work."""
    if url.startswith("sqlite"):

        @sa.event.listens_for(ours, "connect")
        def patient(connection: sqlite3.Connection, _record: Any) -> None:
            connection.isolation_level = "IMMEDIATE"
            connection.execute("PRAGMA busy_timeout=30000")

        ours.dispose()
    ran: list[str] = []
    step = engine.step("note")(lambda name: ran.append(name))
    engine.workflow("note")(step)
    engine.queue("work", 20, poll=0.05)
    engine.launch()

    def writer(number: int) -> None:
        for n in range(25):
            name = f"{number}/{n}"
            with ours.begin() as connection:
                connection.execute(sa.text("INSERT INTO ours VALUES (:id)"), {"id": name})
                engine.enqueue_in(connection, "work", "note", name, name)

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    until(lambda: len(ran) == 100, 30)
    for number in range(4):
        over(engine, f"{number}/24")
    assert len(set(ran)) == 100


def test_wake_in_our_transaction(engine: Engine, ours: sa.Engine) -> None:
    woken: list[bool] = []
    engine.workflow("waits")(lambda: woken.append(engine.wait(30)))
    engine.queue("work", 2, poll=0.05)
    engine.launch()
    engine.enqueue("work", "waits", "waits")
    over(engine, "waits", "PENDING")
    with ours.begin() as connection:
        assert engine.wake_in(connection, "waits")
        assert not engine.wake_in(connection, "nobody")
    over(engine, "waits")
    assert woken == [True]


# ---------------------------------------------------------------- sleep, wait, wake


def test_wait_is_woken_before_during_or_not_at_all(engine: Engine) -> None:
    woken: list[bool] = []

    @engine.workflow("waits")
    def waits() -> None:
        woken.append(engine.wait(30))
        woken.append(engine.wait(0.3))
        woken.append(engine.wait(30))

    engine.queue("work", 2, poll=0.05)
    engine.launch(work=False)
    engine.enqueue("work", "waits", "waits")
    for _ in range(3):
        assert engine.wake("waits")  # before it began: three calls wake it once
    engine.close()
    engine.launch()
    until(lambda: len(woken) == 2)
    began = time.monotonic()
    assert engine.wake("waits")
    over(engine, "waits")
    assert time.monotonic() - began < 2.0
    assert woken == [True, False, True]
    assert not engine.wake("waits")
    assert not engine.wake("nobody")


def test_a_pause_survives_a_restart_and_ends_at_the_same_moment(url: str, tmp_path: Path) -> None:
    began, ended = time.monotonic(), []
    steps: list[str] = []

    def make() -> Engine:
        one = Engine(url, tmp_path / "locks", "host")
        before = one.step("before")(lambda: steps.append("before"))

        @one.workflow("sleeps")
        def sleeps() -> None:
            before()
            one.sleep(2.0)
            ended.append(time.monotonic())

        one.queue("work", 2, poll=0.05)
        return one

    first = make()
    first.launch()
    first.enqueue("work", "sleeps", "sleeps")
    until(lambda: steps)
    time.sleep(0.2)
    first.close()
    second = make()
    second.launch()
    with contextlib.closing(second):
        over(second, "sleeps")
    assert 1.9 <= ended[0] - began < 3.5
    assert steps == ["before"]


def test_a_wall_clock_that_jumps_does_not_shorten_a_pause(url: str, tmp_path: Path) -> None:
    real = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    wall = [real]
    engine = Engine(url, tmp_path / "locks", "host", now=lambda: wall[0])
    slept: list[float] = []

    @engine.workflow("sleeps")
    def sleeps() -> None:
        began = time.monotonic()
        engine.sleep(0.6)
        slept.append(time.monotonic() - began)

    engine.queue("work", 2, poll=0.05)
    engine.launch()
    with contextlib.closing(engine):
        engine.enqueue("work", "sleeps", "sleeps")
        over(engine, "sleeps", "PENDING")
        wall[0] = real + dt.timedelta(days=1)
        over(engine, "sleeps")
    assert slept[0] >= 0.6


def test_close_does_not_wait_for_sleepers(engine: Engine) -> None:
    engine.workflow("sleeps")(lambda: engine.sleep(300))
    engine.queue("work", 50, poll=0.05)
    engine.launch()
    for n in range(20):
        engine.enqueue("work", "sleeps", f"sleeps/{n}")
    until(lambda: len(engine._running()) == 20)
    began = time.monotonic()
    with EngineClient(engine.url) as client:
        engine.close()
        assert time.monotonic() - began < 3.0
        # put back, in its own queue, for whoever starts next
        assert client.status("sleeps/0") == "ENQUEUED"


# ---------------------------------------------------------------- cancel, retry, dead letters


def test_cancel_ends_a_wait_at_once_and_retry_goes_on(engine: Engine) -> None:
    steps: list[str] = []
    recorded = threading.Event()
    first = engine.step("first")(lambda: steps.append("first"))

    @engine.workflow("waits")
    def waits() -> None:
        first()
        recorded.set()  # a step that is cancelled before it is recorded runs again
        engine.wait(1.5)
        steps.append("end")

    engine.queue("work", 2, poll=0.05)
    engine.launch()
    engine.enqueue("work", "waits", "waits")
    until(recorded.is_set)
    engine.cancel("waits")
    assert engine.status("waits") == "CANCELLED"
    until(lambda: not engine._running(), 3)
    assert engine.retry("waits")
    over(engine, "waits")
    assert steps == ["first", "end"]
    assert not engine.retry("waits")
    with pytest.raises(NotFound):
        engine.retry("nobody")


def test_a_dead_letter_is_listed_and_goes_on_where_it_failed(engine: Engine) -> None:
    steps: list[str] = []
    broken = threading.Event()
    broken.set()

    @engine.step("prepare")
    def prepare() -> str:
        steps.append("prepare")
        return "key"

    @engine.step("send")
    def send(key: str) -> str:
        steps.append("send")
        if broken.is_set():
            raise ConnectionError(CANARY)
        return key

    engine.workflow("deliver")(lambda: send(prepare()))
    engine.queue("deliver", 1, partitioned=True, poll=0.05)
    engine.launch()
    engine.enqueue("deliver", "deliver", "d/1", partition="pacs")
    over(engine, "d/1", "ERROR")
    with EngineClient(engine.url) as client:
        (dead,) = client.dead()
        assert (dead.workflow_id, dead.name, dead.queue) == ("d/1", "deliver", "deliver")
        assert (dead.error, dead.text) == ("ConnectionError", "")
        assert abs(dt.datetime.now(dt.UTC) - dead.when) < dt.timedelta(minutes=1)
        broken.clear()
        assert client.retry("d/1")
        over(client, "d/1")
        assert client.dead() == []
    assert steps == ["prepare", "send", "send"]


def test_retry_since_a_named_step(engine: Engine) -> None:
    steps: list[str] = []
    answers = iter(["permanent", "ok"])
    send = engine.step("send")(lambda: steps.append("send") or next(answers))
    mark = engine.step("mark")(lambda state: steps.append(f"mark {state}"))

    @engine.workflow("deliver")
    def deliver() -> None:
        state = send()
        mark(state)
        if state != "ok":
            raise EngineError("refused by the peer")

    engine.queue("work", 1, poll=0.05)
    engine.launch()
    engine.enqueue("work", "deliver", "d")
    over(engine, "d", "ERROR")
    assert engine.dead()[0].text == "refused by the peer"
    with pytest.raises(NotFound, match="no step other"):
        engine.retry("d", since="other")
    assert engine.retry("d", since="send")
    over(engine, "d")
    assert steps == ["send", "mark permanent", "send", "mark ok"]


def test_one_that_started_too_often_is_a_dead_letter_and_keeps_its_queue(
    engine: Engine, url: str
) -> None:
    engine.workflow("poison")(lambda: None)
    engine.queue("work", 1, poll=0.05)
    engine.launch(work=False)
    engine.enqueue("work", "poison", "poison")
    table = "workflow_status" if url.startswith("sqlite") else "dbos.workflow_status"
    database = sa.create_engine(url)
    with database.begin() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET recovery_attempts = 200"))  # noqa: S608
    database.dispose()
    engine.close()
    engine.launch()
    over(engine, "poison", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
    (dead,) = engine.dead()
    assert (dead.queue, dead.error) == ("work", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
    assert engine.retry("poison")
    over(engine, "poison")


def test_health_counts(engine: Engine) -> None:
    engine.workflow("waits")(lambda: engine.wait(60))
    engine.workflow("fails")(lambda: 1 / 0)
    engine.queue("work", 2, poll=0.05)
    engine.launch()
    engine.enqueue("work", "fails", "fails")
    over(engine, "fails", "ERROR")
    for n in range(3):
        engine.enqueue("work", "waits", f"waits/{n}")
    engine.enqueue("work", "waits", "later", delay=60)
    until(lambda: len(engine._running()) == 2)
    found = engine.health()
    assert found["alive"] is True
    assert found["running"] == {"work": 2}
    assert found["queued"] == {"work": 1}
    assert found["oldest_queued_seconds"] < 60
    assert (found["delayed"], found["dead"], found["orphans"], found["processes"]) == (1, 1, 0, 1)


def test_prune_deletes_what_is_over_and_keeps_dead_letters(engine: Engine, url: str) -> None:
    step = engine.step("noted")(lambda: "a result")
    engine.workflow("good")(step)
    engine.workflow("fails")(lambda: 1 / 0)
    engine.queue("work", 2, poll=0.05)
    engine.launch()
    engine.enqueue("work", "good", "good")
    engine.enqueue("work", "fails", "fails")
    over(engine, "good")
    over(engine, "fails", "ERROR")
    now = dt.datetime.now(dt.UTC)
    assert engine.prune(now - dt.timedelta(hours=1)) == 0
    assert engine.prune(now + dt.timedelta(minutes=1)) == 1
    assert engine.status("good") is None
    assert "a result" not in rows(url)
    assert engine.prune(now + dt.timedelta(minutes=1), dead=True) == 1


def test_an_engine_may_be_launched_again_and_another_may_use_its_names(
    engine: Engine, url: str, tmp_path: Path
) -> None:
    ran: list[str] = []
    engine.workflow("note")(lambda: ran.append("first"))
    engine.queue("work", 1, poll=0.05)
    for n in range(2):
        engine.launch()
        engine.enqueue("work", "note", f"first/{n}")
        over(engine, f"first/{n}")
        with pytest.raises(EngineError, match="launched already"):
            engine.launch()
        engine.close()
    second = Engine(url, tmp_path / "locks", "other")
    second.workflow("note")(lambda: ran.append("second"))
    second.queue("work", 1, poll=0.05)
    second.launch()
    with contextlib.closing(second):
        second.enqueue("work", "note", "second")
        over(second, "second")
    assert ran == ["first", "first", "second"]
    assert list((tmp_path / "locks").iterdir()) == []


# ---------------------------------------------------------------- what must not happen


def test_no_patient_in_rows_or_logs_and_no_pickle(
    engine: Engine, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    @engine.step("reads", attempts=2, interval=0.01)
    def reads() -> None:
        raise ValueError(f"cannot parse {CANARY}")

    engine.workflow("reads")(reads)
    engine.workflow("raises")(lambda: json.loads(CANARY))
    engine.queue("work", 2, poll=0.05)
    with structlog.testing.capture_logs() as logged:
        engine.launch()
        engine.enqueue("work", "reads", "reads")
        engine.enqueue("work", "raises", "raises")
        over(engine, "reads", "ERROR")
        over(engine, "raises", "ERROR")
        engine.close()
    everything = rows(url)
    assert "portable_json" in everything
    assert "pickle" not in everything
    for text in (everything, str(logged), *capfd.readouterr()):
        assert "Canary" not in text
    assert {one["event"] for one in logged} >= {"engine_step_failed", "engine_workflow_failed"}


def test_a_pickled_row_is_not_obeyed(engine: Engine, url: str) -> None:
    """Somebody who can write rows must not thereby run code."""
    import base64
    import pickle

    class Bomb:
        def __reduce__(self) -> Any:
            return print, ("BOOM",)

    engine.workflow("any")(lambda _value: None)
    engine.queue("work", 1, poll=0.05)
    engine.launch(work=False)
    engine.enqueue("work", "any", "any", 1)
    engine.close()
    bomb = base64.b64encode(pickle.dumps({"args": (Bomb(),), "kwargs": {}})).decode()
    schema = "" if url.startswith("sqlite") else "dbos."
    database = sa.create_engine(url)
    with database.begin() as connection:
        for table in (
            "workflow_status SET serialization='py_pickle'",
            "workflow_input SET inputs=:b",
        ):
            connection.execute(
                sa.text(f"UPDATE {schema}{table}"), {"b": bomb} if ":b" in table else {}
            )
    database.dispose()
    engine.launch()
    over(engine, "any", "ERROR")


def test_nothing_connects_to_the_outside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and address[0] not in {
            "127.0.0.1",
            "::1",
            "localhost",
        }:
            reached.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    engine.workflow("any")(lambda: None)
    engine.queue("work", 1, poll=0.05)
    engine.launch()
    engine.enqueue("work", "any", "any")
    over(engine, "any")
    assert reached == []
