"""Asking consent: the patient's documents and the site's policy, before every use.

The decision itself is `consent.evaluate.decide`, pure; here the documents are opened
under the patient's key, and the answer becomes a row and a leaf. A question asked
again is a new leaf only when answer or basis changed (design §4.5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from bridge import metrics
from bridge.commitments import document_commitment, request_commitment
from bridge.consent.document import parse
from bridge.consent.evaluate import Decision, Request, decide, strictest
from bridge.consent.policy import POLICIES
from bridge.consent.purposes import Coding, act_reason
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.store import arrivals, catalog, decisions
from bridge.store.arrivals import StudyRow
from bridge.store.catalog import ConsentRow
from bridge.store.database import hold, reading, writing
from bridge.store.decisions import CONSENT
from bridge.store.work import RouteRow
from bridge.study import Patient

__all__ = ["CONSENT", "Answer", "Release", "ask", "ask_release", "stand_on"]

MOST_DOCUMENTS = 500  # a leaf holds 65,535 bytes; with more, it says none of them

_RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
_ACTIONS = "http://terminology.hl7.org/CodeSystem/consentaction"


@dataclass(frozen=True, slots=True)
class Answer:
    """Consent's answer and the leaf that says it."""

    permitted: bool
    words: str
    leaf: str


def ask(rooms: Rooms, route: RouteRow, *, moment: str, input_sealed: str) -> Answer:
    """Ask whether this route's study may be used now; `moment` is inference or delivery/NAME."""
    with reading(rooms.database) as connection:
        study = arrivals.study(connection, route.study_id)
        generation = arrivals.generation(connection, route.study_id, route.generation)
    if generation is None:
        raise KeyError(route.id)
    chain = rooms.record.chain(generation.subject_ref, study.study_instance_uid)
    while True:
        request = _request(rooms, study, route, moment)
        spoken = _strictest(rooms, study, request)
        decision, used = spoken.decision, spoken.used
        documents = [row.leaf or "" for row in used]
        body = _body(rooms, spoken, documents, request, chain, moment)
        refs = [("input.sealed", input_sealed), *_refs(rooms, used, generation.subject_ref)]
        with writing(rooms.database) as connection:
            hold(connection, CONSENT)
            if catalog.any_withdrawn(connection, documents):
                continue  # a withdrawal came between reading and saying: ask again
            last = decisions.last_decision(connection, route.id)
            if last is not None and _stands(rooms, last, decision, documents):
                return Answer(decision.decision == "permit", decision.words, last.leaf)
            number = 0 if last is None else last.number + 1
            leaf = rooms.record.say(
                "consent.checked", f"consent/{route.id}/{number}", body, chain=chain, refs=refs
            )
            decisions.add_decision(
                connection, route.id, number, moment=moment, decision=decision.decision,
                basis=decision.basis, reason=decision.reason, words=decision.words,
                documents=documents, request=request.to_json().decode(), leaf=leaf, at=request.at,
            )  # fmt: skip
            arrivals.tell(
                connection, key=f"consent/{route.id}/{number}", study_id=study.id,
                generation_number=route.generation, at=request.at, stage="consent",
                code=decision.decision, words=decision.words, model_id=route.model_id, leaf=leaf,
            )  # fmt: skip
        metrics.CONSENT.labels(decision.decision, decision.basis).inc()
        return Answer(decision.decision == "permit", decision.words, leaf)


def _refs(rooms: Rooms, used: Sequence[ConsentRow], subject_ref: str) -> list[tuple[str, str]]:
    """Refer to the documents that decided.

    One of another subject (a second patient's, a corrected identity's) is named in the body: a
    reference stays within its chain (trace rule R0).
    """
    return [
        ref
        for row in used
        if row.leaf and row.subject_ref == subject_ref
        for ref in rooms.record.versions(row.leaf)
    ]


def _stands(rooms: Rooms, last: Any, decision: Decision, documents: Sequence[str]) -> bool:
    """Whether the last answer says the same, on the same grounds, for as long."""
    told = (last.decision, last.basis, last.reason, last.documents)
    if told != (decision.decision, decision.basis, decision.reason, documents):
        return False
    until = rooms.record.body(last.leaf).get("valid_until")
    return bool(until == decision.valid_until)


def stand_on(rooms: Rooms, route_id: str, answer: Answer, say: Callable[[], str]) -> str | None:
    """Append what stands on a permit, unless consent changed since: then None, ask again.

    Decisions, withdrawals and what stands on them are appended under one lock, so that the
    log never shows a use after the denial or withdrawal that forbids it (trace rule R1).
    """
    with writing(rooms.database) as connection:
        hold(connection, CONSENT)
        last = decisions.last_decision(connection, route_id)
        if last is None or last.leaf != answer.leaf:
            return None
        if catalog.any_withdrawn(connection, last.documents):
            return None
        return say()


@dataclass(frozen=True, slots=True)
class Release:
    """Consent's answer to giving a study away, with the question, to execute it again."""

    answer: Answer
    basis: str
    request: bytes
    documents: Sequence[str]


