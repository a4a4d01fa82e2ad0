"""A patient's consent documents: kept under the patient's key, withdrawn, each time a leaf."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from bridge.consent.abstract import said_openly, surely_older
from bridge.consent.document import Document, parse
from bridge.errors import NotFound, Refused, WrongUse
from bridge.permit import CONSENT
from bridge.rooms import Rooms
from bridge.store import catalog
from bridge.store.catalog import ConsentRow
from bridge.store.database import hold, reading, writing
from bridge.vault import Subject

__all__ = ["keep", "withdraw"]


def keep(rooms: Rooms, data: bytes, document: Document, named: str | None, *, by: str) -> str:
    """Keep one document; returns its id. `named` is ISSUER|ID where it names no patient.

    A newer version of a document that is kept (the same Consent.id) takes its place, which is
    consent.amended. Raises Refused for an older one.
    """
    issuer, patient_id = _whose(rooms, document, named)
    while True:
        subject = rooms.vault.subject(issuer, patient_id)
        # Not while the patient is being erased: no leaf about an alias follows its erasure.
        with rooms.files.turns.share(subject.ref):
            if not rooms.vault.erased(subject.ref):
                return _keep(rooms, subject, data, document, by)


def _keep(rooms: Rooms, subject: Subject, data: bytes, document: Document, by: str) -> str:
    identity = _identity(rooms, subject.ref, data)
    with reading(rooms.database) as connection:
        if catalog.consent(connection, identity) is not None:
            return identity
    with writing(rooms.database) as connection:
        hold(connection, CONSENT)
        former = _former(rooms, connection, subject.ref, data, document)
        leaf = rooms.record.say(
            "consent.granted" if former is None else "consent.amended",
            f"consent/{identity}/granted",
            {
                "document": rooms.record.text(rooms.vault.commit(subject.ref, data)),
                "status": document.status, "source": "fhir", "recorder": by,
                **said_openly(data, document),
            },
            subject=subject.alias,
            refs=[] if former is None else [("previous", former.leaf or "")],
        )  # fmt: skip
        catalog.add_consent(
            connection,
            ConsentRow(identity, subject.ref, document.status,
                       rooms.vault.seal(subject.ref, data), leaf, rooms.now(), None),
        )  # fmt: skip
        if former is not None:
            catalog.withdraw_consent(connection, former.id, rooms.now(), status="replaced")
    return identity


def _former(
    rooms: Rooms, connection: Any, subject_ref: str, data: bytes, document: Document
) -> ConsentRow | None:
    """Find the version in force that this document replaces; raises Refused if it is older."""
    name = json.loads(data).get("id")
    if not isinstance(name, str):
        return None
    for row in catalog.consents_of(connection, [subject_ref]):
        kept = rooms.vault.open(subject_ref, row.sealed)
        if json.loads(kept).get("id") != name:
            continue
        if surely_older(data, document, kept, parse(kept)):
            raise Refused("a newer version of this document is kept; see `radseal consent list`")
        return row
    return None


def _identity(rooms: Rooms, subject_ref: str, data: bytes) -> str:
    """Name a document: the same text again is the same one, unless that no longer holds."""
    seed = subject_ref.encode() + data
    with reading(rooms.database) as connection:
        while True:
            identity = hashlib.sha256(seed).hexdigest()[:32]
            known = catalog.consent(connection, identity)
            if known is None or known.withdrawn_at is None:
                return identity
            seed += b"/again"


def _whose(rooms: Rooms, document: Document, named: str | None) -> tuple[str, str]:
    patients = rooms.site.patients
    if named is not None:
        issuer, bar, patient_id = named.rpartition("|")
        if not patient_id:
            raise WrongUse("write ISSUER|ID on standard input")
        return (issuer if bar else patients.issuer), patient_id
    identifier = document.identifier()
    if identifier is None:
        raise Refused(
            "the document names its patient by reference only; say who it is with --patient -"
        )
    system, value = identifier
    if system != patients.issuer_system:
        raise Refused(
            "the document's patient.identifier.system is not [patients] issuer_system of this "
            "site; set it in site.toml, or say who it is with --patient -"
        )
    return patients.issuer, value


def withdraw(rooms: Rooms, identity: str) -> None:
    """Say that a document no longer holds; raises NotFound, or Refused if it was said before."""
    with reading(rooms.database) as connection:
        row = catalog.consent(connection, identity)
    if row is None:
        raise NotFound("no such document; see `radseal consent list`")
    if row.withdrawn_at is not None:
        raise Refused("this document was withdrawn already")
    with rooms.files.turns.share(row.subject_ref):
        data = rooms.vault.open(row.subject_ref, row.sealed)
        with writing(rooms.database) as connection:
            hold(connection, CONSENT)  # so that no use is appended after it that does not know it
            rooms.record.say(
                "consent.withdrawn", f"consent/{identity}/withdrawn",
                {"document": rooms.record.text(rooms.vault.commit(row.subject_ref, data))},
                subject=rooms.vault.alias(row.subject_ref),
                refs=rooms.record.versions(row.leaf or ""),
            )  # fmt: skip
            catalog.withdraw_consent(connection, identity, rooms.now())
