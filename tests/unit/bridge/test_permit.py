"""bridge.permit: consent before every use, as rows and leaves that the trace rules accept."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from bench import ANNA, BERT, NOBODY, changed, consent, every, images

from bridge import acts, ambient, deliver, grant, infer, permit
from bridge.consent.document import parse
from bridge.store import arrivals, work
from bridge.store.database import reading
from bridge.study import RouteState

UID = str(images(1)[0].StudyInstanceUID)


def keep(desk, answer: str, patient=ANNA, **options) -> str:
    data = consent(answer, patient, **options)
    return grant.keep(desk.rooms, data, parse(data), None, by="clerk")


def ask(desk, route_id: str, moment: str = "inference") -> permit.Answer:
    with reading(desk.rooms.database) as connection:
        route = work.route(connection, route_id)
        leaf = arrivals.leaf_of(connection, f"input/{route_id}")
    return permit.ask(desk.rooms, route, moment=moment, input_sealed=leaf)


@pytest.fixture
def asked(new_site):
    """Make a desk with one sealed route."""

    def prepare(sent=None, toml=""):
        desk = new_site(toml)
        desk.model()
        sent = images(3) if sent is None else sent
        desk.receive(*sent)
        (route_id,) = desk.seal(str(sent[0].StudyInstanceUID))
        infer.seal(desk.rooms, route_id)
        return desk, route_id

    return prepare


def checks(desk) -> list[dict]:
    return [leaf for leaf in desk.leaves() if leaf["type"] == "consent.checked"]


def test_without_a_document_the_sites_policy_decides(asked):
    desk, route_id = asked()
    answer = ask(desk, route_id)
    assert answer.permitted
    (leaf,) = checks(desk)
    assert (leaf["body"]["decision"], leaf["body"]["basis"]) == ("permit", "policy")
    assert leaf["body"]["policy"] == "opt-out-treatment"


def test_the_same_answer_on_the_same_grounds_is_one_leaf(asked):
    desk, route_id = asked()
    leaves = {ask(desk, route_id).leaf for _ in range(3)}
    leaves.add(ask(desk, route_id, "delivery/pacs").leaf)
    assert len(leaves) == 1
    assert len(checks(desk)) == 1


def test_a_denial_stops_the_route_with_its_reason(asked):
    desk, route_id = asked()
    keep(desk, "deny")
    assert not infer.permitted(desk.rooms, route_id)
    (row,) = desk.rows("routes")
    assert row.state == RouteState.DENIED
    assert "denies" in row.reason
    (leaf,) = checks(desk)
    assert leaf["body"]["decision"] == "deny"
    assert {ref["rel"] for ref in leaf["refs"]} == {"input.sealed", "consent.granted"}
    desk.finish(UID)
    assert desk.study(UID).state == "denied"
    desk.verify()


def test_another_patients_document_says_nothing(asked):
    desk, route_id = asked()
    keep(desk, "deny", BERT)
    assert ask(desk, route_id).permitted


def test_a_withdrawn_document_says_nothing_and_a_changed_basis_is_a_new_leaf(asked):
    desk, route_id = asked()
    first = ask(desk, route_id)
    identity = keep(desk, "deny")
    second = ask(desk, route_id)
    grant.withdraw(desk.rooms, identity)
    third = ask(desk, route_id)
    assert [first.permitted, second.permitted, third.permitted] == [True, False, True]
    assert len({first.leaf, second.leaf, third.leaf}) == 3
    desk.verify()


def test_a_permit_by_another_document_is_another_basis(asked):
    """Else a delivery would stand on a consent that was withdrawn (trace rule R1)."""
    desk, route_id = asked()
    identity = keep(desk, "permit", text="a")
    first = ask(desk, route_id)
    grant.withdraw(desk.rooms, identity)
    keep(desk, "permit", text="b")
    second = ask(desk, route_id)
    assert first.permitted
    assert second.permitted
    assert first.leaf != second.leaf


def test_a_permit_whose_end_has_passed_is_asked_anew(asked, monkeypatch):
    """The answer is the same (the policy's), but the old leaf said until when it holds."""
    desk, route_id = asked()
    keep(desk, "permit", end=ambient.now() + timedelta(hours=1))
    first = ask(desk, route_id)
    assert checks(desk)[0]["body"]["valid_until"]
    later = ambient.now() + timedelta(hours=2)
    monkeypatch.setattr(desk.rooms.record, "now", lambda: later)
    second = ask(desk, route_id)
    assert first.permitted
    assert second.permitted
    assert first.leaf != second.leaf


def test_an_edge_that_passed_is_a_new_leaf_even_where_the_document_does_not_decide(
    asked, monkeypatch
):
    """Else what stands on the old leaf would come after its valid_until (trace rule R1)."""
    desk, route_id = asked()
    keep(desk, "permit", text="whole")
    keep(desk, "permit", end=ambient.now() + timedelta(hours=1), purpose="HRESCH")
    first = ask(desk, route_id)
    later = ambient.now() + timedelta(hours=2)
    monkeypatch.setattr(desk.rooms.record, "now", lambda: later)
    assert ask(desk, route_id).leaf != first.leaf


@pytest.mark.parametrize(("said", "permitted"), [("deny", False), ("permit", True)])
def test_studies_without_patient_id_are_the_sites_to_decide(asked, said, permitted):
    sent = images(3, patient=NOBODY, study="nobody")
    desk, route_id = asked(sent, f'[consent]\nunidentified = "{said}"\n')
    assert ask(desk, route_id).permitted is permitted
    desk.verify()


def test_nobody_overrides_deny_all(asked):
    desk, route_id = asked(toml='[consent]\npolicy = "deny-all"\n')
    keep(desk, "permit")
    assert not ask(desk, route_id).permitted


def test_consent_is_asked_for_both_patients_and_the_stricter_answer_holds(asked):
    sent = images(4)
    desk, _ = asked([*sent[:3], changed(sent[3], PatientID=BERT.id)])
    acts.accept(desk.rooms, UID, "dr-x")
    keep(desk, "permit", ANNA)
    keep(desk, "deny", BERT)
    (route_id,) = desk.seal(UID)
    infer.seal(desk.rooms, route_id)
    assert not ask(desk, route_id).permitted
    desk.verify()


def test_a_second_patients_permit_is_no_fault_of_the_trace(asked):
    """Its document is of another subject: named in the body, not among the chain's references."""
    sent = images(4)
    desk, _ = asked([*sent[:3], changed(sent[3], PatientID=BERT.id)])
    acts.accept(desk.rooms, UID, "dr-x")
    keep(desk, "deny", BERT)
    (route_id,) = desk.seal(UID)
    infer.seal(desk.rooms, route_id)
    assert not ask(desk, route_id).permitted
    leaf = checks(desk)[-1]
    assert [ref["rel"] for ref in leaf["refs"]] == ["input.sealed"]
    assert leaf["body"]["matched"][0]["leaf"]
    desk.verify()


def test_after_a_corrected_identity_the_new_patients_documents_hold(asked):
    desk, route_id = asked()
    keep(desk, "deny", BERT)
    assert ask(desk, route_id).permitted
    desk.receive(*every(images(3), PatientID=BERT.id))
    assert desk.study(UID).patient.patient_id == BERT.id
    assert not ask(desk, route_id).permitted
    desk.verify()


def test_what_stands_on_a_permit_is_not_said_after_it_changed(asked):
    desk, route_id = asked()
    answer = ask(desk, route_id)
    keep(desk, "deny")
    ask(desk, route_id)
    said = []
    assert permit.stand_on(desk.rooms, route_id, answer, lambda: said.append(1)) is None
    assert not said


def test_a_denial_between_the_run_and_the_delivery_holds_the_result(new_site, archive):
    pacs = archive()
    desk = new_site(pacs.toml())
    desk.model()
    desk.receive(*images(3))
    (route_id,) = desk.seal(UID)
    run_id = desk.run(route_id)
    assert desk.report(run_id) == ["pacs"]
    keep(desk, "deny")
    assert deliver.send(desk.rooms, run_id, "pacs", 0) == deliver.DONE
    assert not pacs.received
    assert {row.state for row in desk.rows("deliveries")} == {"held"}
    desk.finish(UID)
    assert desk.study(UID).state == "denied"
    desk.verify()


@pytest.mark.parametrize("date", ["", "20269999", "²²²²²²²²", "2026", "rubbish!"])
def test_a_strange_study_date_stops_nothing(asked, date):
    desk, route_id = asked(images(3, StudyDate=date))
    assert ask(desk, route_id).permitted


def test_leaves_hold_nothing_of_the_patient(asked):
    desk, route_id = asked()
    keep(desk, "deny")
    ask(desk, route_id)
    text = json.dumps(desk.leaves())
    for canary in (ANNA.id, "Alpha", UID, "ACC-1"):
        assert canary not in text