def ask_release(
    rooms: Rooms, study: StudyRow, subject_ref: str, *, purpose: str, recipient: str, key: str
) -> Release:
    """Ask whether a study's records and data may be given to `recipient`; the answer is a leaf.

    `key` names this one act: each release is asked for itself, before it. The row that keeps
    the question of a route has no place for it; whoever releases keeps `request`.
    """
    chain = rooms.record.chain(subject_ref, study.study_instance_uid)
    request = Request(
        purpose=act_reason(purpose),
        actors=frozenset({f"Organization/{recipient}"}),
        at=rooms.now(),
        time=_day(study.study_date),
        classes=frozenset({Coding(_RESOURCE_TYPES, "ImagingStudy")}),
        actions=frozenset({Coding(_ACTIONS, "disclose")}),
    )
    with writing(rooms.database) as connection:
        hold(connection, CONSENT)
        spoken = _strictest(rooms, study, request)
        documents = [row.leaf or "" for row in spoken.used]
        body = _body(rooms, spoken, documents, request, chain, "release")
        refs = _refs(rooms, spoken.used, subject_ref)
        leaf = rooms.record.say("consent.checked", f"consent/{key}", body, chain=chain, refs=refs)
    decision = spoken.decision
    answer = Answer(decision.decision == "permit", decision.words, leaf)
    return Release(answer, decision.basis, request.to_json(), documents)


def _request(rooms: Rooms, study: StudyRow, route: RouteRow, moment: str) -> Request:
    """Say who asks for what: the model and its vendor, for the site's purpose, these images."""
    package = rooms.catalog.package(route.model_digest)
    action = "use" if moment == "inference" else "disclose"
    return Request(
        purpose=act_reason(rooms.site.consent.purpose),
        actors=frozenset({f"Device/{package.id}", f"Organization/{package.vendor}"}),
        at=rooms.now(),
        time=_day(study.study_date),
        classes=frozenset({Coding(_RESOURCE_TYPES, "ImagingStudy")}),
        actions=frozenset({Coding(_ACTIONS, action)}),
    )


def _day(study_date: str) -> str | None:
    """Give (0008,0020) as FHIR writes a day; None where it is none."""
    try:
        return date.fromisoformat(study_date).isoformat()
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Spoken:
    """An answer, the rows of the documents that decided, and what each identity's documents say."""

    decision: Decision
    used: list[ConsentRow]
    asked: Sequence[Sequence[bytes]]


def _strictest(rooms: Rooms, study: StudyRow, request: Request) -> _Spoken:
    """Ask for each identity that holds for the study; a denial of any holds for all."""
    with reading(rooms.database) as connection:  # while a sender corrects it, both count
        on_images = arrivals.held_identities(connection, study.id)
    asked = dict.fromkeys([*study.identities, *sorted(on_images, key=lambda p: p.patient_id)])
    answers = [_of_patient(rooms, study, patient, request) for patient in asked]
    deciding, decision = strictest([one.decision for one in answers])
    documents = [texts for one in answers for texts in one.asked]
    return _Spoken(decision, answers[deciding].used, documents)


def _of_patient(rooms: Rooms, study: StudyRow, patient: Patient, request: Request) -> _Spoken:
    policy = POLICIES[rooms.site.consent.policy]
    if not patient.identified:
        if rooms.vault.suppressed_unidentified(study.study_instance_uid):
            erased = _by_site("deny", "erased", "the study's data was erased", policy.id)
            return _Spoken(erased, [], [[]])
        said = rooms.site.consent.unidentified if policy.documents else "deny"
        answer = _by_site(said, "unidentified", "the study names no patient", policy.id)
        return _Spoken(answer, [], [[]])
    subject = rooms.vault.subject(patient.issuer, patient.patient_id)
    with reading(rooms.database) as connection:
        rows = catalog.consents_of(connection, [subject.ref])
    texts = [rooms.vault.open(row.subject_ref, row.sealed) for row in rows]
    decision = decide(request, [parse(text) for text in texts], policy)
    if decision.basis != "consent" and rooms.vault.suppressed(patient.issuer, patient.patient_id):
        erased = _by_site("deny", "erased", "the patient's data was erased", policy.id)
        return _Spoken(erased, [], [[]])
    used = [rows[index] for index in sorted({i for i, _ in decision.matched})]
    return _Spoken(decision, used, [texts])


def _by_site(decision: Any, reason: str, words: str, policy_id: str) -> Decision:
    verb = "permits" if decision == "permit" else "denies"
    return Decision(
        decision, "policy", reason, f"{words}; the site {verb} this", (), None, policy_id
    )


def _body(
    rooms: Rooms,
    spoken: _Spoken,
    documents: Sequence[str],
    request: Request,
    chain: Chain,
    moment: str,
) -> dict[str, Any]:
    """Say a decision so that it can be executed again from the documents and the request."""
    policy, decision = POLICIES[rooms.site.consent.policy], spoken.decision
    order = sorted({index for index, _ in decision.matched})  # `documents` stand in this order
    here = [rooms.record.here(document) for document in documents if document]
    leaves = dict(zip(order, here, strict=True)) if decision.matched else {}
    body: dict[str, Any] = {
        "decision": decision.decision,
        "basis": decision.basis,
        "purpose": request.purpose.code,
        "policy": policy.id,
        "policy_digest": policy.digest().hex(),
        "engine": decision.engine,
        "reason": decision.reason,
        "request": rooms.record.text(request_commitment(chain.key, request.to_json())),
        "matched": [
            {"document": order.index(index), "path": path, "leaf": leaves[index]}
            for index, path in decision.matched
        ],
        "valid_until": decision.valid_until,
        "stage": moment.split("/", 1)[0],
    }
    if sum(map(len, spoken.asked)) <= MOST_DOCUMENTS:
        # Under K_s, so that an auditor who holds one study's key can tie each text to this leaf.
        body["documents"] = [
            [rooms.record.text(document_commitment(chain.key, text)) for text in texts]
            for texts in spoken.asked
        ]
    return body
