"""Erasing a patient is an act of two people: one asks, another confirms within a day.

Here is who may; `erasing.py` does it. On the command line both are asserted: the leaf names
them and the account that confirmed, no signature proves them (design §4.13).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta

from bridge.access import is_person, is_same_person
from bridge.erasure import erasing
from bridge.erasure.erasing import Whose
from bridge.errors import NotFound, Refused, WrongUse
from bridge.rooms import Rooms
from bridge.store import erasure_requests
from bridge.store.database import reading, writing
from bridge.store.erasure import Extent, Left
from bridge.store.erasure_requests import RequestRow, RequestState
from bridge.study import Patient, is_uid_as_sent
from bridge.turns import Busy
from bridge.vault import Subject

__all__ = ["BASIS", "confirm", "go_on", "named", "request", "requests", "withdraw"]

BASIS = "Art. 17(1)(b)"
VALID_FOR = timedelta(hours=24)
PATIENCE = 120.0  # seconds that a confirmation waits for the step that is at the data
_CITATION = re.compile(r"(?=.*[0-9])[A-Za-z0-9 .,()§/-]{2,60}")


def named(rooms: Rooms, text: str, *, study: bool) -> Whose:
    """Read ISSUER|ID, or with `study` the StudyInstanceUID of a study that names no patient.

    Without a bar the issuer is the site's. Raises WrongUse.
    """
    issuer, bar, rest = text.strip().rpartition("|")
    if study:
        if bar or not is_uid_as_sent(rest):
            raise WrongUse("write one StudyInstanceUID on standard input")
        return Whose(Patient("", ""), rest)
    if not rest.strip():
        raise WrongUse("write ISSUER|ID on standard input")
    whose = issuer if bar else rooms.site.patients.issuer
    return Whose(Patient(whose.strip(), rest.strip()))


def request(
    rooms: Rooms, whose: Whose, *, by: str, account: str, basis: str, new_id: str
) -> tuple[RequestRow, Extent, list[Left]]:
    """Ask for an erasure; returns the request, what would go, and what had left before.

    Raises WrongUse for a name or a basis that may not stand in a leaf, NotFound where nothing is
    kept of this patient, Refused where somebody has asked already. Nothing changes but this row.
    """
    _check(whose, by, basis)
    subject = _subject(rooms, whose)
    found, gone = erasing.look(rooms, whose, "" if subject is None else subject.ref)
    if subject is None:
        if found.empty:
            raise NotFound(
                "nothing is kept of this patient; check issuer and id, and whether images still "
                "wait to be indexed (`radseal status`)"
            )
        subject = _subject(rooms, whose, make=True)
    if subject is None:
        raise KeyError(new_id)
    at, sealed = rooms.now(), rooms.vault.seal(subject.ref, whose.to_bytes())
    row = RequestRow(
        new_id, subject.ref, RequestState.REQUESTED, sealed,
        basis, by, account, at, at + VALID_FOR, None, None, None, {}, None, None,
    )  # fmt: skip
    with writing(rooms.database) as connection:
        erasure_requests.expire(connection, at)
        for other in erasure_requests.listed(connection):
            if other.subject_ref == subject.ref and other.state in {
                RequestState.REQUESTED, RequestState.CONFIRMED,
            }:  # fmt: skip
                raise Refused(
                    f"{other.requested_by} asked for this already: confirm or withdraw {other.id}"
                )
        erasure_requests.add(connection, row)
    return row, found, gone


def _check(whose: Whose, by: str, basis: str) -> None:
    """Refuse what would bring a patient's data into a leaf."""
    if not is_person(by):
        raise WrongUse("--by: write who does this with letters, digits, space . @ -, at most 60")
    if _CITATION.fullmatch(basis) is None:
        raise WrongUse(
            f'--basis: cite the law, such as "{BASIS}"; it stands in the ledger for ever'
        )
    for word in (whose.patient.patient_id, whose.study):
        if len(word) > 3 and word.casefold() in f"{by} {basis}".casefold():
            raise WrongUse("--by and --basis stand in the ledger for ever: no patient's id in them")


def _subject(rooms: Rooms, whose: Whose, *, make: bool = False) -> Subject | None:
    vault, patient = rooms.vault, whose.patient
    if patient.identified:
        if make:
            return vault.subject(patient.issuer, patient.patient_id)
        return vault.known(patient.issuer, patient.patient_id)
    return vault.unidentified(whose.study) if make else vault.known_unidentified(whose.study)


def confirm(rooms: Rooms, request_id: str, *, by: str, account: str) -> RequestRow:
    """Confirm a request as a second person and carry it out; said again, it is finished.

    Raises NotFound, WrongUse, or Refused: for the same person, for one that expired or was
    withdrawn, and while a step is still at the data (then it stays confirmed and is finished by
    the running service, or by the same words).
    """
    if not is_person(by):
        raise WrongUse("--by: write who does this with letters, digits, space . @ -, at most 60")
    at = rooms.now()
    with writing(rooms.database) as connection:
        erasure_requests.expire(connection, at)
    with writing(rooms.database) as connection:
        row = _found(erasure_requests.find(connection, request_id, hold=True))
        if is_same_person(by, row.requested_by):
            raise Refused("the person who asked cannot confirm; ask a second one")
        if row.state is RequestState.REQUESTED:
            erasure_requests.change(
                connection, row.id, state=RequestState.CONFIRMED, confirmed_by=by,
                confirmed_as=account, confirmed_at=at,
            )  # fmt: skip
        elif row.state is not RequestState.CONFIRMED:
            if row.state is RequestState.DONE:
                return row
            raise Refused(f"this request is {row.state}; make a new one")
    try:
        return erasing.carry_out(rooms, row.id, PATIENCE)
    except Busy:
        raise Refused(
            "it is confirmed, and a step is still at work on this patient's data; the running "
            "service finishes it, or type the same again"
        ) from None


def withdraw(rooms: Rooms, request_id: str) -> None:
    """Take a request back; raises NotFound, or Refused once it was confirmed or is over."""
    with writing(rooms.database) as connection:
        row = _found(erasure_requests.find(connection, request_id, hold=True))
        if row.state is not RequestState.REQUESTED:
            raise Refused(f"this request is {row.state}; it cannot be withdrawn")
        erasure_requests.change(
            connection, row.id, state=RequestState.WITHDRAWN, sealed=b"", done_at=rooms.now()
        )


def requests(rooms: Rooms) -> Sequence[RequestRow]:
    """List all requests, newest first, without naming patients."""
    with writing(rooms.database) as connection:
        erasure_requests.expire(connection, rooms.now())
        return erasure_requests.listed(connection)


def go_on(rooms: Rooms, seconds: float) -> int:
    """Finish what was confirmed and is not over (a crash came between); returns how many.

    Raises Busy when a step is still at the data after `seconds`.
    """
    with reading(rooms.database) as connection:
        left = erasure_requests.listed(connection, RequestState.CONFIRMED)
    for row in left:
        erasing.carry_out(rooms, row.id, seconds)
    return len(left)


def _found(row: RequestRow | None) -> RequestRow:
    if row is None:
        raise NotFound("no such request; see `radseal erase --list`")
    return row
