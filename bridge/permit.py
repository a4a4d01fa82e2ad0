"""Asking consent: the patient's documents and the site's policy, before every use.

The decision itself is `consent.evaluate.decide`, pure; here the documents are opened
under the patient's key, and the answer becomes a row and a leaf. A question asked
again is a new leaf only when answer or basis changed (design §4.5).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bridge import metrics
from bridge.consent.document import parse
from bridge.consent.evaluate import Decision, Request, decide
from bridge.consent.policy import POLICIES
from bridge.consent.purposes import act_reason
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.store import arrivals, catalog, work
from bridge.store.arrivals import StudyRow
from bridge.store.catalog import ConsentRow
from bridge.store.database import reading, writing
from bridge.store.work import RouteRow
from bridge.study import Patient
from bridge.vault import request_commitment

__all__ = ["Answer", "ask"]


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
        last = work.last_decision(connection, route.id)
    if generation is None:
        raise KeyError(route.id)
    chain = rooms.record.chain(generation.subject_ref, study.study_instance_uid)
    package = rooms.catalog.package(route.model_digest)
    at = rooms.now()
    request = Request(
        purpose=act_reason(rooms.site.consent.purpose),
        actors=frozenset({f"Device/{package.id}", f"Organization/{package.vendor}"}),
        at=at,
    )
    decision, used = _strictest(rooms, study, request)
    told = (decision.decision, decision.basis, decision.reason)
    if last is not None and (last.decision, last.basis, last.reason) == told:
        return Answer(decision.decision == "permit", decision.words, last.leaf)
    number = 0 if last is None else last.number + 1
    leaf = rooms.record.say(
        "consent.checked", f"consent/{route.id}/{number}",
        _body(rooms, decision, used, request, chain, moment),
        chain=chain,
        refs=[("input.sealed", input_sealed),
              *(("consent.granted", row.leaf) for row in used if row.leaf)],
    )  # fmt: skip
    metrics.CONSENT.labels(decision.decision, decision.basis).inc()
    with writing(rooms.database) as connection:
        work.add_decision(
            connection, route.id, moment=moment, decision=decision.decision,
            basis=decision.basis, reason=decision.reason, words=decision.words, leaf=leaf, at=at,
        )  # fmt: skip
        arrivals.tell(
            connection, key=f"consent/{route.id}/{number}", study_id=study.id,
            generation_number=route.generation, at=at, stage="consent",
            code=decision.decision, words=decision.words, model_id=route.model_id, leaf=leaf,
        )  # fmt: skip
    return Answer(decision.decision == "permit", decision.words, leaf)


def _strictest(
    rooms: Rooms, study: StudyRow, request: Request
) -> tuple[Decision, list[ConsentRow]]:
    """Ask for each identity that holds for the study; a denial of any holds for all."""
    answers = [_of_patient(rooms, study, patient, request) for patient in study.identities]
    return next((a for a in answers if a[0].decision != "permit"), answers[0])


def _of_patient(
    rooms: Rooms, study: StudyRow, patient: Patient, request: Request
) -> tuple[Decision, list[ConsentRow]]:
    policy = POLICIES[rooms.site.consent.policy]
    if not patient.identified:
        said = rooms.site.consent.unidentified
        suppressed = rooms.vault.suppressed_unidentified(study.study_instance_uid)
        if suppressed or said == "deny":
            return _by_site("deny", "unidentified", "the study names no patient", policy.id), []
        return _by_site("permit", "unidentified", "the study names no patient", policy.id), []
    subject = rooms.vault.subject(patient.issuer, patient.patient_id)
    with reading(rooms.database) as connection:
        rows = catalog.consents_of(connection, [subject.ref])
    documents = [parse(rooms.vault.open(row.subject_ref, row.sealed)) for row in rows]
    decision = decide(request, documents, policy)
    if not documents and rooms.vault.suppressed(patient.issuer, patient.patient_id):
        return _by_site("deny", "erased", "the patient's data was erased", policy.id), []
    return decision, [rows[index] for index in sorted({i for i, _ in decision.matched})]


def _by_site(decision: Any, reason: str, words: str, policy_id: str) -> Decision:
    verb = "permits" if decision == "permit" else "denies"
    return Decision(
        decision, "policy", reason, f"{words}; the site {verb} this", (), None, policy_id
    )


def _body(
    rooms: Rooms,
    decision: Decision,
    used: Sequence[ConsentRow],
    request: Request,
    chain: Chain,
    moment: str,
) -> dict[str, Any]:
    """Say a decision so that it can be executed again from the documents and the request."""
    policy = POLICIES[rooms.site.consent.policy]
    asked = json.dumps(
        {"purpose": request.purpose.code, "actors": sorted(request.actors),
         "at": _stamp(request.at)},
        sort_keys=True, separators=(",", ":"),
    ).encode()  # fmt: skip
    leaves = [row.leaf for row in used]
    return {
        "decision": decision.decision,
        "basis": decision.basis,
        "purpose": request.purpose.code,
        "policy": policy.id,
        "policy_digest": policy.digest().hex(),
        "engine": decision.engine,
        "reason": decision.reason,
        "request": rooms.record.text(request_commitment(chain.key, asked)),
        "matched": [
            {"document": position, "path": path, "leaf": leaf}
            for position, ((_, path), leaf) in enumerate(
                zip(decision.matched, leaves, strict=False)
            )
        ],
        "valid_until": decision.valid_until,
        "stage": moment.split("/", 1)[0],
    }


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")
