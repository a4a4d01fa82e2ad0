"""The trace rules: one lawful story, and each way to break it."""

from __future__ import annotations

import pytest

from ledger import leaf
from ledger.carried import carry
from ledger.trace import Trace


def judge(site, paper):
    site.store.assign(9999)
    trace = Trace(paper.ORIGIN)
    for row in site.store.assigned(0, 9999):
        trace.see(row.index, row.leaf_hash, leaf.parse(row.data))
    return trace


def rules(site, paper):
    return [(one.rule, one.type) for one in judge(site, paper).violations]


def test_a_lawful_story_has_no_violations(site, paper):
    paper.Story(site).until("study.closed")
    trace = judge(site, paper)
    assert trace.violations == []
    assert trace.open_studies() == []
    assert trace.counts["result.delivered"] == 1


def test_an_unfinished_study_is_open(site, paper):
    paper.Story(site).until("study.received")
    assert judge(site, paper).open_studies() == [4]


def test_a_quarantined_study_is_not_open(site, paper):
    story = paper.Story(site).until("study.received")
    rest = {"refs": paper.refs(("study.received", story.refs["study.received"]))}
    story.tell("study.quarantined", {"reason": "second-identity"}, **rest)
    assert judge(site, paper).open_studies() == []


def test_a_log_is_opened_once_at_its_beginning(site, paper):
    site.say("log.opened", {"schema": 1, "origin": paper.ORIGIN})
    assert rules(site, paper) == [("R0", "log.opened")]


def test_a_log_that_opens_another_origin(site):
    trace = Trace("other.example")
    data = site.log.leaf(site.store.select()[0].leaf_hash)
    trace.see(0, leaf.leaf_hash(data), leaf.parse(data))
    assert "opens" in str(trace.violations[0])


@pytest.mark.parametrize(
    ("last", "rel", "aim"),
    [
        ("input.sealed", "study.received", None),
        ("consent.checked", "input.sealed", "study.received"),
        ("consent.checked", "previous", "input.sealed"),
        ("inference.completed", "inference.started", "input.sealed"),
    ],
)
def test_references_lead_to_earlier_leaves_of_their_type(last, rel, aim, site, paper):
    order = paper.Story.ORDER
    story = paper.Story(site).until(order[order.index(last) - 1])
    target = story.refs[aim] if aim else paper.value("nowhere")
    story.tell(last, refs=paper.refs((rel, target)))
    assert rules(site, paper) == [("R0", last)]


@pytest.mark.parametrize("name", ["subject", "study"])
def test_a_chain_is_of_one_subject_and_study(name, site, paper):
    story = paper.Story(site).until("study.received")
    story.tell("input.sealed", **{name: "urn:radseal:other:" + "3" * 64})
    assert rules(site, paper) == [("R0", "input.sealed")]


def test_a_replacement_may_follow_its_predecessor(site, paper):
    story = paper.Story(site).until("result.composed")
    first = story.refs["result.composed"]
    story.tell("result.composed", {"revision": 2}, refs=paper.refs(
        ("inference.completed", story.refs["inference.completed"]), ("previous", first),
    ))  # fmt: skip
    assert rules(site, paper) == []


def consent(site, paper):
    return site.say(
        "consent.granted",
        {"document": paper.value("doc"), "status": "active", "source": "fhir"},
        subject=paper.SUBJECT,
    )


def withdraw(site, paper, granted):
    return site.say(
        "consent.withdrawn", {"document": paper.value("doc")}, subject=paper.SUBJECT,
        refs=paper.refs(("consent.granted", granted)),
    )  # fmt: skip


def permit_by(story, paper, granted, **change):
    story.tell(
        "consent.checked", paper.permit(basis="consent", **change),
        refs=paper.refs(("input.sealed", story.refs["input.sealed"]), ("consent.granted", granted)),
    )  # fmt: skip


