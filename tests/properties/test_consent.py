"""Consent under any document and any request: total, re-executable, never wider than written."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consent.document import ConsentError, parse
from bridge.consent.evaluate import decide, evaluate
from bridge.consent.policy import POLICIES
from bridge.consent.purposes import ACT_REASON, CONFIDENTIALITY, act_reason
from bridge.consent.request import Request

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
PURPOSES = ["TREAT", "TREATDS", "ETREAT", "BTG", "HRESCH", "HOPERAT", "MLTRAINING", "LABELTRAIN"]
DAYS = ["2024", "2025-06", "2026-03-01", "2026-03-02", "2027-01-01T00:00:00Z"]
REFS = ["Encounter/1", "Encounter/2", "https://x.org/Encounter/1"]

codings = st.sampled_from(PURPOSES).map(lambda code: {"system": ACT_REASON, "code": code})
labels = st.sampled_from("NRV").map(lambda code: {"system": CONFIDENTIALITY, "code": code})
periods = st.sampled_from(DAYS).map(lambda day: {"start": day}) | st.sampled_from(DAYS).map(
    lambda day: {"end": day}
)
data = st.builds(
    lambda meaning, reference: {"meaning": meaning, "reference": {"reference": reference}},
    st.sampled_from(["instance", "related", "authoredby"]),
    st.sampled_from(REFS),
)
actors = st.sampled_from(["Organization/a", "Organization/b"]).map(
    lambda reference: {"reference": {"reference": reference}}
)


def rules(nested):
    optional = {
        "purpose": st.lists(codings, min_size=1, max_size=2),
        "securityLabel": st.lists(labels, min_size=1, max_size=2),
        "period": periods,
        "dataPeriod": periods,
        "data": st.lists(data, min_size=1, max_size=2),
        "actor": st.lists(actors, min_size=1, max_size=2),
    }
    if nested is not None:
        optional["provision"] = st.lists(nested, min_size=1, max_size=2)
    return st.fixed_dictionaries({"type": st.sampled_from(["permit", "deny"])}, optional=optional)


provisions = rules(rules(rules(None)))


def document(provision, day="2026-01-01"):
    scope = {"system": "http://terminology.hl7.org/CodeSystem/consentscope", "code": "research"}
    tree = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {"coding": [scope]},
        "dateTime": day,
        "provision": provision,
    }
    return parse(json.dumps(tree).encode())


known = st.none() | st.frozensets(st.sampled_from(REFS), max_size=2)
requests = st.builds(
    Request,
    purpose=st.sampled_from(PURPOSES).map(act_reason),
    actors=st.frozensets(st.sampled_from(["Organization/a", "Organization/c"])),
    at=st.just(AT),
    refs=known,
    related=known,
    authors=known,
    time=st.none() | st.sampled_from(DAYS),
)


@given(st.lists(st.tuples(provisions, st.sampled_from(DAYS)), max_size=3), requests)
@settings(deadline=None)
def test_a_decision_can_be_made_again_from_what_was_stored(documents, request):
    read = [document(provision, day) for provision, day in documents]
    for policy in (None, *POLICIES.values()):
        first = decide(request, read, policy)
        assert decide(Request.from_json(request.to_json()), read, policy) == first
        assert (first.decision == "not-applicable") <= (policy is None)
        if first.basis == "consent" and first.decision != "not-applicable":
            assert first.matched
            assert {evaluate(read[index], request).answer for index, _ in first.matched} == {
                first.decision
            }


@given(provisions, requests)
@settings(deadline=None)
def test_knowing_less_of_the_data_never_permits_more(provision, request):
    less = Request(request.purpose, request.actors, request.at)
    if evaluate(document(provision), less).answer == "permit":
        assert evaluate(document(provision), request).answer == "permit"


@given(provisions, requests)
@settings(deadline=None)
def test_without_documents_that_permit_opt_in_never_permits(provision, request):
    read = document(provision)
    if evaluate(read, request).answer != "permit":
        assert decide(request, [read], POLICIES["opt-in-all"]).decision == "deny"
    assert decide(request, [read], POLICIES["deny-all"]).decision == "deny"


@given(provisions, requests)
@settings(deadline=None)
def test_valid_until_is_true(provision, request):
    """Just before the edge that is named, the answer is still the same."""
    read = [document(provision)]
    decision = decide(request, read, None)
    if decision.valid_until is not None:
        edge = datetime.fromisoformat(decision.valid_until)
        assert edge > AT
        just_before = edge - (edge - AT) / 1000
        later = Request.from_json(request.to_json())
        moved = Request(
            later.purpose,
            later.actors,
            just_before,
            refs=later.refs,
            related=later.related,
            authors=later.authors,
            time=later.time,
        )
        assert decide(moved, read, None).decision == decision.decision


@given(provisions, requests, st.permutations(range(3)))
@settings(deadline=None)
def test_the_order_of_documents_does_not_matter(provision, request, order):
    read = [document(provision, day) for day in DAYS[:3]]
    read[1] = document({"type": "deny"}, DAYS[1])
    shuffled = [read[index] for index in order]
    for policy in POLICIES.values():
        assert decide(request, read, policy).decision == decide(request, shuffled, policy).decision


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["resourceType", "status", "scope", "provision", "type", "purpose",
                         "period", "decision", "coding", "code", "system", "data", "actor"]),
        inner | st.sampled_from(["Consent", "active", "permit"]), max_size=6),
    max_leaves=20,
).map(lambda tree: json.dumps(tree).encode()))  # fmt: skip
@settings(deadline=None)
def test_any_bytes_are_a_document_or_a_consent_error(data):
    try:
        read = parse(data)
    except ConsentError as error:
        found = error.path
    else:
        found = "Consent"
        assert read.root.type in ("permit", "deny")
    assert found.startswith("Consent")
