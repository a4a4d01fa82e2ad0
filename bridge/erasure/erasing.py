"""An erasure that two people decided on, carried out; each step may be repeated to the same end.

    1 stop     routes and deliveries are cancelled, and their workflows; then the studies are held
               alone: no step is at work on them, nothing of the inbox is indexed
    2 close    what the log shows as open is closed there while its key still exists
    3 files    received, composed, stamped, half-done, and those in the inbox
    4 rows     all of them in one transaction, with the engine's
    5 scrub    the database files without what was deleted, their logs emptied
    6 key      K_p destroyed, a suppression stays behind
    7 say      `subject.erased`, then the request is over

**The data goes before the key, the key before the word.** The rows are the index of the files, so
they go after them; the key opens the request's own line, so it goes last of all that is kept. A
crash anywhere before 7 leaves a request that is *confirmed*: the running service, or the same
words typed again, go on from 1. So the log never says "erased" of data that is there; it can be
late by one step in saying that a key is gone, and that step needs nothing but the alias.

What it cannot reach: results that left (`left` lists them), copies of the vault and the database
in backups and archives of PostgreSQL's write-ahead log until they expire, blocks of flash drives.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from bridge import ambient
from bridge.errors import BadInstance
from bridge.header import identity_of
from bridge.infer import run_id
from bridge.permit import CONSENT
from bridge.receive import BAD_STUDY
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.store import arrivals, erasure, erasure_requests, work
from bridge.store.database import hold, reading, vacuum, writing
from bridge.store.erasure import Extent, Left
from bridge.store.erasure_requests import RequestRow, RequestState
from bridge.study import DeliveryState, Patient, RouteState, StudyState
from bridge.vault import SubjectErased
from ledger import leaf

__all__ = ["Whose", "carry_out", "look"]

_ALL = 1_000_000  # files of the inbox
_TELLING = 4  # characters of an id, below which finding it in rubbish says nothing
_BUSY = {RouteState.WAITING, RouteState.SEALING, RouteState.RUNNING}
_GONE = "images of an erased patient are gone, and what was read from them; the rest stands"


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose data: a patient's, or that of one study which names no patient."""

    patient: Patient = field(repr=False)
    study: str = field(default="", repr=False)

    def to_bytes(self) -> bytes:
        """Write it, to be sealed under the patient's key."""
        said = [self.patient.issuer, self.patient.patient_id, self.study]
        return json.dumps(said).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Whose:
        """Read what `to_bytes` wrote."""
        issuer, patient_id, study = json.loads(data)
        return cls(Patient(issuer, patient_id), study)


def look(rooms: Rooms, whose: Whose, subject_ref: str) -> tuple[Extent, list[Left]]:
    """Say what the rows hold of a patient, and what of it left the house."""
    with reading(rooms.database) as connection:
        found = erasure.extent(connection, whose.patient, whose.study, subject_ref)
        sent = erasure.left(connection, found)
    return found, sent + (_disclosed(rooms, subject_ref) if subject_ref else [])


def _disclosed(rooms: Rooms, subject_ref: str) -> list[Left]:
    """List the audit bundles that were given away; the log tells of them, no row does."""
    lineage, alias = rooms.record.lineage, rooms.vault.alias(subject_ref)
    said: dict[str, Left] = {}
    for log in (lineage.log, *lineage.ended):
        for leaf_hash, _ in log.select(type="access.disclosed", subject=alias):
            told = leaf.parse(log.leaf(leaf_hash))
            one = Left(
                told["body"]["recipient"], "audit bundle", leaf.ref(leaf_hash), "", told["time"]
            )
            said.setdefault(told["idem"], one)
    return list(said.values())


def carry_out(rooms: Rooms, request_id: str, seconds: float) -> RequestRow:
    """Carry out a confirmed request, from wherever it stands; returns its row when it is over.

    Whoever finishes it gets the list of what left in full, once; the row keeps numbers.
    Raises Busy when a step is still at the data after `seconds`: it stays confirmed.
    """
    until = ambient.monotonic() + seconds
    with rooms.files.turns.erasing(until):
        with reading(rooms.database) as connection:
            row = erasure_requests.find(connection, request_id)
        if row is None:
            raise KeyError(request_id)
        if row.state is RequestState.CONFIRMED:
            if not rooms.vault.erased(row.subject_ref):
                _remove(rooms, row, until)
            return _say(rooms, row)
        return row