def test_nothing_runs_on_a_denial(site, paper):
    story = paper.Story(site).until("input.sealed")
    story.tell("consent.checked", paper.permit(decision="deny"))
    story.until("inference.started")
    assert rules(site, paper) == [("R1", "inference.started")]


def test_nothing_is_sent_on_a_later_denial_but_after_a_new_permit(site, paper):
    story = paper.Story(site).until("result.composed")
    permitted = story.refs["consent.checked"]
    story.tell("consent.checked", paper.permit(decision="deny"))
    story.refs["consent.checked"] = permitted
    story.tell("delivery.started")
    assert rules(site, paper) == [("R1", "delivery.started")]
    story.tell("consent.checked")
    story.tell("delivery.started")
    assert len(rules(site, paper)) == 1


def test_a_denial_for_one_destination_or_purpose_holds_there_only(site, paper):
    story = paper.Story(site).until("result.composed")
    permitted = story.refs["consent.checked"]
    for change in ({"destination": "research"}, {"purpose": "HRESCH"}):
        story.tell("consent.checked", paper.permit(decision="deny", **change))
    story.refs["consent.checked"] = permitted
    story.tell("delivery.started")
    assert rules(site, paper) == []
    story.tell("delivery.started", {"destination": "research"})
    assert rules(site, paper) == [("R1", "delivery.started")]


def test_a_permit_ends(site, paper):
    story = paper.Story(site).until("input.sealed")
    story.tell("consent.checked", paper.permit(valid_until="2026-01-02T03:04:05.678Z"))
    story.until("inference.started")
    assert rules(site, paper) == [("R1", "inference.started")]
    story.tell("consent.checked", paper.permit(valid_until="2026-01-02T03:04:05.679Z"))
    story.tell("inference.started")
    assert len(rules(site, paper)) == 1


def test_a_permit_is_for_one_input(site, paper):
    story = paper.Story(site).until("consent.checked")
    story.tell("input.sealed")
    story.until("inference.started")
    assert rules(site, paper) == [("R1", "inference.started")]


def test_a_withdrawn_consent_carries_nothing_afterwards(site, paper):
    story = paper.Story(site).until("input.sealed")
    granted = consent(site, paper)
    permit_by(story, paper, granted)
    story.until("result.composed")
    withdraw(site, paper, granted)
    story.tell("delivery.started")
    assert rules(site, paper) == [("R1", "delivery.started")]
    story.tell("consent.checked")
    story.tell("delivery.started")
    assert len(rules(site, paper)) == 1


def test_withdrawing_a_consent_that_was_not_used_changes_nothing(site, paper):
    story = paper.Story(site).until("input.sealed")
    used, unused = consent(site, paper), None
    unused = site.say(
        "consent.granted",
        {"document": paper.value("2"), "status": "active", "source": "fhir"},
        subject=paper.SUBJECT,
    )
    permit_by(story, paper, used)
    withdraw(site, paper, unused)
    story.until("study.closed")
    assert rules(site, paper) == []


def test_no_permit_after_erasure(site, paper):
    story = paper.Story(site).until("input.sealed")
    site.say("subject.erased", {"basis": "Art. 17"}, subject=paper.SUBJECT)
    story.tell("consent.checked", paper.permit(decision="deny"))
    assert rules(site, paper) == []
    story.tell("consent.checked")
    assert rules(site, paper) == [("R6", "consent.checked")]


def test_a_model_is_approved_before_it_is_active_unless_it_is_a_shadow(site, paper):
    story = paper.Story(site).until("model.registered")
    rest = {"refs": paper.refs(("model.registered", story.refs["model.registered"]))}
    story.tell("model.activated", {"mode": "shadow"}, **rest)
    assert rules(site, paper) == []
    story.tell("model.activated", **rest)
    assert rules(site, paper) == [("R2", "model.activated")]


