"""ledger.carried: a fact of an earlier log, word for word; and the trace rule that sees to it."""

from __future__ import annotations

import pytest

from ledger import carried, leaf, merkle
from ledger.errors import LeafError
from ledger.trace import Trace

OLD, NEW, NEWER = "a.example/log", "b.example/log", "c.example/log"


def hash_of(record):
    return leaf.ref(merkle.leaf_hash(leaf.render(record)))


def opening(paper, origin=NEW, kind="log.continued"):
    body = {"schema": 1, "origin": origin}
    if kind == "log.continued":
        body |= {"previous": OLD, "size": 7, "root": leaf.ref(bytes(32))}
    return leaf.parse(paper.made(90, kind, body))


@pytest.fixture
def told(paper):
    """A study of the old log: received, and its input sealed."""
    alike = {"subject": paper.SUBJECT, "study": paper.STUDY}
    body = {"source": "ct1", "protocol": "C-STORE", "generation": 1, "instances": 3}
    received = leaf.parse(paper.made(1, "study.received", body, **alike))
    body = {
        "route": {"model": "ab" * 32, "roles": ["ct"]}, "root": leaf.ref(bytes(32)),
        "counts": {"held": 3}, "evidence": "quiet",
    }  # fmt: skip
    refs = [{"rel": "study.received", "leaf": hash_of(received)}]
    return received, leaf.parse(paper.made(2, "input.sealed", body, refs=refs, **alike))


def carry_both(told, origin=OLD):
    received, sealed = told
    first = carried.carry(received, origin, [])
    second = carried.carry(sealed, origin, [{"rel": "study.received", "leaf": hash_of(first)}])
    return first, second


def violations(records, origin=NEW):
    trace = Trace(origin)
    for index, record in enumerate(records):
        trace.see(index, merkle.leaf_hash(leaf.render(record)), record)
    return [str(one) for one in trace.violations]


def test_the_old_bytes_can_be_made_from_what_stands_here(told):
    received, sealed = told
    first, second = carry_both(told)
    was = {hash_of(first): hash_of(received)}
    assert carried.original(first, {}) == leaf.render(received)
    assert carried.original(second, was) == leaf.render(sealed)
    assert second["carried"] == {"origin": OLD, "leaf": hash_of(sealed)}
    assert (second["time"], second["body"]) == (sealed["time"], sealed["body"])


def test_a_fact_is_carried_through_several_logs(told):
    again = carry_both(carry_both(told), NEW)
    assert again[1]["carried"]["before"] == {"origin": OLD, "leaf": hash_of(told[1])}
    was = {hash_of(again[0]): hash_of(carry_both(told)[0])}
    assert carried.is_word_for_word(again[1], was)
    assert carried.original(again[1], was) == leaf.render(carry_both(told)[1])


def test_what_is_carried_keeps_the_trace_rules(paper, told):
    assert violations([opening(paper), *carry_both(told)]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instances": 4}, "not the leaf of a.example/log that it names"),
        ({"source": "ct2"}, "not the leaf of a.example/log that it names"),
    ],
)
def test_a_changed_word_is_found(paper, told, change, words):
    first, _ = carry_both(told)
    first["body"] = {**first["body"], **change}
    (found,) = violations([opening(paper), first])
    assert words in found


def test_a_reference_to_another_leaf_is_found(paper, told):
    first, second = carry_both(told)
    other = {**first, "body": {**first["body"], "instances": 9}}
    other["carried"] = {"origin": OLD, "leaf": hash_of({k: v for k, v in other.items()
                                                        if k != "carried"})}  # fmt: skip
    second["refs"] = [{"rel": "study.received", "leaf": hash_of(other)}]
    found = violations([opening(paper), first, other, second])
    assert len(found) == 1
    assert "leaf 3 (input.sealed): R0: it is not the leaf" in found[0]


def test_a_log_that_continues_none_carries_nothing(paper, told):
    first, _ = carry_both(told)
    (found,) = violations([opening(paper, kind="log.opened"), first])
    assert "there is none" in found
    (found,) = violations([opening(paper), carried.carry(told[0], NEW, [])])
    assert "there is none" in found


def test_a_first_leaf_stands_first_and_nothing_follows_the_end(paper):
    end = leaf.parse(paper.made(5, "log.closed", {"reason": "size", "next": NEWER}))
    config = leaf.parse(paper.made(6, "config.changed", {"digest": "0" * 64}))
    assert violations([opening(paper), end]) == []
    (found,) = violations([opening(paper), end, config])
    assert "the log was closed before (leaf 1)" in found
    (found,) = violations([opening(paper), opening(paper)])
    assert "is the first leaf, and only that" in found


MALFORMED = [
    {}, {"origin": OLD}, {"origin": OLD, "leaf": "x"}, "text",
    {"origin": OLD, "leaf": leaf.ref(bytes(32)), "more": 1},
]  # fmt: skip


@pytest.mark.parametrize("said", MALFORMED)
def test_a_malformed_mark_is_refused(told, said):
    with pytest.raises(LeafError, match="carried must be"):
        leaf.parse(leaf.render({**told[0], "carried": said}))
