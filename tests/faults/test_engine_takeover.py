"""Two processes on one database: one is killed, frozen or cut off, and no work is lost.

Each worker writes what it did into one file; the proof is counted there, not in the engine's rows.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.engine import EngineClient
from bridge.engine.takeover import put_back

pytestmark = [pytest.mark.fault, pytest.mark.timeout(120)]

STUDIES = 12
WORKER = """
import os, sys, time
from pathlib import Path
from bridge.engine import Engine

url, folder, effects, name, seconds = sys.argv[1:]
engine = Engine(url, Path(folder), name)
engine.queue("study", 6, poll=0.1)
engine.queue("deliver", 1, partitioned=True, poll=0.1)


def effect(*words):
    handle = os.open(effects, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, (" ".join(map(str, (name, *words))) + "\\n").encode())
    os.close(handle)


@engine.step("consent")
def consent(study):
    effect("consent", study)


@engine.step("infer")
def infer(study):
    effect("infer-begins", study)
    time.sleep(float(seconds))
    effect("infer-ends", study)
    return f"result/{study}"


@engine.step("record")
def record(study, key):
    effect("record", study)


@engine.workflow("study")
def study(number):
    consent(number)
    key = infer(number)
    record(number, key)
    engine.enqueue("deliver", "deliver", f"deliver/{number}", number, partition="pacs")
    engine.wait(0.2)


@engine.workflow("deliver")
def deliver(number):
    record(f"delivery-{number}", "")


engine.launch()
effect("up", engine._lease.executor)
while True:
    time.sleep(0.2)
    if not engine.alive():
        effect("sick")
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.peer)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("database_url"))


class Workers:
    """Starts workers and reads what they did."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self.root = root
        self.file = folder / "effects"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, url: str, name: str, seconds: float = 0.5) -> subprocess.Popen[bytes]:
        locks = self.folder / "locks"
        script = self.folder / "worker.py"
        script.write_text(WORKER)
        said = (self.folder / f"{name}.log").open("ab")
        started = subprocess.Popen(
            [sys.executable, str(script), url, str(locks), str(self.file), name, str(seconds)],
            env={**os.environ, "PYTHONPATH": str(self.root)},
            stdout=said,
            stderr=said,
        )
        said.close()
        self.processes.append(started)
        until(lambda: any(line[:2] == [name, "up"] for line in self.effects()))
        return started

    def effects(self) -> list[list[str]]:
        return (
            [line.split() for line in self.file.read_text().splitlines()]
            if (self.file.exists())
            else []
        )

    def executor(self, name: str) -> str:
        return next(line[2] for line in self.effects() if line[:2] == [name, "up"])

    def count(self, what: str) -> collections.Counter[str]:
        return collections.Counter(line[2] for line in self.effects() if line[1] == what)

    def end(self) -> None:
        for one in self.processes:
            if one.poll() is None:
                one.send_signal(signal.SIGCONT)
                one.kill()
            one.wait()


@pytest.fixture
def workers(tmp_path: Path, root: Path) -> Iterator[Workers]:
    made = Workers(tmp_path, root)
    yield made
    made.end()


def until(true: Callable[[], Any], seconds: float = 30.0) -> float:
    """Wait for something to become true; give the seconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if true():
            return time.monotonic() - began
        time.sleep(0.05)
    raise AssertionError("it did not become true in time")


def all_done(client: EngineClient) -> bool:
    return all(
        client.status(f"{kind}/{n}") == "SUCCESS"
        for n in range(STUDIES)
        for kind in ("study", "deliver")
    )


def test_a_killed_process_work_is_finished_by_the_other(workers: Workers, url: str) -> None:
    with EngineClient(url) as client:
        first = workers.start(url, "first")
        workers.start(url, "second")
        for n in range(STUDIES):
            client.enqueue("study", "study", f"study/{n}", n)
        until(lambda: any(line[:2] == ["first", "infer-begins"] for line in workers.effects()))
        first.kill()
        first.wait()
        taken = until(lambda: all_done(client))
        assert taken < 25
        assert client.dead() == []
    recorded = workers.count("record")
    assert set(recorded) == {str(n) for n in range(STUDIES)} | {
        f"delivery-{n}" for n in range(STUDIES)
    }
    # a step runs again only where it was under way when the process died
    assert workers.count("infer-ends").total() == STUDIES
    assert recorded.total() <= 2 * STUDIES + 6
    assert not any(line[1] == "sick" for line in workers.effects())


def test_a_killed_process_goes_on_when_it_starts_again(workers: Workers, url: str) -> None:
    with EngineClient(url) as client:
        first = workers.start(url, "first", 1.0)
        for n in range(STUDIES):
            client.enqueue("study", "study", f"study/{n}", n)
        until(lambda: workers.count("infer-begins").total() >= 3)
        first.kill()
        first.wait()
        workers.start(url, "again", 0.1)
        until(lambda: all_done(client))
    assert workers.count("consent").total() <= STUDIES + 6
    assert workers.count("infer-ends").total() == STUDIES


def test_a_frozen_process_that_wakes_up_late_writes_nothing(workers: Workers, url: str) -> None:
    """Fencing: its work was given to another while it stood still; its own result is refused."""
    with EngineClient(url) as client:
        first = workers.start(url, "first", 2.0)
        client.enqueue("study", "study", "study/0", 0)
        until(lambda: workers.count("infer-begins").total() == 1)
        first.send_signal(signal.SIGSTOP)
        workers.start(url, "second", 0.1)
        time.sleep(1.5)
        assert client.status("study/0") == "PENDING"  # frozen is not dead: nobody takes it over
        assert put_back(client._desk, workers.executor("first")) == 1
        until(lambda: client.status("deliver/0") == "SUCCESS")
        first.send_signal(signal.SIGCONT)
        until(lambda: ["first", "infer-ends", "0"] in workers.effects())
        time.sleep(1.5)
        assert client.status("study/0") == "SUCCESS"
    assert workers.count("record") == {"0": 1, "delivery-0": 1}
    assert ["second", "record", "0"] in workers.effects()


@pytest.mark.peer
def test_a_server_restart_loses_nothing_and_nobody_is_taken_for_dead(
    workers: Workers, servers: Any, tmp_path: Path, start: Callable[..., Any]
) -> None:
    start("postgres")  # skips where there is none
    port = servers.free_port()
    with servers.own_folder("restarted", None) as place:
        place.chmod(0o755)
        with servers.postgres(port=port, folder=place) as server:
            url = server.create()
            with EngineClient(url) as client:
                workers.start(url, "first", 1.0)
                workers.start(url, "second", 1.0)
                for n in range(STUDIES):
                    client.enqueue("study", "study", f"study/{n}", n)
                until(lambda: workers.count("infer-begins").total() >= 4)
        time.sleep(2.0)
        with servers.postgres(port=port, folder=place), EngineClient(url) as client:
            until(lambda: all_done(client), 40)
            assert client.dead() == []
        workers.end()
    assert workers.count("infer-ends").total() == STUDIES
    assert workers.count("record").total() == 2 * STUDIES
    said = (tmp_path / "first.log").read_text() + (tmp_path / "second.log").read_text()
    assert "engine_took_over" not in said
