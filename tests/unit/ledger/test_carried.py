"""ledger.carried: a fact of an earlier log, word for word; and the trace rule that sees to it."""

from __future__ import annotations

import json
from datetime import timedelta

import forger
import pytest

from ledger import carried, leaf, merkle, verify
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
    other = {**first, "body": {**first["body"], "instances": 9}, "idem": "key/9"}
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
    (found,) = violations([opening(paper), {**opening(paper), "idem": "key/91"}])
    assert "is the first leaf, and only that" in found


MALFORMED = [
    {}, {"origin": OLD}, {"origin": OLD, "leaf": "x"}, "text",
    {"origin": OLD, "leaf": leaf.ref(bytes(32)), "more": 1},
]  # fmt: skip


@pytest.mark.parametrize("said", MALFORMED)
def test_a_malformed_mark_is_refused(told, said):
    with pytest.raises(LeafError, match="carried must be"):
        leaf.parse(leaf.render({**told[0], "carried": said}))


# --- logs that nobody lawful wrote (tests/forger.py) --------------------------------------------


def before():
    """An earlier log with a consent and a study, which a day later goes on."""
    old = forger.Forger(OLD).open()
    whose = old.received("a")
    old.grant(whose)
    old.now += timedelta(days=1)
    return old, whose


def go_on(old):
    return forger.Forger().go_on(old)


def carry_all(new, old):
    """Carry what the old log says of its study and consent."""
    for data in old.leaves:
        if json.loads(data)["type"] in ("study.received", "input.sealed", "consent.granted"):
            new.carry(data, old.origin)


def findings(log, folder):
    report = verify.audit(log.write(folder), forger.VKEYS)
    return [f"{one.type} {one.rule}: {one.words}" for one in report.violations], report.notes


def use(log, whose, granted, withdrawn):
    log.check(whose, [("consent.granted", granted)], basis="consent")
    if withdrawn:
        log.withdraw(whose, granted)
    log.run(whose)
    log.close(whose)


def test_what_is_carried_is_used_until_it_is_withdrawn(tmp_path):
    """The lawful control of what follows, and the same with a withdrawal."""
    for withdrawn, expected in (
        (False, []),
        (True, ["inference.started R1: the consent that permitted it was withdrawn before"]),
    ):
        old, whose = before()
        new = go_on(old)
        carry_all(new, old)
        use(new, whose, new.last["consent.granted"], withdrawn)
        found, notes = findings(new, tmp_path / str(withdrawn))
        assert [one.split(" (leaf")[0] for one in found] == expected
        assert notes == (
            f"3 leaves are carried from {OLD}; they are proven only together with that log",
        )


def test_a_leaf_of_this_log_hides_behind_no_copy_said_to_be_carried(tmp_path):
    old, whose = before()
    new = go_on(old)
    carry_all(new, old)
    granted = new.grant(whose)
    new.carry(new.leaves[-1].replace(b"key/", b"kex/"), OLD)  # as if the old log had said it
    assert findings(new, tmp_path / "lawful")[0] == []
    own = go_on(old)
    carry_all(own, old)
    granted = own.grant(whose)
    own.carry(own.leaves[-1], OLD)
    use(own, whose, granted, True)
    found, _ = findings(own, tmp_path / "after")
    assert found[0] == (
        f"consent.granted R0: what it says was carried from {OLD} is leaf 8 of this log"
    )
    assert any(one.startswith("inference.started R1") for one in found)


def test_a_leaf_said_after_its_copy_is_found_and_not_hidden(tmp_path):
    old, whose = before()
    new = go_on(old)
    carry_all(new, old)
    new.grant(whose)
    data = new.leaves.pop()
    new.carry(data, OLD)
    new.leaves.append(data)
    use(new, whose, forger.text(forger.sha(b"\0", data)), True)
    found, _ = findings(new, tmp_path)
    assert found[0] == "consent.granted R0: leaf 8 says that this one is of an earlier log"
    assert any(one.startswith("inference.started R1") for one in found)


def test_nothing_is_carried_twice(tmp_path):
    old, whose = before()
    new = go_on(old)
    carry_all(new, old)
    new.carry(old.leaves[-1], "elsewhere.example/log")
    use(new, whose, new.last["consent.granted"], False)
    found, _ = findings(new, tmp_path)
    assert found[0] == "consent.granted R0: what it carries from an earlier log was carried before"


@pytest.mark.parametrize("carried_too", [True, False])
def test_an_older_retirement_hides_no_newer_one(carried_too, tmp_path):
    old, _ = before()
    on = [("model.registered", old.last["model.registered"])]
    old.say("model.retired", {"model": old.model}, on)
    retired = old.leaves[-1]
    old.now += timedelta(days=1)
    new = go_on(old)
    activated = new.on("model.activated")
    new.say("model.retired", {"model": new.model}, activated)
    if carried_too:
        new.carry(next(d for d in old.leaves if b'"model.registered"' in d), OLD)
        new.carry(retired, OLD)
    new.study("b")
    found, _ = findings(new, tmp_path)
    assert found == ["inference.started R2: the model was retired before (leaf 5)"]


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (timedelta(minutes=4), None),
        (timedelta(minutes=6), "when this log began: it is of no earlier one"),
        (timedelta(days=3000), "is later than the log signed for it"),
    ],
)
def test_what_is_carried_happened_before_the_log_began(later, words, tmp_path):
    old, _ = before()
    began = old.now
    old.now += later
    old.received("late")
    late = old.leaves[-2]
    old.now = began
    new = go_on(old)
    new.carry(late, OLD)
    found, _ = findings(new, tmp_path)
    assert (found == []) is (words is None)
    assert all("study.received R5: its time, " in one for one in found)
    assert words is None or any(words in one for one in found)


def test_what_was_carried_is_not_judged_late_but_said(tmp_path):
    """Whether an override of the earlier log was reviewed there, this log cannot know."""
    old, _ = before()
    whose = old.received("glass")
    said = {"reason": "emergency", "by": "u7"}
    old.check(whose, basis="override", override=said, reason="btg")
    old.now += timedelta(days=30)
    new = go_on(old)
    for data in old.leaves[-3:]:
        new.carry(data, OLD)
    on = new.on("consent.checked")
    new.say("override.reviewed", {"outcome": "ok", "by": "u9"}, on, subject=whose["subject"])
    found, notes = findings(new, tmp_path)
    assert found == []
    assert notes[0] == "R7: the override at leaf 7 was reviewed too late at leaf 8, or once more"
