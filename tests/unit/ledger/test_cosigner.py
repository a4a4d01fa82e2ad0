"""A witness with its record: each status, and a size that never goes back, whatever dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ledger import cosigner, merkle, note, witness
from ledger.checkpoint import Checkpoint
from ledger.cosigner import Cosigner
from ledger.errors import StorageFailed
from ledger.witness import Request

ORIGIN = "log.example/one"
LEAVES = [merkle.leaf_hash(n.to_bytes(2, "big")) for n in range(300)]
OTHERS = [*LEAVES[:20], *(merkle.leaf_hash(b"other" + bytes([n])) for n in range(200))]
ROOT = Path(__file__).resolve().parents[3]


def seed(name):
    return lambda count: (name.encode() * count)[:count]


LOG = [
    note.Ed25519Signer.generate(ORIGIN, seed("a")),
    note.MLDSA44Signer.generate(ORIGIN, seed("b")),
]
KEYS = [note.Verifier(s.name, s.algorithm, s.public) for s in LOG]
COSIGNERS = [
    note.Ed25519Cosigner.generate("witness.example/w", seed("c")),
    note.MLDSA44Signer.generate("witness.example/w", seed("d")),
]
WITNESS = [note.Verifier(s.name, s.algorithm, s.public) for s in COSIGNERS]


def signed(size, leaves=LEAVES, signers=LOG):
    return note.sign_note(str(Checkpoint(ORIGIN, size, merkle.root(leaves[:size]))), signers, 7)


def text_of(signed_note):
    return signed_note.partition("\n\n")[0] + "\n"


def body(old, new, leaves=LEAVES, **how):
    def perfect(level, index):
        return merkle.root(leaves[index << level : (index + 1) << level])

    proof = tuple(merkle.consistency_proof(old, new, perfect)) if old <= new else ()
    return str(Request(old, proof, signed(new, leaves, **how))).encode()


@pytest.fixture
def made(tmp_path):
    cosigner.create(tmp_path / "witness.db")
    one = Cosigner(tmp_path / "witness.db", COSIGNERS, lambda: {ORIGIN: KEYS})
    yield one
    one.close()


def sizes(one):
    return {kept.origin: kept.size for kept in one.kept()}


def test_a_log_is_cosigned_from_nothing_and_on(made):
    for time, (old, new) in enumerate([(0, 1), (1, 1), (1, 8), (8, 9), (9, 256), (256, 257)], 1000):
        text = signed(new)
        request = body(old, new)
        reply = made.add_checkpoint(request, time)
        assert (reply.status, reply.media_type) == (200, "text/plain; charset=utf-8")
        found = witness.cosignatures(text, reply.body.encode(), WITNESS)
        assert {(key.algorithm, at) for _, key, at in found} == {(4, time), (6, time)}
        assert sizes(made) == {ORIGIN: new}
        shown = made.checkpoint(witness.address(ORIGIN))
        assert {key for key, _ in note.open_note(shown, [*KEYS, *WITNESS]).signed} == {
            *KEYS, *WITNESS,
        }  # fmt: skip
    assert made.checkpoint(witness.address("another")) is None


def test_an_empty_log_is_cosigned_too(made):
    assert made.add_checkpoint(body(0, 0), 1).status == 200
    assert made.add_checkpoint(body(0, 3), 1).status == 200


def test_every_refusal_has_its_status_and_changes_nothing(made):
    assert made.add_checkpoint(body(0, 5), 1).status == 200
    other = note.Ed25519Signer.generate("log.example/two", seed("a"))
    unknown = note.sign_note(str(Checkpoint("log.example/two", 1, LEAVES[0])), [other], 7)
    stranger = note.Ed25519Signer.generate(ORIGIN, seed("x"))
    empty = note.sign_note(f"{ORIGIN}\n0\n{'A' * 43}=\n", LOG[:1], 7)
    longer = note.sign_note(text_of(signed(6)) + "more\n", LOG[:1], 7)
    for request, status in (
        (b"", 400), (b"old 5\n\nnothing\n", 400), (b"\xff", 400),
        (str(Request(0, (), longer)).encode(), 400),  # an extension line
        (body(7, 6), 400),  # old above the size
        (str(Request(0, (), unknown)).encode(), 404),
        (body(5, 6, signers=[stranger]), 403),
        (body(5, 6, signers=LOG[:1]), 403),  # without the post-quantum signature
        (body(5, 6).replace(b"\n6\n", b"\n7\n"), 403),
        (body(0, 6), 409), (body(4, 6), 409), (body(6, 6), 409),
        (str(Request(5, (), signed(5, OTHERS[::-1]))).encode(), 422),
        (str(Request(5, (), signed(6))).encode(), 422),
        (body(5, 6, OTHERS[::-1]), 422),
        (str(Request(0, (), empty)).encode(), 422),
    ):  # fmt: skip
        reply = made.add_checkpoint(request, 1)
        assert reply.status == status, (reply, request[:60])
        assert sizes(made) == {ORIGIN: 5}
        if status == 409:
            assert (reply.body, reply.media_type) == ("5\n", "text/x.tlog.size")
    assert made.add_checkpoint(body(5, 6), 1).status == 200


def test_two_faces_of_one_size_are_kept_as_proof(made):
    assert made.add_checkpoint(body(0, 30), 1).status == 200
    assert made.kept()[0].split is None
    assert made.add_checkpoint(body(30, 30, OTHERS), 2).status == 422
    first, second = made.kept()[0].split
    texts = {note.open_note(one, KEYS).text for one in (first, second)}
    assert texts == {text_of(signed(30)), text_of(signed(30, OTHERS))}
    # Asked with a wrong old size the log cannot hide it; and the first proof stays.
    assert made.add_checkpoint(body(20, 30, OTHERS[::-1]), 3).status == 409
    assert made.kept()[0].split == (first, second)


def test_a_forged_second_face_is_no_proof(made):
    stranger = note.Ed25519Signer.generate(ORIGIN, seed("x"))
    made.add_checkpoint(body(0, 30), 1)
    made.add_checkpoint(body(30, 30, OTHERS, signers=[stranger]), 2)
    assert made.kept()[0].split is None


def test_trust_is_asked_anew_each_time(tmp_path):
    known = {}
    cosigner.create(tmp_path / "witness.db")
    one = Cosigner(tmp_path / "witness.db", COSIGNERS, lambda: known)
    assert one.add_checkpoint(body(0, 5), 1).status == 404
    known[ORIGIN] = KEYS
    assert one.add_checkpoint(body(0, 5), 1).status == 200
    known.clear()
    assert one.add_checkpoint(body(5, 6), 1).status == 404
    one.close()


def test_without_its_record_a_witness_does_not_open(tmp_path):
    with pytest.raises(StorageFailed, match="make a new witness"):
        Cosigner(tmp_path / "witness.db", COSIGNERS, dict)
    assert not (tmp_path / "witness.db").exists()
    (tmp_path / "witness.db").write_bytes(b"not a database, and long enough to be read as one" * 40)
    with pytest.raises(StorageFailed):
        Cosigner(tmp_path / "witness.db", COSIGNERS, dict)
    with pytest.raises(StorageFailed):
        cosigner.create(tmp_path / "witness.db")


def test_a_record_that_cannot_be_written_gives_no_cosignature(made, monkeypatch):
    made.add_checkpoint(body(0, 5), 1)

    class Failing:
        """COMMIT fails; everything else is the real connection."""

        def __init__(self, inner):
            self.inner = inner

        @property
        def in_transaction(self):
            return self.inner.in_transaction

        def execute(self, text, *values):
            if text == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return self.inner.execute(text, *values)

    real = made._db
    monkeypatch.setattr(made, "_db", Failing(real))
    with pytest.raises(StorageFailed):
        made.add_checkpoint(body(5, 6), 1)
    monkeypatch.setattr(made, "_db", real)
    assert sizes(made) == {ORIGIN: 5}
    assert made.add_checkpoint(body(5, 6), 1).status == 200


def test_sixteen_threads_never_bring_it_back(made, tmp_path):
    """All race from the size that they last heard of; what was cosigned only ever grows."""
    again = Cosigner(tmp_path / "witness.db", COSIGNERS, lambda: {ORIGIN: KEYS})
    requests = {}
    lock, cosigned = threading.Lock(), []

    def race(number):
        one = (made, again)[number % 2]  # two processes' worth of connections
        old = 0
        for new in range(1 + number, 200, 7):
            if new < old:
                continue
            with lock:
                request = requests.setdefault((old, new), body(old, new))
            reply = one.add_checkpoint(request, 1)
            if reply.status == 200:
                with lock:
                    cosigned.append((old, new))
                old = new
            elif reply.status == 409:
                old = int(reply.body)
            else:
                raise AssertionError(reply)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(race, range(16)))
    again.close()
    # Each old size was the whole truth when it was replaced: the pairs form one chain.
    steps = sorted({(old, new) for old, new in cosigned if old != new})
    assert len(steps) > 5
    at = 0
    for old, new in steps:
        assert old == at
        at = new
    assert sizes(made) == {ORIGIN: at}


_CHILD = """
    import sys
    from pathlib import Path
    sys.path[:0] = [{root!r}, {here!r}]
    import test_cosigner as t
    from ledger.cosigner import Cosigner
    one = Cosigner(Path({path!r}), t.COSIGNERS, lambda: {{t.ORIGIN: t.KEYS}})
    old = {{k.origin: k.size for k in one.kept()}}.get(t.ORIGIN, 0)
    while old < 299:
        reply = one.add_checkpoint(t.body(old, old + 1), 1)
        assert reply.status == 200, reply
        old += 1
        print(old, flush=True)
"""


@pytest.mark.fault
def test_killed_at_any_moment_it_never_forgets_what_it_said(tmp_path):
    path = tmp_path / "witness.db"
    cosigner.create(path)
    here = str(Path(__file__).parent)
    script = textwrap.dedent(_CHILD).format(root=str(ROOT), here=here, path=str(path))
    said = 0
    for number in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        for _ in range(3 + 5 * number):
            line = child.stdout.readline()
            said = int(line) if line else said
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        said = max([said, *map(int, rest.split())])
        one = Cosigner(path, COSIGNERS, lambda: {ORIGIN: KEYS})
        held = sizes(one).get(ORIGIN, 0)
        # It may hold one more than anybody heard of, never less; and goes on from there.
        assert held in (said, said + 1)
        assert one.add_checkpoint(body(held, held + 1), 1).status == 200
        assert one.add_checkpoint(body(max(0, held - 1), held), 1).status == 409
        said = held + 1
        one.close()
    assert said > 40