def test_a_retired_model_does_not_run_until_it_is_activated_again(site, paper):
    story = paper.Story(site).until("consent.checked")
    rest = {"refs": paper.refs(("model.activated", story.refs["model.activated"]))}
    story.tell("model.retired", {"model": paper.MODEL}, **rest)
    story.tell("inference.started")
    assert rules(site, paper) == [("R2", "inference.started")]
    story.tell("model.activated")
    story.tell("inference.started")
    assert len(rules(site, paper)) == 1


OTHER = {"model": "cd" * 32}


@pytest.mark.parametrize(
    ("type", "change", "expected"),
    [
        ("model.approved", OTHER, {("R2", "model.approved")}),
        ("model.activated", OTHER, {("R2", "model.activated")}),
        ("inference.started", OTHER, {("R2", "inference.started")}),
        ("inference.completed", OTHER, {("R3", "inference.completed")}),
        ("result.delivered", {"destination": "elsewhere"}, {("R3", "result.delivered")}),
        ("result.confirmed", {"kind": "seg"}, {("R3", "result.confirmed")}),
    ],
)
def test_who_started_must_end(type, change, expected, site, paper):
    story = paper.Story(site).until(paper.Story.ORDER[paper.Story.ORDER.index(type) - 1])
    story.tell(type, change)
    assert set(rules(site, paper)) == expected


def test_what_was_carried_happened_before_all_that_this_log_says(paper):
    """A carried run is not judged by a withdrawal that was said here; a run of this log is."""
    new, told = "new.example/log", {}

    def hash_of(record):
        return leaf.ref(leaf.leaf_hash(leaf.render(record)))

    def old(number, type, body, *rels, **rest):
        refs = paper.refs(*((rel, hash_of(told[rel])) for rel in rels))
        told[type] = leaf.parse(paper.made(number, type, body, refs=refs, **rest))

    whose = {"subject": paper.SUBJECT, "study": paper.STUDY}
    bodies = paper.Story.BODIES
    given = {"document": paper.value("doc"), "status": "active", "source": "fhir"}
    old(1, "consent.granted", given, subject=paper.SUBJECT)
    for number, type in enumerate(("model.registered", "model.approved", "model.activated"), 2):
        old(number, type, bodies[type], *paper.Story.RELS.get(type, ()))
    old(5, "study.received", bodies["study.received"], **whose)
    old(6, "input.sealed", bodies["input.sealed"], "study.received", **whose)
    on = ("input.sealed", "consent.granted")
    old(7, "consent.checked", paper.permit(basis="consent"), *on, **whose)
    started = paper.Story.RELS["inference.started"]
    old(8, "inference.started", bodies["inference.started"], *started, **whose)

    here, log = {}, [
        leaf.parse(paper.made(20, "log.continued", {
            "schema": 1, "origin": new, "previous": "old.example", "size": 9,
            "root": paper.value("root"),
        }))
    ]  # fmt: skip
    withdrawal = ("consent.withdrawn", {"document": paper.value("doc")}, "consent.granted")
    for type, record in told.items():
        refs = [{"rel": r["rel"], "leaf": here[r["rel"]]} for r in record.get("refs", ())]
        log.append(carry(record, "old.example", refs))
        here[type] = hash_of(log[-1])
        if type == "consent.granted":
            name, body, rel = withdrawal
            log.append(leaf.parse(paper.made(21, name, body, subject=paper.SUBJECT,
                                             refs=paper.refs((rel, here[rel])))))  # fmt: skip
    trace = Trace(new, whole=True)
    for index, record in enumerate(log):
        trace.see(index, leaf.leaf_hash(leaf.render(record)), record)
    assert trace.violations == []
    refs = paper.refs(*((rel, here[rel]) for rel in started))
    again = paper.made(22, "inference.started", bodies["inference.started"], refs=refs, **whose)
    trace.see(len(log), leaf.leaf_hash(again), leaf.parse(again))
    assert [one.rule for one in trace.violations] == ["R1"]
