"""Readers, writers and clean-up at once; processes that are killed while they speak."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import paper_log as paper
import pytest
import tall_log as tall

from ledger import merkle, note, verify
from ledger.errors import SecondSequencer
from ledger.sequencer import sequence

pytestmark = pytest.mark.fault

TESTS = Path(__file__).resolve().parents[1]

NODE = TESTS / "ledger_node.py"


def node(folder: Path, start: int, count: int) -> subprocess.Popen[bytes]:
    """A process with 16 threads that append, and one that sequences when it may."""
    command = [sys.executable, str(NODE), str(folder), str(start), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def heard(child: subprocess.Popen[bytes], lines: int) -> list[bytes]:
    """Some acknowledgements; the pipe keeps the rest."""
    return [child.stdout.readline() for _ in range(lines)]


def test_two_processes_of_16_threads_are_killed_and_their_clients_retry(tmp_path):
    """Nothing acknowledged is lost, and nothing is there twice, however often it is said."""
    paper.Site(tmp_path).store.close()
    chance, count, lines = random.Random(3), 200, []
    for _life in range(4):
        both = [node(tmp_path, 1 + place * count, count) for place in range(2)]
        for one in both:
            lines += heard(one, chance.randrange(5, 60))
        for one in both:
            one.kill()
            lines += one.stdout.readlines()
            one.wait()
            one.stdout.close()
    numbers = {int(one) for one in lines if one.endswith(b"\n") and one != b"done\n"}
    assert len(numbers) >= 40
    site = paper.Site(tmp_path, opened=False)
    for number in numbers:
        assert site.log.find(f"key/{number}") == merkle.leaf_hash(tall.config_leaf(number))
    for number in range(1, 1 + 2 * count):  # everything once more
        site.log.append(f"key/{number}", tall.config_leaf(number))
    site.publish()
    assert verify.verify_log(site.folder, paper.VKEYS).size == 1 + 2 * count
    assert len(site.store.select()) == 1 + 2 * count
    site.store.close()


def test_readers_while_partial_tiles_are_cleaned_away(tmp_path):
    """Proofs, whole audits and plain reads go on over each edge of a tile."""
    site = paper.Site(tmp_path)
    hashes = [site.store.select()[0].leaf_hash]
    ended, failures = threading.Event(), []
    counts = {"proof": 0, "audit": 0, "leaf": 0}

    def prove(chance):
        value = hashes[chance.randrange(site.log.size())]
        report = verify.verify_proof(site.log.proof(value), paper.VKEYS)
        assert report.leaf_hash == value

    def audit(_chance):
        verify.audit(site.folder, paper.VKEYS)

    def read(chance):
        value = hashes[chance.randrange(site.log.size())]
        assert merkle.leaf_hash(site.log.leaf(value)) == value

    def reader(name, act, seed):
        chance = random.Random(seed)
        while not ended.is_set() or not counts[name]:
            try:
                act(chance)
            except Exception as error:  # noqa: BLE001  whatever a reader meets is the finding
                failures.append((name, repr(error)))
                return
            counts[name] += 1

    with site.sequencer():
        site.publish()
        threads = [
            threading.Thread(target=reader, args=(name, act, number))
            for number, (name, act) in enumerate(
                [("proof", prove), ("audit", audit), ("leaf", read)] * 2
            )
        ]
        for one in threads:
            one.start()
        for step in [40] * 30:
            hashes += tall.pour(site.store, site.number, step)
            site.number += step
            site.publish()
        ended.set()
        for one in threads:
            one.join()
    assert failures == []
    assert min(counts.values()) > 2
    left = {path.relative_to(site.folder).as_posix() for path in site.folder.rglob("*.p/*")}
    assert not any(name.startswith(("tile/0/000.p", "tile/entries/003.p")) for name in left)
    site.store.close()


@pytest.mark.parametrize("hours", [-1, 1, -20_000])
def test_a_clock_that_steps_does_no_harm(hours, tmp_path):
    """The order is the index's, not the clock's; a step is seen in the checkpoints' times."""
    site = paper.Site(tmp_path)
    site.publish()
    site.fill(3)
    sequence(site.log, paper.NOW + timedelta(hours=hours))
    site.fill(3)
    sequence(site.log, paper.NOW)
    assert verify.verify_log(site.folder, paper.VKEYS).size == 7
    keys = [note.Verifier.from_vkey(key) for key in paper.VKEYS]
    times = dict(note.open_note(site.log.checkpoint_text(), keys).signed)
    assert times[keys[1]] == int(paper.NOW.timestamp())
    site.store.close()


def test_a_stopped_process_keeps_its_place_and_a_killed_one_frees_it(tmp_path):
    """SIGSTOP is no death: the lock stays; nobody else signs meanwhile, and appends go on."""
    site = paper.Site(tmp_path)
    code = (
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]\n"
        "import paper_log as paper; from pathlib import Path; import time\n"
        "site = paper.Site(Path(sys.argv[1]), opened=False)\n"
        "with site.sequencer():\n"
        "    print('holds', flush=True); time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"holds\n"
            os.kill(holder.pid, 19)
            with pytest.raises(SecondSequencer):
                site.publish()
            site.fill(2)
        finally:
            holder.kill()
    assert site.publish() == 3
    assert verify.verify_log(site.folder, paper.VKEYS).size == 3
    site.store.close()
