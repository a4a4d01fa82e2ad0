"""The promises of Store, kept by SqliteStore (and by any other that is given to `check_store`)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading

import pytest

from ledger.errors import LostRace, StorageFailed, WrongOrigin
from ledger.store import Appended, Facts, Head, Last, Row, SqliteStore

FACTS = Facts("t", "now")


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(tmp_path / "ledger.db")
    yield made
    made.close()


def hash_of(number):
    return number.to_bytes(32, "big")


def test_a_store_belongs_to_one_origin(store):
    assert store.head() == Head()
    assert store.pin("a") is None
    assert store.pin("a") == Head()
    assert store.pin("b") == store.pin("a") == Head()
    store.append("k", b"one", hash_of(1), FACTS)
    assert store.pin("a") == Head()
    with pytest.raises(WrongOrigin, match="belongs to a"):
        store.pin("b")


def test_the_first_leaf_of_a_key_stands(store):
    assert store.append("k", b"one", hash_of(1), FACTS) == Appended(hash_of(1), b"one", True)
    assert store.append("k", b"two", hash_of(2), FACTS) == Appended(hash_of(1), b"one", False)
    assert store.find(idem="k") == store.find(leaf_hash=hash_of(1)) == Row(hash_of(1), None, b"one")
    assert store.find(leaf_hash=hash_of(2)) is None
    assert store.find(idem="l") is None


def test_indexes_follow_arrival_without_gaps(store):
    store.pin("a")
    for number in range(5):
        store.append(f"k{number}", b"x", hash_of(number), FACTS)
    assert store.assign(3) == 3
    store.append("k5", b"x", hash_of(5), FACTS)
    assert store.assign(9) == 3
    assert store.assign(9) == 0
    assert [row.index for row in store.assigned(0, 99)] == list(range(6))
    assert [row.leaf_hash for row in store.assigned(2, 2)] == [hash_of(2), hash_of(3)]


def test_the_head_is_swapped_only_from_what_it_is(store):
    store.pin("a")
    one, two = Head(1, hash_of(1), "one"), Head(2, hash_of(2), "two")
    store.advance(Head(), one)
    assert store.head() == one
    for stale in (Head(), Head(1, hash_of(9), "one"), two):
        with pytest.raises(LostRace):
            store.advance(stale, two)
    assert store.head() == one


def test_questions(store):
    store.append("a", b"a", hash_of(1), Facts("t", "now", "s", "x"))
    store.append("b", b"b", hash_of(2), Facts("u", "now", "s"))
    assert [row.leaf_hash for row in store.select()] == [hash_of(1), hash_of(2)]
    assert [row.leaf_hash for row in store.select(subject="s")] == [hash_of(1), hash_of(2)]
    assert [row.leaf_hash for row in store.select(subject="s", type="u")] == [hash_of(2)]
    assert [row.leaf_hash for row in store.select(study="x")] == [hash_of(1)]
    assert store.select(study="y") == []


def test_discarding_forgets_bytes_not_rows(store):
    for number in range(4):
        store.append(f"k{number}", b"x", hash_of(number), FACTS)
    store.assign(3)
    store.discard(2)
    assert [row.data for row in store.assigned(0, 9)] == [None, None, b"x"]
    assert store.append("k0", b"y", hash_of(9), FACTS) == Appended(hash_of(0), None, False)
    assert store.find(idem="k3").data == b"x"


def test_threads_that_append_together_are_all_answered_with_their_own(store):
    answers = {}

    def work(worker):
        for number in range(25):
            key = worker * 100 + number
            answers[key] = store.append(f"k{key}", b"x", hash_of(key), FACTS)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {key: Appended(hash_of(key), b"x", True) for key in answers}
    assert len(answers) == store.assign(999) == 200


def test_processes_that_append_the_same_keys_store_each_once(tmp_path, store):
    code = (
        "import sys; from pathlib import Path; from ledger.store import *\n"
        "s = SqliteStore(Path(sys.argv[1]))\n"
        "for n in range(40):\n"
        "    s.append(f'k{n}', sys.argv[2].encode(), bytes([n]) + b'x' * 31, Facts('t', 'now'))\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "ledger.db"), name])
        for name in "abc"
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert len(store.select()) == 40


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"no database" * 100)
    with pytest.raises(StorageFailed):
        SqliteStore(tmp_path / "x")
    with pytest.raises(StorageFailed):
        SqliteStore(tmp_path / "no" / "x")


def test_a_database_that_stays_busy_is_a_storage_failure_and_a_retry_succeeds(tmp_path):
    store = SqliteStore(tmp_path / "ledger.db", busy_seconds=0.01)
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed):
        store.append("k", b"x", hash_of(1), FACTS)
    other.execute("ROLLBACK")
    other.close()
    assert store.append("k", b"x", hash_of(1), FACTS).fresh
    store.close()


def test_writes_are_synced_in_wal_mode(store):
    pragma = store._writer.execute
    assert pragma("PRAGMA journal_mode").fetchone() == ("wal",)
    assert pragma("PRAGMA synchronous").fetchone() == (2,)


def test_any_error_rolls_back(store):
    def fail():
        with store._transaction() as db:
            db.execute("INSERT INTO log VALUES (1, 'a', 0, x'', '')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.pin("b") is None


def test_a_closed_store_answers_with_a_storage_failure(tmp_path):
    store = SqliteStore(tmp_path / "ledger.db")
    store.close()
    for act in (store.head, lambda: store.assign(1), lambda: store.append("k", b"", b"", FACTS)):
        with pytest.raises(StorageFailed):
            act()


# --- the end of a log -----------------------------------------------------------------------------


def end(number):
    return Last("end", b"end", hash_of(number), FACTS)


def test_a_shut_store_has_its_last_leaf_last_and_takes_no_more(store):
    store.pin("a")
    store.append("k0", b"x", hash_of(0), FACTS)
    store.shut(end(1))
    store.shut(Last("other", b"other", hash_of(2), FACTS))  # typed again: nothing happens
    with pytest.raises(StorageFailed, match="the log is closed"):
        store.append("k1", b"x", hash_of(3), FACTS)
    assert [(row.index, row.data) for row in store.assigned(0, 9)] == [(0, b"x"), (1, b"end")]
    store.advance(Head(), Head(2, hash_of(7), "text"))
    store.discard(2)
    assert store.find(idem="k0") == Row(hash_of(0), 0, None)


def test_one_that_is_left_as_it_is_keeps_what_waits(store):
    store.append("k0", b"x", hash_of(0), FACTS)
    store.shut(None)
    assert [row.index for row in store.assigned(0, 9)] == [0]
    with pytest.raises(StorageFailed):
        store.append("k1", b"x", hash_of(1), FACTS)


def test_nothing_comes_after_the_end_whoever_appends_meanwhile(store, tmp_path):
    taken, refused, begun = [], [], threading.Event()

    def work(start):
        other = SqliteStore(tmp_path / "ledger.db")
        for number in range(start, start + 1_000_000):  # until it is refused
            try:
                other.append(f"k{number}", b"x", hash_of(number), FACTS)
                taken.append(number)
                begun.set()
            except StorageFailed:
                refused.append(number)
                break
        other.close()

    threads = [threading.Thread(target=work, args=(start,)) for start in (1_000, 2_000_000)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    store.shut(end(1))
    for thread in threads:
        thread.join()
    rows = store.assigned(0, 3_000_000)
    assert rows[-1].data == b"end"
    assert len(refused) == 2
    assert {row.leaf_hash for row in rows[:-1]} == {hash_of(number) for number in taken}


def test_a_settled_file_can_be_moved_alone(store, tmp_path):
    store.append("k0", b"x", hash_of(0), FACTS)
    store.settle()
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/ledger.db").write_bytes((tmp_path / "ledger.db").read_bytes())
    other = SqliteStore(tmp_path / "moved/ledger.db")
    assert other.find(idem="k0") == Row(hash_of(0), None, b"x")
    other.close()


def test_a_settled_store_has_one_file_and_lets_go_of_it(store, tmp_path):
    store.append("k0", b"x", hash_of(0), FACTS)
    store.settle()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]
    with pytest.raises(StorageFailed):
        store.append("k1", b"x", hash_of(1), FACTS)
    with pytest.raises(StorageFailed):
        store.head()


def test_a_file_that_another_has_open_is_not_settled_and_goes_on(store, tmp_path):
    store.append("k0", b"x", hash_of(0), FACTS)
    other = SqliteStore(tmp_path / "ledger.db")
    other.head()
    with pytest.raises(StorageFailed, match="open in another process"):
        store.settle()
    store.close()
    assert other.append("k1", b"x", hash_of(1), FACTS).fresh
    other.close()
    again = SqliteStore(tmp_path / "ledger.db")
    again.settle()
    assert sqlite3.connect(tmp_path / "ledger.db").execute(
        "SELECT count(*) FROM leaves"
    ).fetchone() == (2,)
