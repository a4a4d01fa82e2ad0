"""A destination that holds a result gets a newer one of the same model: the older is superseded.

Said for each destination when the newer one was stored there, before its row says so: a crash
in between sends it again and says it then (design §4a).
"""

from __future__ import annotations

from bridge.infer import chain_of
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.database import reading, writing
from bridge.store.work import ArtifactRow, RouteRow
from bridge.study import ArtifactKind, DeliveryState
from bridge.vault import SubjectErased

__all__ = ["say_superseded"]

_REPORTS = (ArtifactKind.SR, ArtifactKind.SR_COMPREHENSIVE, ArtifactKind.SR_ENHANCED)


def say_superseded(rooms: Rooms, route: RouteRow, newer: ArtifactRow, destination: str) -> int:
    """Append result.superseded for what this destination holds of earlier; returns how many.

    An older report counts in whichever SR class it was sent. Safe to repeat.
    """
    said = 0
    for older, of in _older(rooms, route, newer, destination):
        delivered = rooms.record.find(f"delivered/{older.run_id}/{older.kind}/{destination}")
        if delivered is None:
            continue
        try:
            chain, _, _ = chain_of(rooms, of)
        except SubjectErased:  # of a former identity whose key is gone
            continue
        key = f"superseded/{older.run_id}/{older.kind}/{destination}"
        leaf = rooms.record.say(
            "result.superseded", key,
            {
                "destination": destination, "kind": older.kind.value,
                "reason": "newer-run" if of.id == route.id else "newer-generation",
            },
            chain=chain, refs=[("result.delivered", delivered)],
        )  # fmt: skip
        with writing(rooms.database) as connection:
            arrivals.tell(
                connection, key=key, study_id=route.study_id, generation_number=route.generation,
                at=rooms.now(), stage="deliver", code="result.superseded",
                words=f"{older.kind} at {destination}, revision {older.revision}: a newer one "
                "took its place", model_id=route.model_id, leaf=leaf,
            )  # fmt: skip
        said += 1
    return said


def _older(
    rooms: Rooms, route: RouteRow, newer: ArtifactRow, destination: str
) -> list[tuple[ArtifactRow, RouteRow]]:
    """Find the results of earlier runs that are stored there, each with its route."""
    kinds = _REPORTS if newer.kind in _REPORTS else (newer.kind,)
    found = []
    with reading(rooms.database) as connection:
        started = work.run_of(connection, newer.run_id).started_at
        for kind in kinds:
            for older in work.earlier_artifacts(
                connection, route.study_id, route.model_id, kind, started
            ):
                sent = work.deliveries_of(
                    connection, run_id=older.run_id, destination=destination,
                    state=DeliveryState.STORED,
                )  # fmt: skip
                if older.sop_instance_uid in {one.sop_instance_uid for one in sent}:
                    run = work.run_of(connection, older.run_id)
                    found.append((older, work.route(connection, run.route_id)))
    return found
