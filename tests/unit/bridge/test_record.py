"""bridge.record: each fact a leaf, once; commitments that nobody can try pictures against."""

from __future__ import annotations

import hashlib
import hmac
import threading

import pytest
from bench import images

from bridge import commitments
from bridge.home import publish
from bridge.record import input_root
from bridge.vault import SubjectErased
from ledger import leaf, merkle
from ledger.errors import NotCovered

UID = str(images(1)[0].StudyInstanceUID)
KEY = commitments.StudyKey(b"k" * 32)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def say(desk, idem: str = "model/x/registered", **body):
    said = {"model": "0" * 64, "id": "m", "version": "1", "vendor": "v", "package": "1" * 64,
            "by": "me", "size": 1, "bundled": True}  # fmt: skip
    return desk.rooms.record.say("model.registered", idem, {**said, **body})


def test_a_fact_is_said_once_and_the_first_stands(desk):
    first = say(desk)
    assert say(desk, by="somebody else") == first
    assert say(desk, idem="model/y/registered") != first
    assert [x["body"]["by"] for x in desk.leaves()[1:]] == ["me", "me"]
    assert desk.rooms.record.find("model/x/registered") == first
    assert desk.rooms.record.find("never") is None
    assert desk.rooms.record.body(first)["by"] == "me"


def test_a_leaf_is_covered_once_it_is_published(desk):
    ref = say(desk)
    assert desk.rooms.record.covered(ref) is None
    with pytest.raises(NotCovered):
        desk.rooms.record.wait_covered([ref], 0.05)
    publish(desk.rooms)
    assert desk.rooms.record.covered(ref) == 1
    desk.rooms.record.wait_covered([ref], 0.05)
    assert leaf.unref(ref)


def test_waiting_ends_when_somebody_publishes(desk):
    ref = say(desk)
    timer = threading.Timer(0.3, publish, [desk.rooms])
    timer.start()
    desk.rooms.record.wait_covered([ref], 30)
    timer.join()


def test_a_proof_carries_the_leaf_and_verifies_by_the_keys_alone(desk):
    from ledger.verify import read_vkeys, verify_proof

    ref = say(desk)
    publish(desk.rooms)
    keys = read_vkeys((desk.settings.folder / "ledger.vkey").read_text())
    report = verify_proof(desk.rooms.record.proof(ref), keys)
    assert report.record["body"]["by"] == "me"


def test_a_chain_has_one_subject_and_one_study(desk):
    desk.receive(*images(1))
    ref = desk.generation(UID).subject_ref
    chain = desk.rooms.record.chain(ref, UID)
    again = desk.rooms.record.chain(ref, UID)
    other = desk.rooms.record.chain(ref, "1.2.3")
    assert chain == again
    assert other.subject == chain.subject
    assert other.study != chain.study
    for canary in ("A-1", UID):
        assert canary not in chain.subject + chain.study


def test_an_erased_subject_has_no_chain(desk):
    desk.receive(*images(1))
    ref = desk.generation(UID).subject_ref
    desk.rooms.vault.destroy(ref)
    with pytest.raises(SubjectErased):
        desk.rooms.record.chain(ref, UID)


def test_the_input_root_does_not_depend_on_the_order_and_needs_the_key():
    some = [("1.2", sha("a")), ("1.3", sha("b")), ("1.1", sha("c"))]
    assert input_root(KEY, some) == input_root(KEY, some[::-1])
    assert input_root(KEY, some) != input_root(commitments.StudyKey(b"j" * 32), some)
    assert input_root(KEY, some) != input_root(KEY, some[:2])
    made = [commitments.instance_commitment(KEY, bytes.fromhex(d)) for _, d in sorted(some)]
    assert input_root(KEY, some) == merkle.root([merkle.leaf_hash(c) for c in made])


def test_keyed_digests_follow_the_note(desk):
    desk.receive(*images(1))
    chain = desk.rooms.record.chain(desk.generation(UID).subject_ref, UID)
    found = desk.rooms.record.keyed(chain, "input", sha("x"))
    assert found == hmac.digest(chain.key, b"input/v1\0" + bytes.fromhex(sha("x")), "sha256")