def _remove(rooms: Rooms, row: RequestRow, until: float) -> None:
    """Do steps 1 to 6."""
    whose = Whose.from_bytes(rooms.vault.open(row.subject_ref, row.sealed))
    turns = rooms.files.turns
    with ExitStack() as held:
        held.enter_context(turns.indexing(until))
        found, _ = look(rooms, whose, row.subject_ref)
        _stop(rooms, found)
        held.enter_context(turns.alone([*found.own, *found.shared, row.subject_ref], until))
        found, gone = look(rooms, whose, row.subject_ref)  # a step that ended may have added rows
        _close(rooms, found, row.subject_ref)
        unreadable = _unreadable(rooms, whose, found)
        cleared = _clear_inbox(rooms, whose, found) + len(unreadable)
        _unlink(rooms, found, unreadable)
        with writing(rooms.database) as connection:
            hold(connection, CONSENT)
            erasure.forget(connection, found, whose.patient, row.subject_ref, unreadable)
            for study_id in found.shared:
                _tell_shared(rooms, connection, study_id, row.id)
            current = erasure_requests.find(connection, row.id, hold=True) or row
            erasure_requests.change(
                connection, row.id, report=_merged(current.report, found, gone, cleared)
            )
        rooms.work.forget(_prefixes(found))
        erasure.scrub(rooms.database, rooms.work.tables())
        rooms.vault.destroy(row.subject_ref)
    rooms.work.forget(_prefixes(found))  # what a step wrote down that ended while we waited


def _say(rooms: Rooms, row: RequestRow) -> RequestRow:
    """Step 7: the key is gone; say so, and forget the last of it."""
    alias = rooms.vault.destroy(row.subject_ref)  # again: the vault's own log is empty now
    now, days = rooms.now(), rooms.site.vault.backup_days
    said = rooms.record.say(
        "subject.erased", f"erased/{row.id}",
        {
            "basis": row.basis, "authn": "asserted",
            "by": [row.requested_by, row.confirmed_by or ""],
            "expiry": None if days is None else leaf.stamp(now + timedelta(days=days)),
        },
        subject=alias, actor={"kind": "user", "id": row.confirmed_as or "unknown"},
    )  # fmt: skip
    with writing(rooms.database) as connection:
        current = erasure_requests.find(connection, row.id, hold=True) or row
        over = replace(current, state=RequestState.DONE, sealed=b"", done_at=now, leaf=said)
        erasure_requests.change(
            connection, row.id, state=over.state, sealed=over.sealed, done_at=now, leaf=said,
            report=_counted(current.report),
        )  # fmt: skip
    vacuum(rooms.database, ["erasures"], whole=False)
    return over


def _stop(rooms: Rooms, found: Extent) -> None:
    """Step 1: nothing new begins; what runs ends after its present step."""
    at = rooms.now()
    with writing(rooms.database) as connection:
        for route_id in found.routes:
            if work.route(connection, route_id).state in _BUSY:
                work.set_route(connection, route_id, RouteState.CANCELLED, "the data is erased")
        for run in found.runs:
            for one in work.deliveries_of(connection, run_id=run, state=DeliveryState.WAITING):
                work.set_delivery(
                    connection, one.sop_instance_uid, one.destination, DeliveryState.CANCELLED,
                    "the data is erased", at,
                )  # fmt: skip
    rooms.work.stop(_prefixes(found))


def _prefixes(found: Extent) -> list[str]:
    """Name the workflows of all that goes, as bridge.pipeline names them."""
    return [
        *(f"study/{one}/" for one in found.own),
        *(f"route/{one}/" for one in found.routes),
        *(f"deliver/{one}/" for one in found.runs),
    ]


def _close(rooms: Rooms, found: Extent, subject_ref: str) -> None:
    """Step 2: a run and a generation that the log shows as open end there, as erased."""
    record = rooms.record
    for route_id in found.routes:
        with reading(rooms.database) as connection:
            route = work.route(connection, route_id)
            uid = arrivals.study(connection, route.study_id).study_instance_uid
            generation = arrivals.generation(connection, route.study_id, route.generation)
            attempts = len(work.runs_of(connection, route_id))
        chain = None if generation is None else _chain(rooms, generation.subject_ref, uid)
        for run in (run_id(route_id, number) for number in range(1, attempts + 2)):
            started = record.find(f"started/{run}")
            if chain is not None and started is not None and not record.find(f"ended/{run}"):
                record.say(
                    "inference.failed", f"ended/{run}",
                    {"model": route.model_digest, "run": run, "reason": "erased"},
                    chain=chain, refs=[("inference.started", started)],
                )  # fmt: skip
    with reading(rooms.database) as connection:
        still_open = erasure.open_generations(connection, found, subject_ref)
    for one in still_open:
        chain = _chain(rooms, one.subject_ref, one.study_instance_uid)
        if chain is not None:
            record.say(
                "study.closed", f"closed/{one.study_id}/{one.generation}",
                {"outcome": "erased", "generation": one.generation, "counts": {}},
                chain=chain, refs=[("study.received", one.received)],
            )  # fmt: skip


