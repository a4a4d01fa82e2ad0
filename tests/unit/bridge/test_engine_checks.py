"""The start-up checks: each pitfall of the engine is refused in a sentence, or ruled out."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos._utils import GlobalParams

from bridge.engine import Engine, StartRefused, checks, wiring
from bridge.engine.lease import AdvisoryLease, FileLease, lease, new_executor


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def engine(url: str, tmp_path: Path) -> Iterator[Engine]:
    made = Engine(url, tmp_path / "locks", "host")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("python", "library", "fine"),
    [
        ((3, 11), (3, 40, 1), True),
        ((3, 11), (3, 34, 9), False),
        ((3, 12), (3, 40, 1), False),
        ((3, 12), (3, 42, 0), True),
        ((3, 13), (3, 46, 0), True),
    ],
)
def test_python_and_sqlite_fit_or_the_sentence_says_what_to_do(
    python: tuple[int, int], library: tuple[int, int, int], fine: bool
) -> None:
    if fine:
        checks.sqlite_matrix(python, library)
        return
    with pytest.raises(StartRefused, match="install SQLite 3"):
        checks.sqlite_matrix(python, library)


def test_another_dbos_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.installation()
    monkeypatch.setattr(checks, "version", lambda _name: "3.5.0")
    with pytest.raises(StartRefused, match=r"install requirements\.lock"):
        checks.installation()


def test_the_paid_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.util.find_spec("dbos_enterprise") is None
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _name: object())
    with pytest.raises(StartRefused, match="pip uninstall dbos-enterprise"):
        checks.installation()


def test_the_cloud_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GlobalParams, "dbos_cloud", True)
    with pytest.raises(StartRefused, match="unset it"):
        checks.installation()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://localhost/x", "use sqlite"),
        ("sqlite://", "must name a file"),
        ("sqlite:////nowhere/at/all/state.db", "check the folder"),
        ("postgresql+psycopg://nobody@127.0.0.1:1/x", "does not answer"),
    ],
)
def test_a_database_that_cannot_be_used_is_a_sentence(
    url: str, sentence: str, tmp_path: Path
) -> None:
    engine = Engine(url, tmp_path / "locks", "host")
    with pytest.raises(StartRefused, match=sentence):
        engine.launch()
    assert not engine.alive()


def test_a_refused_start_leaves_nothing_behind(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine.workflow("any")(lambda: None)
    engine.queue("work", 1)

    def broken(*_: object) -> None:
        raise OSError("disk")

    with monkeypatch.context() as patched:
        patched.setattr(wiring, "declare_queues", broken)
        with pytest.raises(OSError, match="disk"):
            engine.launch()
    assert list((tmp_path / "locks").iterdir()) == []
    engine.launch()
    assert engine.alive()


def test_the_file_is_in_wal_mode_and_every_connection_waits_for_the_lock(
    engine: Engine, tmp_path: Path
) -> None:
    engine.launch()
    with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as ours:
        assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with engine._database.connect() as theirs:
        assert theirs.exec_driver_sql("PRAGMA busy_timeout").scalar() == checks.BUSY_MILLISECONDS
        assert theirs.connection.dbapi_connection.isolation_level == "IMMEDIATE"


def test_the_configuration_is_the_measured_one(engine: Engine, url: str) -> None:
    found = wiring.config(url, "host-1-abc")
    assert (found["name"], found["application_version"]) == ("radseal", "1")
    assert found["serializer"].name() == "portable_json"
    assert found["executor_id"] == "host-1-abc"
    assert not {"conductor_key", "auto_upgrade", "sharding", "conductor_url"} & set(found)
    engine.launch()
    assert GlobalParams.app_version == "1"
    assert GlobalParams.executor_id.startswith("host-")


def test_each_start_has_an_id_of_its_own(tmp_path: Path) -> None:
    made = {new_executor(tmp_path, "host") for _ in range(50)}
    assert len(made) == 50
    assert checks.safe_name("../a b/ü") == "a-b"
    assert checks.safe_name("///") == "node"


def test_a_lock_file_is_dead_when_its_process_is(tmp_path: Path, url: str) -> None:
    mine = lease(url, tmp_path, "host")
    assert isinstance(mine, FileLease)
    script = (
        "import sys, time; from pathlib import Path; from bridge.engine.lease import lease\n"
        f"held = lease({url!r}, Path({str(tmp_path)!r}), 'other')\n"
        "print(held.executor, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(checks.__file__).parents[2],
    )
    assert other.stdout is not None
    executor = other.stdout.readline().strip()
    try:
        assert not mine.dead(executor)
        assert not mine.dead(mine.executor)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert mine.dead(executor)
    assert mine.dead("never-was")
    assert mine.dead("../../etc/passwd")
    mine.sweep({executor})
    assert (tmp_path / f"{executor}.lock").exists()
    mine.sweep(set())
    assert not (tmp_path / f"{executor}.lock").exists()
    mine.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.peer
def test_an_advisory_lock_is_dead_when_its_session_is(database_url: str, tmp_path: Path) -> None:
    mine, other = (lease(database_url, tmp_path, "host") for _ in range(2))
    assert isinstance(mine, AdvisoryLease)
    assert isinstance(other, AdvisoryLease)
    assert list(tmp_path.iterdir()) == []
    assert not mine.dead(other.executor)
    admin = sa.create_engine(database_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        pids = connection.scalars(
            sa.text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
        ).all()
        assert len(pids) == 2
        for pid in pids:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    admin.dispose()
    assert mine.renew()  # a new session, and the lock again
    end = time.monotonic() + 5
    while not mine.dead(other.executor) and time.monotonic() < end:
        time.sleep(0.05)
    assert mine.dead(other.executor)
    assert other.renew()
    assert not mine.dead(other.executor)
    mine.release()
    other.release()


@pytest.mark.peer
def test_a_transaction_pooler_is_refused(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = iter(range(10))
    scalar = sa.Connection.scalar

    def pooled(self: sa.Connection, statement: Any, *args: Any, **kwargs: Any) -> Any:
        if "pg_backend_pid" in str(statement):
            return next(pids)
        return scalar(self, statement, *args, **kwargs)

    monkeypatch.setattr(sa.Connection, "scalar", pooled)
    with pytest.raises(StartRefused, match="pooler"):
        lease(database_url, tmp_path, "host")


def test_a_stray_of_our_own_is_put_back(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workflow claimed by this process that no thread runs does not stay so for ever."""
    from bridge.engine import takeover

    monkeypatch.setattr(takeover, "_STRAY", 0.5)
    engine.workflow("any")(lambda: None)
    engine.queue("work", 1, poll=0.05)
    engine.launch(work=False)
    engine.enqueue("work", "any", "any")
    assert engine._lease is not None
    database = sa.create_engine(url)
    with database.begin() as connection:
        connection.execute(
            sa.text("UPDATE workflow_status SET status='PENDING', executor_id=:me"),
            {"me": engine._lease.executor},
        )
    database.dispose()
    assert engine.status("any") == "PENDING"
    end = time.monotonic() + 10
    while engine.status("any") != "ENQUEUED" and time.monotonic() < end:
        time.sleep(0.05)
    assert engine.status("any") == "ENQUEUED"
    engine.close()
    engine.launch()
    while engine.status("any") != "SUCCESS" and time.monotonic() < end + 10:
        time.sleep(0.05)
    assert engine.status("any") == "SUCCESS"
