"""Consent: the shared cases, and the rules that no shared case reaches."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bridge.consent import ENGINE
from bridge.consent.document import ConsentError, Document, parse
from bridge.consent.evaluate import Request, decide, evaluate
from bridge.consent.moments import ALWAYS, span
from bridge.consent.policy import POLICIES
from bridge.consent.purposes import (
    ACT_CODE,
    ACT_REASON,
    CONFIDENTIALITY,
    Coding,
    act_reason,
    ancestors,
    known,
)

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
OPT_OUT, OPT_IN = POLICIES["opt-out-treatment"], POLICIES["opt-in-all"]


def code(system: str, value: str) -> dict[str, str]:
    return {"system": system, "code": value}


def purpose(*codes: str) -> list[dict[str, str]]:
    return [code(ACT_REASON, one) for one in codes]


def r4(provision: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    tree = {
        "resourceType": "Consent",
        "status": "active",
        "scope": {
            "coding": [
                code("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy")
            ]
        },
        "category": [{"coding": [code("http://loinc.org", "59284-0")]}],
        "patient": {
            "reference": "Patient/7",
            "identifier": {"system": "urn:oid:1.2.3.4", "value": "CANARY-PID"},
        },
        "dateTime": "2026-01-01T00:00:00Z",
        "policy": [{"uri": "urn:x"}],
        "provision": provision,
    } | more
    return {key: value for key, value in tree.items() if value is not None}


def r5(decision: str | None, *provisions: dict[str, Any], **more: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "resourceType": "Consent",
        "status": "active",
        "subject": {"identifier": {"system": "urn:oid:1.2.3.4", "value": "CANARY-PID"}},
        "date": "2026-01-01",
        "decision": decision,
        "provision": list(provisions) or None,
    } | more
    return {key: value for key, value in tree.items() if value is not None}


def read(tree: dict[str, Any]) -> Document:
    return parse(json.dumps(tree).encode())


def ask(what: str = "TREATDS", *, at: datetime = AT, **more: Any) -> Request:
    return Request(act_reason(what), frozenset({"Organization/radseal"}), at, **more)


def answer(tree: dict[str, Any], request: Request | None = None) -> str:
    return evaluate(read(tree), request or ask()).answer


def test_every_shared_case(shared):
    folder = shared / "consent"
    cases = json.loads((folder / "cases.json").read_text())
    assert len(cases) == 40
    wrong = []
    for number, case in enumerate(cases):
        documents = [
            parse((folder / "consents" / f"{name}.json").read_bytes()) for name in case["consents"]
        ]
        decision = decide(Request.from_json(case["request"]), documents, None)
        if decision.decision != case["expected"]:
            wrong.append((number, case["consents"], decision))
    assert wrong == []


# One document


@pytest.mark.parametrize(
    ("listed", "asked", "expected"),
    [
        ("TREAT", "TREATDS", "permit"),
        ("TREAT", "BTG", "permit"),
        ("TREATDS", "TREAT", "not-applicable"),
        ("HRESCH", "CLINTRCHPC", "permit"),
        ("HOPERAT", "HQUALIMP", "permit"),
        ("HOPERAT", "MLTRAINING", "not-applicable"),
        ("MLTRAINING", "MLTRAINING", "permit"),
        ("MLTRAINING", "LABELTRAIN", "not-applicable"),
        ("TREAT", "NOSUCHCODE", "not-applicable"),
    ],
)
def test_a_permit_reaches_down_but_never_to_training(listed, asked, expected):
    assert answer(r4({"type": "permit", "purpose": purpose(listed)}), ask(asked)) == expected


@pytest.mark.parametrize("asked", ["MLTRAINING", "LABELTRAIN"])
def test_a_denial_reaches_training_too(asked):
    assert answer(r4({"type": "deny", "purpose": purpose("HOPERAT")}), ask(asked)) == "deny"
    assert answer(r5("permit"), ask(asked)) == "not-applicable"
    assert answer(r5("deny"), ask(asked)) == "deny"


def test_an_exception_counts_outside_of_the_roots_purposes():
    nested = {"type": "deny", "purpose": purpose("TREATDS")}
    tree = r4({"type": "permit", "purpose": purpose("TREAT"), "provision": [nested]})
    assert answer(tree) == "deny"
    assert answer(tree, ask("TREAT")) == "permit"
    outside = {"type": "permit", "purpose": purpose("HRESCH")}
    tree = r4({"type": "deny", "purpose": purpose("TREAT"), "provision": [outside]})
    assert answer(tree, ask("HRESCH")) == "permit"


def test_deny_wins_among_exceptions_and_the_deepest_speaks():
    permit = {"type": "permit", "purpose": purpose("TREATDS")}
    deny = {"type": "deny", "purpose": purpose("TREAT")}
    assert answer(r4({"type": "permit", "provision": [permit, deny]})) == "deny"
    deep = {"type": "deny", "purpose": purpose("TREAT"), "provision": [permit]}
    verdict = evaluate(read(r4({"type": "permit", "provision": [deep]})), ask())
    assert verdict.answer == "permit"
    assert verdict.path == "Consent.provision.provision[0].provision[0]"


def test_r5_exceptions_flip_at_every_level():
    inner = {"purpose": purpose("TREATDS")}
    outer = {"purpose": purpose("TREAT"), "provision": [inner]}
    assert answer(r5("permit", {"purpose": purpose("TREAT")})) == "deny"
    assert answer(r5("permit", outer)) == "permit"
    assert answer(r5("permit", outer), ask("TREAT")) == "deny"
    assert answer(r5("permit", outer), ask("HRESCH")) == "permit"
    assert answer(r5("deny", {"purpose": purpose("TREAT")})) == "permit"


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        (r5(None, {"purpose": purpose("TREAT")}), "no-base-decision"),
        (r4({"purpose": purpose("TREAT")}), "no-base-decision"),
        (r4({"type": "permit", "modifierExtension": [{"url": "x"}]}), "modifier-extension"),
        (r4({"type": "permit"}, modifierExtension=[{"url": "x"}]), "modifier-extension"),
        (r4({"type": "permit"}, implicitRules="urn:x"), "implicit-rules"),
        (r5("permit", {"expression": {"language": "text/cql"}}), "expression"),
        (r4({"type": "permit"}, scope={"text": "?"}), "scope-not-privacy"),
        (
            r5(
                "permit",
                category=[
                    {"coding": [code("http://terminology.hl7.org/CodeSystem/consentscope", "adr")]}
                ],
            ),
            "not-about-privacy",
        ),
    ],
)
def test_what_cannot_be_evaluated_permits_nothing_and_says_so(tree, reason):
    document = read(tree)
    assert document.unusable == reason
    assert evaluate(document, ask()).answer == "not-applicable"
    decision = decide(ask(), [document], OPT_IN)
    assert (decision.decision, decision.reason) == ("deny", "document-not-usable")


@pytest.mark.parametrize(("rule", "expected"), [("OPTIN", "permit"), ("OPTOUT", "deny")])
def test_policy_rule_is_a_base_only_without_conditions_at_the_root(rule, expected):
    concept = {"coding": [code(ACT_CODE, rule)]}
    assert answer(r4(None, policyRule=concept)) == expected
    nested = {"provision": [{"type": "deny", "purpose": purpose("HRESCH")}]}
    assert answer(r4(nested, policyRule=concept)) == expected
    conditioned = {"period": {"end": "2027"}}
    assert read(r4(conditioned, policyRule=concept)).unusable == "no-base-decision"


@pytest.mark.parametrize("status", ["draft", "proposed", "rejected", "inactive"])
def test_only_an_active_document_speaks(status):
    document = read(r4({"type": "permit"}, status=status))
    assert evaluate(document, ask()).reason == "not-active"
    assert decide(ask(), [document], None).reason == "documents-not-active"


def test_periods_include_their_last_day_and_valid_until_names_the_next_edge():
    tree = r4({"type": "permit", "period": {"start": "2026-03", "end": "2026-12-31"}})
    last = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert answer(tree, ask(at=last)) == "permit"
    assert answer(tree, ask(at=last + timedelta(seconds=1))) == "not-applicable"
    assert answer(tree, ask(at=datetime(2026, 2, 28, 23, tzinfo=UTC))) == "not-applicable"
    assert decide(ask(), [read(tree)], None).valid_until == "2027-01-01T00:00:00.000Z"
    later = {"type": "deny", "period": {"start": "2026-06-01T00:00:00+02:00"}}
    tree["provision"]["provision"] = [later]
    assert decide(ask(), [read(tree)], None).valid_until == "2026-05-31T22:00:00.000Z"
    assert decide(ask(), [read(r4({"type": "permit"}))], None).valid_until is None


def test_r5_root_period():
    assert answer(r5("permit", period={"end": "2026-02"})) == "not-applicable"


def test_what_is_not_known_of_the_data_never_widens():
    encounter = {"meaning": "related", "reference": {"reference": "Encounter/1"}}
    only = r4({"type": "permit", "data": [encounter]})
    withheld = r4({"type": "permit", "provision": [{"type": "deny", "data": [encounter]}]})
    released = r4({"type": "deny", "provision": [{"type": "permit", "data": [encounter]}]})
    for known_related, expected in [
        (None, ("deny", "deny", "deny")),
        (frozenset(), ("deny", "permit", "deny")),
        (frozenset({"Encounter/1"}), ("permit", "deny", "permit")),
        (frozenset({"Encounter/2"}), ("deny", "permit", "deny")),
        (frozenset({"https://x.org/fhir/Encounter/1"}), ("deny", "deny", "deny")),
    ]:
        request = ask(related=known_related)
        assert tuple(answer(tree, request) for tree in (only, withheld, released)) == expected


def test_data_period_permits_what_it_holds_and_denies_what_it_meets():
    period = {"dataPeriod": {"start": "2022-01-01", "end": "2022-12-31"}}
    only = r4({"type": "permit", **period})
    withheld = r4({"type": "permit", "provision": [{"type": "deny", **period}]})
    for time, expected in [
        ("2022-12-31", ("permit", "deny")),
        ("2023-01-01", ("deny", "permit")),
        ("2022", ("permit", "deny")),
        (None, ("deny", "deny")),
    ]:
        request = ask(time=time)
        assert (answer(only, request), answer(withheld, request)) == expected
    straddling = {"dataPeriod": {"start": "2022-06"}}
    assert answer(r4({"type": "permit", **straddling}), ask(time="2022")) == "deny"


@pytest.mark.parametrize(
    ("listed", "labels", "as_permit", "as_deny"),
    [
        ("R", "N", "permit", "permit"),
        ("N", "R", "deny", "deny"),
        ("R", "V", "deny", "deny"),
        ("N", "U", "permit", "permit"),
        ("PSY", "PSY", "permit", "deny"),
        ("PSY", "PSY N", "permit", "deny"),
        ("PSY", "PSY R", "deny", "deny"),
        ("SPI", "OPIOIDUD", "permit", "deny"),
        ("ETH", "ETHUD", "deny", "permit"),
        ("PSY", "N", "deny", "permit"),
        ("N R", "R N", "permit", "deny"),
    ],
)
def test_labels(listed, labels, as_permit, as_deny):
    def coding(one: str) -> Coding:
        return Coding(CONFIDENTIALITY if len(one) == 1 else ACT_CODE, one)

    rule = {"securityLabel": [coding(one)._asdict() for one in listed.split()]}
    request = ask(labels=tuple(coding(one) for one in labels.split()))
    assert answer(r4({"type": "permit", **rule}), request) == as_permit
    nested = {"type": "permit", "provision": [{"type": "deny", **rule}]}
    assert answer(r4(nested), request) == as_deny


def test_what_is_only_partly_the_data_of_a_denial_opens_no_way_to_its_exceptions():
    inner = {"type": "permit", "purpose": purpose("TREATDS")}
    period = {"dataPeriod": {"start": "2022", "end": "2022"}}
    outer = r4({"type": "deny", "provision": [{"type": "deny", **period, "provision": [inner]}]})
    assert answer(outer, ask(time="2022-06")) == "permit"
    straddling = ask(time="2022-12-31T23:00:00-05:00")
    assert answer(outer, straddling) == "deny"
    inner = {"type": "deny", "purpose": purpose("TREATDS")}
    outer = r4(
        {"type": "permit", "provision": [{"type": "permit", **period, "provision": [inner]}]}
    )
    assert answer(outer, ask(time="2023")) == "permit"
    assert answer(outer, ask(time="2022")) == "deny"


def test_actors_by_reference_identifier_and_role():
    def actor(reference: dict[str, Any], role: str = "IRCP") -> dict[str, Any]:
        system = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
        return {"reference": reference, "role": {"coding": [code(system, role)]}}

    ours = {"reference": "Organization/radseal"}
    for one, expected in [
        (actor(ours), ("permit", "deny")),
        (actor(ours, "CST"), ("not-applicable", "deny")),
        (actor({"display": "radseal"}), ("not-applicable", "deny")),
        (actor({"reference": "https://a.org/Organization/radseal"}), ("not-applicable", "deny")),
        (actor({"reference": "Organization/other"}), ("not-applicable", "not-applicable")),
    ]:
        pair = tuple(answer(r4({"type": t, "actor": [one]})) for t in ("permit", "deny"))
        assert pair == expected
    named = actor({"identifier": {"system": "urn:s", "value": "7"}})
    request = Request(act_reason("TREAT"), frozenset({"urn:s|7"}), AT)
    assert answer(r4({"type": "permit", "actor": [named]}), request) == "permit"


def test_kinds_of_data_and_action():
    image = code("http://hl7.org/fhir/resource-types", "ImagingStudy")
    tree = r4({"type": "permit", "class": [image]})
    assert answer(tree, ask(classes=frozenset({Coding(**image)}))) == "permit"
    assert answer(tree, ask(classes=frozenset())) == "deny"
    assert answer(tree) == "deny"
    use = {"coding": [code("http://terminology.hl7.org/CodeSystem/consentaction", "use")]}
    tree = r4({"type": "permit", "provision": [{"type": "deny", "action": [use]}]})
    assert answer(tree) == "deny"
    assert answer(tree, ask(actions=frozenset({Coding("x", "disclose")}))) == "permit"
    text_only = r4({"type": "permit", "provision": [{"type": "deny", "code": [{"text": "CT"}]}]})
    assert answer(text_only, ask(codes=frozenset({Coding("s", "c")}))) == "deny"


def test_a_code_without_system_denies_but_never_permits():
    assert answer(r4({"type": "permit", "purpose": [{"code": "TREAT"}]})) == "not-applicable"
    assert answer(r4({"type": "deny", "purpose": [{"code": "TREAT"}]})) == "deny"
    assert answer(r4({"type": "deny", "purpose": [{"display": "care"}]})) == "deny"


# Several documents, and the policy


def test_the_newest_wins_and_the_same_day_denies():
    older = read(r4({"type": "deny"}, dateTime="2026-01-01"))
    newer = read(r4({"type": "permit"}, dateTime="2026-01-02"))
    same_day = read(r4({"type": "permit"}, dateTime="2026-01-01T15:00:00Z"))
    undated = read(r4({"type": "deny"}, dateTime=None))
    decision = decide(ask(), [older, newer], None)
    assert (decision.decision, decision.matched) == ("permit", ((1, "Consent.provision"),))
    assert decide(ask(), [older, same_day], None).decision == "deny"
    assert decide(ask(), [newer, undated], None).decision == "deny"


def test_for_research_any_denial_wins():
    older = read(r4({"type": "deny"}, dateTime="2025"))
    newer = read(r4({"type": "permit"}, dateTime="2026-01-02"))
    assert decide(ask("HRESCH"), [older, newer], OPT_OUT).decision == "deny"
    assert decide(ask("TREATDS"), [older, newer], OPT_OUT).decision == "permit"


@pytest.mark.parametrize(
    ("policy", "asked", "expected"),
    [
        ("opt-out-treatment", "TREATDS", "permit"),
        ("opt-out-treatment", "BTG", "permit"),
        ("opt-out-treatment", "HQUALIMP", "permit"),
        ("opt-out-treatment", "HOPERAT", "deny"),
        ("opt-out-treatment", "HRESCH", "deny"),
        ("opt-out-treatment", "MLTRAINING", "deny"),
        ("opt-out-treatment", "LABELTRAIN", "deny"),
        ("opt-out-treatment", "NOSUCHCODE", "deny"),
        ("opt-in-all", "TREATDS", "deny"),
        ("break-glass-only", "BTG", "permit"),
        ("break-glass-only", "TREATDS", "deny"),
        ("deny-all", "TREATDS", "deny"),
        ("deny-all", "BTG", "deny"),
    ],
)
def test_policies_where_no_document_speaks(policy, asked, expected):
    decision = decide(ask(asked), [], POLICIES[policy])
    assert (decision.decision, decision.basis) == (expected, "policy")
    assert decision.policy_id == policy
    assert decision.engine == ENGINE == "radseal-consent/1"


def test_a_foreign_system_is_not_in_the_table():
    request = Request(Coding("urn:other", "TREAT"), frozenset(), AT)
    assert decide(request, [], OPT_OUT).decision == "deny"


def test_documents_go_before_every_policy_but_deny_all():
    permit, deny = read(r4({"type": "permit"})), read(r4({"type": "deny"}))
    assert decide(ask(), [permit], OPT_IN).decision == "permit"
    assert decide(ask(), [deny], OPT_OUT).decision == "deny"
    decision = decide(ask(), [permit], POLICIES["deny-all"])
    assert (decision.decision, decision.basis) == ("deny", "policy")


def test_policies_are_told_apart_by_digest():
    assert len({policy.digest() for policy in POLICIES.values()}) == 4
    assert all(policy.id == name for name, policy in POLICIES.items())


def test_words_and_errors_name_nobody():
    canary = "CANARY^NAME"
    documents = [read(r4({"type": "deny", "purpose": purpose("TREAT")}))]
    request = Request(Coding(ACT_REASON, canary), frozenset({canary}), AT)
    for one in (ask(), request):
        decision = decide(one, documents, OPT_OUT)
        assert "CANARY" not in json.dumps(decision.to_json())
    assert decide(ask(), documents, OPT_OUT).words == (
        "consent denies TREATDS (Consent.provision of document 1)"
    )
    assert "CANARY" not in repr(documents[0])
    with pytest.raises(ConsentError) as caught:
        read(r4({"type": canary}))
    assert canary not in str(caught.value)


# Reading


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"resourceType": "Patient"}, "Consent.resourceType"),
        ({"resourceType": "Consent", "status": "active"}, "Consent"),
        (r4({"type": "maybe"}), "Consent.provision.type"),
        (r4({"type": "permit"}, status="on"), "Consent.status"),
        (r4({"type": "permit"}, status=None), "Consent.status"),
        (r4({"type": "permit"}, dateTime="yesterday"), "Consent.dateTime"),
        (r4({"type": "permit"}, provison={}), "Consent"),
        (r4({"type": "permit", "purpos": []}), "Consent.provision"),
        (r4({"type": "permit", "purpose": []}), "Consent.provision.purpose"),
        (r4({"type": "permit", "purpose": ["TREAT"]}), "Consent.provision.purpose[0]"),
        (r4({"type": "permit", "purpose": [{"code": 7}]}), "Consent.provision.purpose[0]"),
        (r4({"type": "permit", "_purpose": []}), "Consent.provision.purpose"),
        (r4({"type": "permit", "period": {"end": "2026-13"}}), "Consent.provision.period.end"),
        (r4({"type": "permit", "period": {"start": "2027", "end": "2026"}}),
         "Consent.provision.period"),
        (r4({"type": "permit", "data": [{"meaning": "x"}]}), "Consent.provision.data[0].meaning"),
        (r4({"type": "permit", "actor": [7]}), "Consent.provision.actor[0]"),
        (r4({"type": "permit", "provision": [7]}), "Consent.provision.provision[0]"),
        (r4({"type": "permit", "code": [7]}), "Consent.provision.code[0]"),
        (r5("permit", {"type": "deny"}), "Consent.provision[0]"),
        (r5("perhaps"), "Consent.decision"),
        (r5("permit", scope={}), "Consent"),
    ],
)  # fmt: skip
def test_errors_name_the_fhir_path(tree, path):
    with pytest.raises(ConsentError) as caught:
        read(tree)
    assert caught.value.path == path


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"resourceType": "Consent", "resourceType": "Consent"}',
        b'{"resourceType": NaN}',
        b'{"a":' * 100_000,
        b" " * (1 << 20) + b"{}",
    ],
)
def test_hostile_bytes_are_an_error_and_nothing_else(data):
    with pytest.raises(ConsentError):
        parse(data)


def test_nesting_has_an_end():
    tree: dict[str, Any] = {"type": "permit"}
    for _ in range(9):
        tree = {"type": "permit", "provision": [tree]}
    with pytest.raises(ConsentError, match="nested deeper"):
        read(r4(tree))


def test_whose_document_it_is():
    document = read(r4({"type": "permit"}))
    assert document.release == "R4"
    assert document.identifier() == ("urn:oid:1.2.3.4", "CANARY-PID")
    assert document.reference() == "Patient/7"
    assert read(r5("permit")).identifier() == ("urn:oid:1.2.3.4", "CANARY-PID")
    for patient in (None, {"reference": "Patient/7"}, {"identifier": {"value": "7"}}):
        assert read(r4({"type": "permit"}, patient=patient)).identifier() is None
    assert read(r5("permit", subject=None)).reference() is None


# Requests, purposes, time


def test_requests_read_and_write_the_same():
    request = ask(
        time="2026-02-01",
        refs=frozenset({"ImagingStudy/1"}),
        related=frozenset(),
        classes=frozenset({Coding("s", "c")}),
    )
    again = Request.from_json(request.to_json())
    assert again == request
    assert again.to_json() == request.to_json()
    assert again.authors is None
    assert again.related == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        {"purpose": {"code": "TREAT"}},
        {"purpose": "TREAT"},
        {"actors": "x"},
        {"actors": [7]},
        {"at": "2026-01-01"},
        {"at": "now"},
        {"data": 7},
        {"data": {"label": []}},
        {"data": {"time": "?"}},
        {"data": {"refs": "Observation/1"}},
        {"who": "?"},
    ],
)
def test_a_wrong_request_is_refused(change):
    right = {
        "purpose": code(ACT_REASON, "TREAT"),
        "actors": [],
        "at": "2026-01-01T00:00:00Z",
        "data": {},
    }
    Request.from_json(right)
    with pytest.raises(ConsentError):
        Request.from_json(right | change)
    with pytest.raises(ConsentError):
        Request.from_json(json.dumps(right | change))


def test_a_request_needs_a_zone():
    with pytest.raises(ConsentError):
        Request(act_reason("TREAT"), frozenset(), AT.replace(tzinfo=None))


def test_the_purposes_are_those_of_the_code_system():
    from bridge.consent import purposes

    assert len(purposes._PARENT) + len(purposes._TOP) == 62
    assert [one.code for one in ancestors(act_reason("BTG"))] == ["ETREAT", "TREAT"]
    assert [one.code for one in ancestors(act_reason("LABELTRAIN"))] == ["MLTRAINING", "HOPERAT"]
    assert known(act_reason("TREATDS"))
    assert not known(act_reason("NOSUCHCODE"))


@pytest.mark.parametrize(
    ("text", "start", "seconds"),
    [
        ("2024", "2024-01-01T00:00:00+00:00", 366 * 86400),
        ("2024-02", "2024-02-01T00:00:00+00:00", 29 * 86400),
        ("2024-12", "2024-12-01T00:00:00+00:00", 31 * 86400),
        ("2024-02-29", "2024-02-29T00:00:00+00:00", 86400),
        ("2024-01-01T01:30:00+02:00", "2023-12-31T23:30:00+00:00", 1),
        ("2024-01-01T00:00:00.5Z", "2024-01-01T00:00:00.500000+00:00", 1e-6),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00", 1),
    ],
)
def test_spans(text, start, seconds):
    found = span(text)
    assert found.start.isoformat() == start
    assert (found.end - found.start).total_seconds() == seconds


@pytest.mark.parametrize("text", ["9999", "9999-12", "9999-12-31"])
def test_the_last_year_never_ends(text):
    assert span(text).end == ALWAYS.end


@pytest.mark.parametrize(
    "text",
    ["", "24", "2024-1", "2023-02-29", "2024-01-01T00:00", "2024-01-01T00:00:00",
     "2024-01-01T24:00:00Z", "2024-01-01T00:00:61Z", "0001-01-01T00:00:00+14:00", "٢٠٢٤", "0000"],
)  # fmt: skip
def test_no_dates(text):
    with pytest.raises(ValueError, match=r"date|day|range|month|hour|second|time"):
        span(text)
