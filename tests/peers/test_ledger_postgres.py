"""The ledger on a real PostgreSQL keeps the promises that SQLite keeps."""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path

import pytest

from bridge.logstore import PostgresStore, has_schema
from ledger import leaf, verify
from ledger.errors import LostRace, SecondSequencer, StorageFailed, WrongOrigin
from ledger.log import open_log
from ledger.sequencer import Sequencer, sequence
from ledger.store import Appended, Facts, Head, Last, Row

pytestmark = pytest.mark.peer

FACTS = Facts("t", "now")


@pytest.fixture(scope="module")
def paper():
    """The module tests/paper_log.py."""
    if "paper_log" not in sys.modules:
        path = Path(__file__).resolve().parents[1] / "paper_log.py"
        spec = importlib.util.spec_from_file_location("paper_log", path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["paper_log"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["paper_log"])
    return sys.modules["paper_log"]


@pytest.fixture
def store(database_url):
    made = PostgresStore(database_url)
    yield made
    made.close()


def hash_of(number):
    return number.to_bytes(32, "big")


def test_the_promises(store):
    assert store.head() == Head()
    assert store.pin("a") is None
    assert store.pin("b") == store.pin("a") == Head()
    facts = Facts("u", "now", "s", "x")
    assert store.append("k0", b"one", hash_of(0), facts) == Appended(hash_of(0), b"one", True)
    assert store.append("k0", b"two", hash_of(9), facts) == Appended(hash_of(0), b"one", False)
    with pytest.raises(WrongOrigin):
        store.pin("b")
    for number in range(1, 5):
        store.append(f"k{number}", b"x", hash_of(number), FACTS)
    assert (store.assign(3), store.assign(9), store.assign(9)) == (3, 2, 0)
    assert [(row.index, row.leaf_hash) for row in store.assigned(1, 3)] == [
        (number, hash_of(number)) for number in (1, 2, 3)
    ]
    assert store.find(idem="k4") == store.find(leaf_hash=hash_of(4)) == Row(hash_of(4), 4, b"x")
    assert store.find(idem="none") is None
    assert [row.index for row in store.select(type="t")] == [1, 2, 3, 4]
    assert [row.index for row in store.select(study="x", subject="s")] == [0]
    store.discard(2)
    assert [row.data for row in store.assigned(0, 3)] == [None, None, b"x"]
    store.advance(Head(), Head(2, hash_of(2), "two"))
    with pytest.raises(LostRace):
        store.advance(Head(), Head(3, hash_of(3), "three"))
    assert store.head() == Head(2, hash_of(2), "two")


def test_only_one_node_claims_and_a_lost_session_frees_it(store, database_url):
    other = PostgresStore(database_url)
    assert store.claim()
    assert not store.claim()
    assert not other.claim()
    store.release()
    assert other.claim()
    other.close()
    assert store.claim()


def test_an_error_says_neither_statement_nor_values(store):
    with pytest.raises(StorageFailed) as refusal:
        store.append("k", b"x", None, Facts("t", "now", "Mueller^Hans"))
    assert "Mueller" not in str(refusal.value)
    assert "INSERT" not in str(refusal.value)


def test_two_nodes_append_and_one_sequences(store, database_url, tmp_path, paper):
    node = PostgresStore(database_url)
    site = paper.Site(tmp_path)
    first, second = (
        open_log(tmp_path / "log", one, paper.ORIGIN, paper.signers()) for one in (store, node)
    )
    site.log = first
    site.say("log.opened", {"schema": 1, "origin": paper.ORIGIN}, idem="opened")
    hashes = {}

    def work(log, start):
        for number in range(start, start + 40):
            data = paper.made(number, "config.changed", {"digest": f"{number:064x}"})
            hashes[number] = log.append(f"key/{number}", data)

    threads = [
        threading.Thread(target=work, args=(log, at)) for log, at in ((first, 1000), (second, 1020))
    ]
    with Sequencer(first) as sequencer:
        with pytest.raises(SecondSequencer):
            sequence(second, paper.NOW)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            sequencer.sequence(paper.NOW)
        sequencer.sequence(paper.NOW)
    assert len(hashes) == 60
    assert sorted(first.covered(one) for one in hashes.values()) == list(range(1, 61))
    assert verify.verify_log(tmp_path / "log", paper.VKEYS).size == 61
    assert leaf.parse(second.leaf(hashes[1000]))["idem"] == "key/1000"
    node.close()
    site.store.close()


def test_a_shut_store_takes_no_more_and_makes_room_for_the_next(store, database_url):
    store.pin("a")
    store.append("k0", b"x", hash_of(0), FACTS)
    store.shut(Last("end", b"end", hash_of(1), FACTS))
    store.shut(Last("other", b"other", hash_of(2), FACTS))
    with pytest.raises(StorageFailed):
        store.append("k1", b"x", hash_of(3), FACTS)
    assert [(row.index, row.data) for row in store.assigned(0, 9)] == [(0, b"x"), (1, b"end")]
    store.advance(Head(), Head(2, hash_of(7), "text"))
    store.discard(2)
    store.put_away("ledger_closed_1")
    assert has_schema(database_url, "ledger_closed_1")
    assert not has_schema(database_url, "ledger")
    with pytest.raises(StorageFailed):
        store.append("k1", b"x", hash_of(3), FACTS)  # who had the old log open
    new, old = PostgresStore(database_url), PostgresStore(database_url, "ledger_closed_1")
    assert new.pin("b") is None
    assert new.append("k0", b"y", hash_of(4), FACTS).fresh
    assert old.head() == Head(2, hash_of(7), "text")
    assert old.find(idem="k0") == Row(hash_of(0), 0, None)
    new.close()
    old.close()


def test_nothing_comes_after_the_end_whoever_appends_meanwhile(store, database_url):
    taken, refused = [], []

    def work(start):
        other = PostgresStore(database_url)
        for number in range(start, start + 200):
            try:
                other.append(f"k{number}", b"x", hash_of(number), FACTS)
                taken.append(number)
            except StorageFailed:
                refused.append(number)
        other.close()

    threads = [threading.Thread(target=work, args=(start,)) for start in (1000, 2000)]
    for thread in threads:
        thread.start()
    while not taken:
        pass
    store.pin("a")
    store.shut(Last("end", b"end", hash_of(1), FACTS))
    for thread in threads:
        thread.join()
    rows = store.assigned(0, 9999)
    assert rows[-1].data == b"end"
    assert refused
    assert {row.leaf_hash for row in rows[:-1]} == {hash_of(number) for number in taken}