def _chain(rooms: Rooms, subject_ref: str, study_instance_uid: str) -> Chain | None:
    """Give a chain; None where it was of a former identity that was erased before."""
    try:
        return rooms.record.chain(subject_ref, study_instance_uid)
    except SubjectErased:
        return None


def _unlink(rooms: Rooms, found: Extent, unreadable: Iterable[str]) -> None:
    """Step 3: every file; what is gone already is fine."""
    for study_id, uid in found.own.items():
        rooms.files.erase_study(uid, study_id)
    for study_id, arrival in found.arrivals:
        rooms.files.erase_arrival(found.shared[study_id], arrival)
    for one in found.artifacts:
        rooms.files.erase_artifact(one.study_id, one.sop_instance_uid)
    for route_id in found.routes:
        rooms.files.erase_run(route_id)
    for arrival in unreadable:
        rooms.files.erase_arrival(BAD_STUDY, arrival)


def _clear_inbox(rooms: Rooms, whose: Whose, found: Extent) -> int:
    """Unlink what of this patient was acknowledged and not indexed; returns how many."""
    cleared = 0
    for path in rooms.files.arrived(_ALL):
        try:
            patient, uid = identity_of(path, rooms.site.issuer_of)
        except BadInstance:
            if not _names(path, whose, found):
                continue
            patient, uid = whose.patient, BAD_STUDY
        is_his = patient == whose.patient if whose.patient.identified else uid == whose.study
        if is_his or uid in found.own.values() or uid == BAD_STUDY:
            rooms.files.erase_arrival(uid, path.stem)
            cleared += 1
    return cleared


def _unreadable(rooms: Rooms, whose: Whose, found: Extent) -> list[str]:
    """Which files that nobody can read as DICOM hold this patient's id or a UID of his."""
    with reading(rooms.database) as connection:
        candidates = erasure.unread(connection)
    return [
        one for one in candidates
        if _names(rooms.files.instance(BAD_STUDY, one), whose, found)
    ]  # fmt: skip


def _names(path: Path, whose: Whose, found: Extent) -> bool:
    """Whether the id or one of the UIDs stands in a file as a whole word."""
    words = [whose.study, whose.patient.patient_id, *found.own.values()]
    telling = [re.escape(w.encode("utf-8", "replace")) for w in words if len(w) >= _TELLING]
    if not telling or not path.exists() or not path.stat().st_size:
        return False
    whole = rb"(?<![0-9A-Za-z])(?:" + b"|".join(telling) + rb")(?![0-9A-Za-z])"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return re.search(whole, data) is not None


def _tell_shared(rooms: Rooms, connection: Any, study_id: str, request_id: str) -> None:
    study = arrivals.study(connection, study_id)
    arrivals.tell(
        connection, key=f"erased/{study_id}/{request_id}", study_id=study_id,
        generation_number=max(1, study.generation), at=rooms.now(), stage="receive",
        code="erased", words=_GONE,
    )  # fmt: skip
    current = arrivals.generation(connection, study_id, study.generation)
    comes = current is not None and current.sealed_at is None
    works = any(route.state in _BUSY for route in work.routes_of(connection, study_id))
    waits = work.deliveries_of(connection, study_id=study_id, state=DeliveryState.WAITING)
    if not (comes or works or waits):
        arrivals.set_state(connection, study_id, StudyState.ATTENTION, _GONE, rooms.now())


def _merged(
    report: Mapping[str, Any], found: Extent, gone: Iterable[Left], cleared: int
) -> dict[str, Any]:
    """Add what this pass found to what an earlier one, which a crash ended, has removed."""
    here = {
        "studies": len(found.own), "shared": len(found.shared), "images": found.images + cleared,
        "results": len(found.artifacts), "documents": found.consents,
    }  # fmt: skip
    known = {(one["destination"], one["sop_instance_uid"]): one for one in report.get("left", ())}
    known |= {(one.destination, one.sop_instance_uid): asdict(one) for one in gone}
    total = {name: report.get(name, 0) + number for name, number in here.items()}
    return {**total, "left": list(known.values())}


def _counted(report: Mapping[str, Any]) -> dict[str, Any]:
    """Keep of what left only how many objects of which kind went where: UIDs name studies."""
    counted: dict[tuple[str, str], int] = {}
    for one in report.get("left", ()):
        key = (one["destination"], one["kind"])
        counted[key] = counted.get(key, 0) + one.get("count", 1)
    told = [
        {"destination": where, "kind": kind, "count": number}
        for (where, kind), number in sorted(counted.items())
    ]
    return {**report, "left": told}
