"""The copy of a result that travels: its bytes with the receipt inside, made once (design §4b).

composed bytes fsynced → result.composed → a checkpoint covers it and all it stands on →
**this copy, fsynced, renamed** → delivery.started → sent. Every destination and every retry
gets these same bytes; a later checkpoint changes nothing in them.
"""

from __future__ import annotations

from pathlib import Path

from bridge.report import receipt
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.database import reading
from bridge.store.work import ArtifactRow

__all__ = ["stamp"]


def stamp(rooms: Rooms, artifact: ArtifactRow) -> Path:
    """Give the copy with the receipt; makes it where it is not there yet.

    A crash before it has its name leaves nothing, one after it leaves what stands. Raises
    NotCovered while no published checkpoint covers the leaf and all it stands on.
    """
    uid = artifact.sop_instance_uid
    there = rooms.files.stamped(artifact.study_id, uid)
    if there.exists():
        return there
    with reading(rooms.database) as connection:
        study, number = work.place(connection, artifact.run_id)
        generation = arrivals.generation(connection, study, number)
        study_uid = arrivals.study(connection, study).study_instance_uid
        leaf = arrivals.leaf_of(connection, f"composed/{artifact.run_id}/{artifact.kind}")
    if generation is None:
        raise KeyError(artifact.run_id)
    key = rooms.record.commitment(rooms.record.chain(generation.subject_ref, study_uid), uid)
    proofs = rooms.record.proofs(rooms.record.foundations(leaf)[: receipt.MOST_PROOFS])
    composed = rooms.files.artifact(artifact.study_id, uid).read_bytes()
    data = receipt.insert(composed, key, proofs)
    return rooms.files.keep_stamped(artifact.study_id, uid, data)
