"""The crash matrix on a real PostgreSQL: each statement, each commit, each act on files.

Three kinds of end: the process is gone; the server ends the session before the act; the server
does what it was asked, and the answer is lost. And what several nodes do to each other.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import crashes
import paper_log as paper
import psycopg
import pytest
import tall_log as tall
from crashes import Clock, Crash

from bridge.logstore import PostgresStore
from ledger import merkle, verify
from ledger.errors import LostRace, SecondSequencer, StorageFailed
from ledger.log import open_log
from ledger.sequencer import Sequencer, sequence

pytestmark = [pytest.mark.peer, pytest.mark.fault]

PUBLISHED, WAITING = 250, 20
FULL = os.environ.get("RADSEAL_SOAK") == "full"
ACTS = ("do_execute", "do_executemany", "do_execute_no_params", "do_commit")


class Bench:
    """One database and one folder, put back to the same state before each crash."""

    def __init__(self, url: str, folder: Path, cluster) -> None:
        self.url, self.cluster, self.folder = url, cluster, folder
        self.database = url.rsplit("/", 1)[1]
        self.name = folder / "template"
        store, log = self.opened(self.name)
        pour(log, 0, PUBLISHED)
        sequence(log, paper.NOW)
        pour(log, PUBLISHED, WAITING)
        store.close()
        self.sql("CREATE SCHEMA kept")
        for table in ("log", "leaves"):
            self.sql(f"CREATE TABLE kept.{table} AS TABLE ledger.{table}")

    def sql(self, statement: str):
        return self.cluster.execute(statement, self.database)

    def opened(self, folder: Path):
        store = PostgresStore(self.url)
        return store, open_log(folder, store, paper.ORIGIN, paper.signers())

    def fresh(self, name: str):
        """(store, log) as the template was."""
        self.sql("TRUNCATE ledger.log, ledger.leaves")
        self.sql("INSERT INTO ledger.log SELECT * FROM kept.log")
        self.sql("INSERT INTO ledger.leaves OVERRIDING SYSTEM VALUE SELECT * FROM kept.leaves")
        self.sql("SELECT setval(pg_get_serial_sequence('ledger.leaves', 'seq'), 100000)")
        return self.opened(tall.linked(self.name, self.folder / name))


def pour(log, start: int, count: int) -> list[bytes]:
    """Append leaves; number 0 opens the log."""
    hashes = []
    for number in range(start, start + count):
        data = tall.config_leaf(number)
        if number == 0:
            body = {"schema": 1, "origin": paper.ORIGIN, "vkeys": paper.VKEYS[:1]}
            data = paper.made(0, "log.opened", body)
        hashes.append(log.append(f"key/{number}", data))
    return hashes


@pytest.fixture(autouse=True)
def _nothing_is_really_synced(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


@pytest.fixture(scope="module")
def bench(postgres, tmp_path_factory):
    url = postgres.create("crash")
    yield Bench(url, tmp_path_factory.mktemp("crash"), postgres)
    postgres.drop(url)


def watch_postgres(clock: Clock, patch: pytest.MonkeyPatch, store: PostgresStore) -> None:
    """Count statements and commits; a `cut` ends the session that is speaking."""
    dialect = store._engine.dialect
    for name in ACTS:
        act = getattr(dialect, name)

        def acted(target, *rest, act=act, name=name):
            # A cursor's connection; a commit is asked of the connection, perhaps a pool's.
            connection = getattr(target, "driver_connection", None) or target.connection
            clock.session = connection.info.backend_pid
            return clock.wrap(name, act)(target, *rest)

        patch.setattr(dialect, name, acted)


def cut(clock: Clock, bench):
    """What a strike does when the server ends the session, before or after the act."""

    def strike(name: str) -> None:
        if not name.startswith("do_"):
            raise OSError(5, "Input/output error")
        bench.sql(f"SELECT pg_terminate_backend({clock.session})")
        if clock.after:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    return strike


def struck(bench, name: str, clock: Clock):
    """(store, log) after one publishing with the clock running."""
    store, log = bench.fresh(name)
    with pytest.MonkeyPatch.context() as patch:
        crashes.watch_files(clock, patch)
        watch_postgres(clock, patch, store)
        with contextlib.suppress(Crash, StorageFailed):
            sequence(log, paper.NOW)
    return store, log


def recovered(log) -> None:
    before = verify.verify_log(log.folder, paper.VKEYS).size
    assert before in (PUBLISHED, PUBLISHED + WAITING)
    pour(log, PUBLISHED + WAITING, 2)
    sequence(log, paper.NOW + timedelta(seconds=9))
    report = verify.verify_log(log.folder, paper.VKEYS)
    assert (report.size, report.ahead) == (PUBLISHED + WAITING + 2, ())
    for number in (PUBLISHED, PUBLISHED + 9, PUBLISHED + WAITING - 1, PUBLISHED + WAITING + 1):
        assert log.covered(merkle.leaf_hash(tall.config_leaf(number))) == number


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
@pytest.mark.parametrize("kind", ["process", "session"])
def test_every_crash_point(kind, after, bench, capsys):
    """Process: everything of it is gone. Session: the same process goes on with a new one."""
    clock = Clock()
    store, log = struck(bench, f"count-{kind}-{after}", clock)
    store.close()
    points = clock.count
    assert {"do_execute", "do_commit", "rename", "fsync", "unlink"} <= set(clock.names)
    # Every point in one of the two ways; in both where there is time.
    chosen = range(1, points + 1) if FULL else range(1 + after, points + 1, 2)
    for at in chosen:
        clock = Clock(at, after)
        if kind == "session":
            clock.strike = cut(clock, bench)
        store, log = struck(bench, f"{kind}-{after}-{at}", clock)
        assert clock.count >= at
        if kind == "process":
            store.close()
            store, log = bench.opened(log.folder)
        recovered(log)
        store.close()
        shutil.rmtree(log.folder)
    with capsys.disabled():
        words = f"{len(chosen)} of {points} points"
        print(f"\ncrash matrix: PostgreSQL, {kind}, after={after}, {words}, all recovered")


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done-untold"])
@pytest.mark.parametrize("kind", ["process", "session"])
def test_an_append_and_its_retry(kind, after, bench):
    data = tall.config_leaf(9000)
    at, struck_once = 0, True
    while struck_once:
        at += 1
        store, log = bench.fresh(f"append-{kind}-{after}-{at}")
        clock = Clock(at, after)
        if kind == "session":
            clock.strike = cut(clock, bench)
        with pytest.MonkeyPatch.context() as patch:
            watch_postgres(clock, patch, store)
            try:
                log.append("key/9000", data)
                struck_once = False
            except (Crash, StorageFailed):
                pass
        if kind == "process":
            store.close()
            store, log = bench.opened(log.folder)
        assert log.append("key/9000", data) == merkle.leaf_hash(data)
        (count,) = bench.sql("SELECT count(*) FROM ledger.leaves WHERE idem = 'key/9000'")[0]
        assert count == 1
        sequence(log, paper.NOW)
        assert verify.verify_log(log.folder, paper.VKEYS).size == PUBLISHED + WAITING + 1
        store.close()
    assert at == 3 if kind == "process" or after else at >= 2  # INSERT, COMMIT, then no strike


def test_a_paused_leader_loses_and_signs_nothing_that_others_see(bench, monkeypatch):
    """It held the lock, was paused while its session ended, and wakes after another published.

    Its file lock is not counted on here: another machine's would not be seen.
    """
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    store, log = bench.fresh("paused")
    advance = store.advance

    def paused(old, new):
        session = store._claim.connection.dbapi_connection.info.backend_pid
        bench.sql(f"SELECT pg_terminate_backend({session})")
        other, theirs = bench.opened(log.folder)
        pour(theirs, PUBLISHED + WAITING, 5)
        assert sequence(theirs, paper.NOW) == WAITING + 5
        other.close()
        return advance(old, new)

    store.advance = paused
    sequencer = Sequencer(log)
    with sequencer:
        with pytest.raises(LostRace):
            sequencer.sequence(paper.NOW)
        with pytest.raises(StorageFailed, match="has stopped"):
            sequencer.sequence(paper.NOW)
    store.advance = advance
    report = verify.verify_log(log.folder, paper.VKEYS)
    assert report.size == PUBLISHED + WAITING + 5
    pour(log, PUBLISHED + WAITING + 5, 3)
    assert sequence(log, paper.NOW) == 3
    assert verify.verify_log(log.folder, paper.VKEYS).size == PUBLISHED + WAITING + 8
    store.close()


def node(bench, folder: Path, start: int, count: int) -> subprocess.Popen[bytes]:
    program = Path(__file__).resolve().parents[1] / "ledger_node.py"
    command = [sys.executable, str(program), str(folder), str(start), str(count), bench.url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_nodes_that_are_killed_while_16_threads_of_each_append_and_all_want_to_sequence(bench):
    """kill -9 at random moments; what was acknowledged is there once, also after the retries."""
    store, log = bench.fresh("killed")
    chance, acknowledged = random.Random(5), set()
    count = 150
    for life in range(3):
        lives = [node(bench, log.folder, 1000 + place * count, count) for place in range(2)]
        pipes = [os.fdopen(os.dup(one.stdout.fileno()), "rb") for one in lives]
        for _ in range(chance.randrange(5, 60)):
            acknowledged.add(pipes[0].readline().strip())
        lives[0].kill()  # the other one goes on, and takes the lock over
        if life < 2:
            for _ in range(chance.randrange(5, 40)):
                acknowledged.add(pipes[1].readline().strip())
            lives[1].kill()
        for one, pipe in zip(lives, pipes, strict=True):
            acknowledged.update(line.strip() for line in pipe.read().splitlines(keepends=True)
                                if line.endswith(b"\n"))  # fmt: skip
            pipe.close()
            one.stderr.close()
            one.stdout.close()
            one.wait()
    assert b"done" in acknowledged  # the last of the second node's lives ended well
    pour(log, 1000, 2 * count)  # the clients say everything again
    sequence(log, paper.NOW)
    numbers = {int(one) for one in acknowledged if one not in (b"done", b"")}
    assert numbers <= set(range(1000, 1000 + 2 * count))
    assert len(numbers) >= count
    indexes = [log.covered(merkle.leaf_hash(tall.config_leaf(n))) for n in sorted(numbers)]
    assert None not in indexes
    size = PUBLISHED + WAITING + 2 * count
    assert verify.verify_log(log.folder, paper.VKEYS).size == size
    (rows,) = bench.sql("SELECT count(*) FROM ledger.leaves")[0]
    assert rows == size
    store.close()


def test_a_second_node_takes_over_when_the_first_is_gone(bench):
    store, log = bench.fresh("takeover")
    other, theirs = bench.opened(log.folder)
    with Sequencer(log):
        with pytest.raises(SecondSequencer):
            sequence(theirs, paper.NOW)
        pour(theirs, 2000, 3)  # it may append all the same
    assert sequence(theirs, paper.NOW) == WAITING + 3
    assert theirs.size() == log.size() == PUBLISHED + WAITING + 3
    for one in (store, other):
        one.close()


def test_a_server_that_is_full_refuses_and_keeps_what_it_took(bench):
    """A statement's own error: nothing of the append is there, and the next one succeeds."""
    store, log = bench.fresh("full")
    bench.sql("ALTER TABLE ledger.leaves ADD CONSTRAINT full_disk CHECK (idem <> 'key/9001')")
    try:
        with pytest.raises(StorageFailed):
            log.append("key/9001", tall.config_leaf(9001))
        assert log.find("key/9001") is None
    finally:
        bench.sql("ALTER TABLE ledger.leaves DROP CONSTRAINT full_disk")
    log.append("key/9001", tall.config_leaf(9001))
    assert sequence(log, paper.NOW) == WAITING + 1
    store.close()
