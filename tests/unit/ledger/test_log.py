"""The log: append, sequence, prove, restart, and what it refuses."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from ledger import leaf, note, verify
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    BadKey,
    Damaged,
    Gap,
    LeafError,
    LogError,
    NotCovered,
    RolledBack,
    SecondSequencer,
    StorageFailed,
    UnknownLeaf,
    WrongOrigin,
)
from ledger.log import WITNESSED, open_log
from ledger.merkle import consistency_proof, verify_consistency
from ledger.sequencer import Sequencer, sequence
from ledger.store import Facts, Head
from ledger.tiles import Hashes


def test_an_appended_leaf_is_there_but_not_covered(site):
    first = leaf.unref(site.fill(1)[0])
    assert site.log.covered(first) is None
    assert leaf.parse(site.log.leaf(first))["type"] == "config.changed"
    with pytest.raises(NotCovered):
        site.log.proof(first)
    assert (site.log.size(), site.log.checkpoint_text()) == (0, "")


def test_a_published_leaf_is_covered_and_proven(site, paper):
    first = leaf.unref(site.fill(1)[0])
    assert site.publish() == 2
    assert site.publish() == 0
    assert site.log.covered(first) == 1
    assert site.log.size() == 2
    assert verify.verify_proof(site.log.proof(first), paper.VKEYS).index == 1
    assert verify.verify_log(site.folder, paper.VKEYS).size == 2


def test_a_sequencer_that_ends_waits_for_the_thread_that_publishes(site, paper, monkeypatch):
    """Else a second one could begin, and the first would put an older checkpoint over its newer."""
    site.fill(3)
    inside, go = threading.Event(), threading.Event()
    sequencer = Sequencer(site.log).__enter__()
    replace = sequencer._replace_checkpoint

    def slow(head):
        inside.set()
        go.wait(10)
        replace(head)

    monkeypatch.setattr(sequencer, "_replace_checkpoint", slow)
    publishing = threading.Thread(target=sequence, args=(site.log, paper.NOW))
    publishing.start()
    assert inside.wait(10)
    ending = threading.Thread(target=sequencer.__exit__, args=(None, None, None))
    ending.start()
    with pytest.raises(SecondSequencer), Sequencer(site.log):
        pass
    go.set()
    publishing.join()
    ending.join()
    with Sequencer(site.log):
        assert site.log.size() == 4


def test_a_retry_is_the_same_leaf(site, paper):
    one = paper.made(7, "config.changed", {"digest": "0" * 64}, idem="same")
    two = paper.made(8, "config.changed", {"digest": "1" * 64}, idem="same")
    assert site.log.append("same", one) == site.log.append("same", two) == leaf.leaf_hash(one)
    assert site.log.find("same") == leaf.leaf_hash(one)
    assert site.log.find("other") is None
    site.publish()
    assert site.log.size() == 2


def test_only_leaves_are_appended(site, paper):
    for data in (b"", b"{}", b"\xff"):
        with pytest.raises(LeafError):
            site.log.append("key", data)
    with pytest.raises(LeafError, match="bears the key"):
        site.log.append("other", paper.made(1, "config.changed", {"digest": "0" * 64}))


def test_unknown_leaves(site):
    with pytest.raises(UnknownLeaf):
        site.log.leaf(b"x" * 32)
    with pytest.raises(UnknownLeaf):
        site.log.proof(b"x" * 32)
    assert site.log.covered(b"x" * 32) is None


def test_leaves_can_be_asked_for_by_their_facts(site, paper):
    story = paper.Story(site).until("input.sealed")
    site.publish()
    found = site.log.select(study=paper.STUDY)
    assert found == [
        (leaf.unref(story.refs["study.received"]), 4),
        (leaf.unref(story.refs["input.sealed"]), 5),
    ]
    assert site.log.select(study=paper.STUDY, type="input.sealed") == found[1:]
    assert len(site.log.select(subject=paper.SUBJECT)) == 2


@pytest.mark.parametrize("batch", [1, 100, 255, 256, 257])
def test_growth_in_steps_verifies_at_each(batch, site, paper):
    roots = []
    with site.sequencer():
        for step in range(3):
            hashes = site.fill(batch)
            site.publish(step)
            report = verify.verify_log(site.folder, paper.VKEYS)
            assert report.size == 1 + batch * (step + 1)
            assert report.ahead == ()
            roots.append(site.log.checkpoint())
            site.log.proof(leaf.unref(hashes[0]))
    from ledger.log import read_tile

    hashes = Hashes(roots[2].size, lambda tile: read_tile(site.folder, tile))
    for old in roots:
        path = consistency_proof(old.size, roots[2].size, hashes.perfect)
        verify_consistency(old.size, roots[2].size, old.root, roots[2].root, path)


def test_full_bundles_leave_the_database_and_can_still_be_read(site):
    hashes = site.fill(600)
    site.publish()
    assert [row.data is None for row in site.store.assigned(0, 999)].count(True) == 512
    for number in (0, 254, 255, 511, 599):
        data = site.log.leaf(leaf.unref(hashes[number]))
        assert leaf.parse(data)["body"]["digest"] == f"{number:064x}"
        assert site.log.append(f"key/{number + 1}", data) == leaf.unref(hashes[number])
    assert not list((site.folder / "tile").rglob("*.p/1"))
    path = site.folder / "tile/entries/000"
    path.write_bytes(path.read_bytes().replace(b"node-1", b"node-2"))
    with pytest.raises(Damaged):
        site.log.leaf(leaf.unref(hashes[0]))
    path.unlink()
    with pytest.raises(Damaged, match="is missing"):
        site.log.leaf(leaf.unref(hashes[0]))


def test_a_reader_with_an_older_checkpoint_finds_what_it_needs(site):
    from ledger.log import read_tile
    from ledger.tiles import ENTRIES, Tile, unpack

    with site.sequencer():
        site.fill(9)
        site.publish()
        old = site.log.checkpoint()
        site.fill(300)
        site.publish()
    assert not (site.folder / "tile/0/000.p").exists()
    hashes = Hashes(old.size, lambda tile: read_tile(site.folder, tile))
    from ledger.merkle import range_hash

    assert range_hash(0, old.size, hashes.perfect) == old.root
    assert len(unpack(read_tile(site.folder, Tile(ENTRIES, 0, 10)), 10)) == 10


def test_the_first_leaf_opens_the_log(tmp_path, paper):
    site = paper.Site(tmp_path, opened=False)
    site.fill(1)
    with pytest.raises(LogError, match=r"log\.opened"):
        site.publish()
    assert not (site.folder / "checkpoint").exists()


def test_the_first_leaf_names_the_origin(tmp_path, paper):
    site = paper.Site(tmp_path, opened=False)
    site.say("log.opened", {"schema": 1, "origin": "elsewhere.example"})
    with pytest.raises(LogError, match="names its origin"):
        site.publish()


def test_only_one_sequencer(site, paper):
    with site.sequencer():
        with pytest.raises(SecondSequencer), Sequencer(site.log):
            pass
        assert site.publish() == 1
        other = open_log(site.folder, site.store, site.log.origin, site.log.signers)
        with pytest.raises(SecondSequencer):
            sequence(other, paper.NOW)
    with site.sequencer():
        pass


def _hold(folder, database, ready, leave):
    from pathlib import Path

    from ledger.log import SqliteStore, open_log

    log = open_log(Path(folder), SqliteStore(Path(database)), "ledger.example.org/radiology")
    with Sequencer(log):
        ready.set()
        leave.wait(30)


def test_another_process_cannot_sequence_but_can_append(site):
    site.publish()
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    holder = context.Process(
        target=_hold, args=(str(site.folder), str(site.database), ready, leave)
    )
    holder.start()
    assert ready.wait(30)
    site.fill(1)
    with pytest.raises(SecondSequencer):
        site.publish()
    leave.set()
    holder.join(30)
    assert site.publish() == 1


def test_origins_and_keys(site, paper):
    assert site.store.head().size == 0
    with pytest.raises(WrongOrigin):
        open_log(site.folder, site.store, "other.example")
    with pytest.raises(WrongOrigin):
        open_log(site.folder, site.store, "a b")
    with pytest.raises(BadKey):
        open_log(site.folder, site.store, paper.ORIGIN, paper.signers("other.example"))
    with pytest.raises(BadKey, match="without signing keys"):
        sequence(open_log(site.folder, site.store, paper.ORIGIN), paper.NOW)
    site.publish()
    other = open_log(site.folder, site.store, paper.ORIGIN, paper.signers(name="other"))
    with pytest.raises(BadKey, match="signed by other keys"):
        sequence(other, paper.NOW)
    (site.folder / "checkpoint").write_text(
        note.sign_note("x.example\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n",
                       paper.signers("x.example"), 0)
    )  # fmt: skip
    with pytest.raises(WrongOrigin, match="belongs to x"):
        site.log.size()


def test_a_restart_goes_on(site, paper):
    site.fill(300)
    site.publish()
    site.fill(3)
    again = site.reopen()
    assert again.publish() == 3
    assert verify.verify_log(again.folder, paper.VKEYS).size == 304


def test_a_lost_database_is_not_replaced_by_an_empty_one(site, paper):
    site.publish()
    site.store.close()
    for path in site.database.parent.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(RolledBack):
        paper.Site(site.folder.parent, opened=False)


def test_a_rolled_back_database_is_refused(site, tmp_path, paper):
    site.publish()
    site.store.close()
    older = site.database.read_bytes()
    site = paper.Site(tmp_path, opened=False)
    site.number = 1
    site.fill(5)
    site.publish()
    site.store.close()
    for path in site.database.parent.glob("ledger.db*"):
        path.unlink()
    site.database.write_bytes(older)
    with pytest.raises(RolledBack):
        paper.Site(tmp_path, opened=False).publish()


def test_tiles_that_the_database_has_not_assigned_show_a_rollback(site):
    site.publish()
    (site.folder / "tile/0/000.p/9").write_bytes(bytes(9 * 32))
    with pytest.raises(RolledBack):
        site.publish()


def test_a_lagging_checkpoint_is_published_again(site):
    site.publish()
    older = (site.folder / "checkpoint").read_bytes()
    site.fill(5)
    site.publish()
    newer = (site.folder / "checkpoint").read_bytes()
    for spoiled in (older, None):
        if spoiled is None:
            (site.folder / "checkpoint").unlink()
        else:
            (site.folder / "checkpoint").write_bytes(spoiled)
        assert site.publish() == 0
        assert (site.folder / "checkpoint").read_bytes() == newer


def test_a_published_checkpoint_of_another_history_is_refused(site, paper, tmp_path):
    site.fill(3)
    site.publish()
    (tmp_path / "other").mkdir()
    other = paper.Site(tmp_path / "other", opened=False)
    other.say("log.opened", {"schema": 2, "origin": paper.ORIGIN})
    other.fill(1)
    other.publish()
    (site.folder / "checkpoint").write_bytes((other.folder / "checkpoint").read_bytes())
    with pytest.raises(Damaged, match="another history"):
        site.publish()


@pytest.mark.parametrize("level", ["entries", "0", "1"])
def test_a_damaged_right_edge_is_refused(level, site):
    site.fill(300)
    site.publish()
    name = {"entries": "entries/001.p/45", "0": "0/001.p/45", "1": "1/000.p/1"}[level]
    path = site.folder / "tile" / name
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged):
        site.publish()
    path.write_bytes(data[:-1])
    with pytest.raises(Damaged):
        site.publish()
    path.unlink()
    with pytest.raises(Damaged, match="is missing"):
        site.publish()


def test_a_gap_in_the_database_is_refused(site):
    site.fill(3)
    site.store.assign(9)
    with site.store._transaction() as db:
        db.execute("DELETE FROM leaves WHERE idx = 2")
    with pytest.raises(Gap):
        site.publish()


def test_changed_bytes_in_the_database_are_refused(site):
    site.fill(1)
    with site.store._transaction() as db:
        db.execute("UPDATE leaves SET data = x'00' WHERE idem = 'key/1'")
    with pytest.raises(Damaged, match="other bytes"):
        site.publish()


def test_after_a_failed_write_nothing_is_signed_until_a_restart(site, monkeypatch, paper):
    site.publish()
    fsync = os.fsync
    with site.sequencer() as sequencer:
        site.fill(1)

        def full(_handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageFailed, match="No space left"):
            sequencer.sequence(paper.NOW)
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageFailed, match="has stopped"):
            sequencer.sequence(paper.NOW)
    assert site.publish() == 1
    assert verify.verify_log(site.folder, paper.VKEYS).size == 2


def test_a_sequencer_that_was_left_has_stopped(site, paper):
    with site.sequencer() as sequencer:
        pass
    with pytest.raises(StorageFailed, match="has stopped"):
        sequencer.sequence(paper.NOW)


def test_a_bit_that_flips_on_the_way_to_the_disk_is_never_signed_for(site, monkeypatch, paper):
    site.publish()
    site.fill(1)
    write = os.write

    def flip(handle, data):
        changed = bytearray(data)
        changed[-1] ^= 1
        return write(handle, changed)

    monkeypatch.setattr(os, "write", flip)
    with pytest.raises(Damaged, match="read back"):
        site.publish()
    monkeypatch.undo()
    assert site.log.size() == 1
    site.fill(1)
    assert site.publish() == 2
    assert verify.verify_log(site.folder, paper.VKEYS).size == 3


def test_a_paused_sequencer_that_lost_its_place_loses_the_race(site, paper):
    from ledger.errors import LostRace

    site.fill(1)
    with site.sequencer() as sequencer:
        head = site.store.head()
        advance = site.store.advance
        site.store.advance = lambda old, new: (
            advance(head, Head(1, b"x" * 32, "other")), advance(old, new)
        )  # fmt: skip
        with pytest.raises(LostRace):
            sequencer.sequence(paper.NOW)
    assert not (site.folder / "checkpoint").exists()


def test_a_store_that_is_claimed_elsewhere_refuses(site):
    site.store.claim = lambda: False
    with pytest.raises(SecondSequencer):
        site.publish()
    site.store.claim = lambda: True
    assert site.publish() == 1


def test_appending_while_sequencing_loses_nothing(site, paper):
    done = threading.Event()
    hashes = []

    def work():
        for _ in range(60):
            hashes.extend(site.fill(1))
        done.set()

    with site.sequencer():
        thread = threading.Thread(target=work)
        thread.start()
        while not done.is_set():
            site.publish()
        thread.join()
        site.publish()
    assert [site.log.covered(leaf.unref(one)) for one in hashes] == list(range(1, 61))
    assert verify.verify_log(site.folder, paper.VKEYS).size == 61


def test_a_batch_is_bounded(site, paper, monkeypatch):
    from ledger import sequencer

    monkeypatch.setattr(sequencer, "BATCH", 10)
    site.fill(34)
    assert site.publish() == 35
    assert verify.verify_log(site.folder, paper.VKEYS).size == 35


def test_publishing_ends_though_writers_do_not(site):
    """What is appended meanwhile waits for the next checkpoint; else there would be no end."""
    site.fill(3)
    advance = site.store.advance

    def busy(old, new):
        site.fill(1)
        advance(old, new)

    site.store.advance = busy
    assert [site.publish(), site.publish(), site.publish()] == [4, 1, 1]
    assert site.log.size() == 6


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path, paper):
    code = (
        "import importlib.util, sys\n"
        "from pathlib import Path\n"
        "spec = importlib.util.spec_from_file_location('paper_log', sys.argv[2])\n"
        "paper = importlib.util.module_from_spec(spec); sys.modules['paper_log'] = paper\n"
        "spec.loader.exec_module(paper)\n"
        "site = paper.Site(Path(sys.argv[1]), opened=False)\n"
        "site.say('log.opened', {'schema': 1, 'origin': paper.ORIGIN})\n"
        "site.number = int(sys.argv[3])\n"
        "with site.sequencer():\n"
        "    while True:\n"
        "        print(site.fill(3)[-1], flush=True); site.publish()\n"
    )
    acknowledged = []
    for life in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), paper.__file__, str(1 + life * 100_000)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        acknowledged += [child.stdout.readline().strip() for _ in range(5 + 3 * life)]
        child.kill()
        acknowledged += [line for line in child.stdout.read().split("\n") if len(line) == 44]
        child.wait()
    site = paper.Site(tmp_path, opened=False)
    site.publish()
    assert all(site.log.covered(leaf.unref(one)) is not None for one in acknowledged)
    assert verify.verify_log(site.folder, paper.VKEYS).size == len(site.store.select())


def test_facts_are_what_the_store_is_told(site, paper):
    seen = []
    append = site.store.append
    site.store.append = lambda *given: (seen.append(given[3]), append(*given))[1]
    paper.Story(site).until("study.received")
    told = Facts("study.received", "2026-01-02T03:04:05.678Z", paper.SUBJECT, paper.STUDY)
    assert seen[-1] == told


def test_a_witnessed_checkpoint_ahead_of_the_database_is_a_roll_back(tmp_path, paper):
    site = paper.Site(tmp_path)
    site.fill(3)
    site.publish()
    older = (site.folder / "checkpoint").read_bytes()
    ahead = note.sign_note(f"{paper.ORIGIN}\n9\n{'A' * 43}=\n", paper.signers(), 1)
    forged = note.sign_note(f"{paper.ORIGIN}\n9\n{'A' * 43}=\n", paper.signers(name="other"), 1)
    for text in (older.decode(), forged, "garbage"):
        (site.folder / "checkpoint.witnessed").write_text(text)
        with site.sequencer():
            pass
    (site.folder / "checkpoint.witnessed").write_text(ahead)
    with pytest.raises(RolledBack), site.sequencer():
        pass


# --- a rotation, and what was witnessed before it ------------------------------------------------


def _witnessed_by(site, signers, size=None):
    """Lay checkpoint.witnessed of the published state, or of a larger one, signed by these."""
    point = site.log.checkpoint()
    text = str(point) if size is None else str(Checkpoint(point.origin, size, b"\7" * 32))
    signed = note.sign_note(text, signers, 1)
    (site.folder / WITNESSED).write_text(signed, encoding="utf-8")


def _retired(site, paper, name="second"):
    """The site after a restart with another pair, which its log has announced."""
    pair = paper.signers(name=name)
    site.say(
        "key.rotated",
        {"keys": [note.vkey(one) for one in pair][:1], "by": "u", "reason": "rotation",
         "proof": [{"key": note.vkey(pair[0]), "signature": "AA=="}]},
    )  # fmt: skip
    both = [*pair, *site.log.signers]
    sequence(open_log(site.folder, site.store, paper.ORIGIN, both), paper.NOW)
    site.log = open_log(site.folder, site.store, paper.ORIGIN, pair)
    return pair


def test_a_roll_back_behind_what_old_keys_signed_is_refused_after_a_rotation(site, paper):
    site.publish()
    _witnessed_by(site, site.log.signers)
    _retired(site, paper)
    assert site.log.witnessed().size == 1
    _witnessed_by(site, paper.signers(), size=50)
    with pytest.raises(RolledBack), Sequencer(site.log):
        pass


def test_the_keys_of_a_pair_between_the_first_and_the_last_are_known(site, paper):
    site.publish()
    second = _retired(site, paper)
    _retired(site, paper, "third")
    _witnessed_by(site, second, size=50)
    assert site.log.witnessed().size == 50


def test_what_was_witnessed_under_keys_that_the_log_never_named_is_made_anew(site, paper):
    site.publish()
    _retired(site, paper)
    _witnessed_by(site, paper.signers(name="stranger"), size=50)
    assert site.log.witnessed() is None
    text = str(Checkpoint(paper.ORIGIN, 50, b"\7" * 32))
    (line,) = note.parse(note.sign_note(text, site.log.signers[:1], 1))[1]
    broken = note.Line(line.name, line.key_id, bytes(64))
    (site.folder / WITNESSED).write_text(f"{text}\n{broken}", encoding="utf-8")
    assert site.log.witnessed() is None


def test_a_log_that_never_began_ends_without_a_last_leaf(tmp_path, paper):
    site = paper.Site(tmp_path, opened=False)
    site.log.shut("log/closed", paper.made(0, "log.closed", {"reason": "x"}, idem="log/closed"))
    assert site.store.select() == []
    with pytest.raises(StorageFailed, match="the log is closed"):
        site.fill(1)
