"""What people do to a study, from the command line or a page: each act once, with a reason.

Acts change rows first and wake the workflows in the same transaction; a service that
is not running finds them when it starts.
"""

from __future__ import annotations

import sqlalchemy

from bridge import deliver
from bridge.close import finish
from bridge.errors import NotFound, Refused
from bridge.rooms import Rooms
from bridge.store import arrivals, quarantine, story, work
from bridge.store.arrivals import StudyRow
from bridge.store.database import reading, writing
from bridge.study import DeliveryState, InstanceState, RouteState, StudyState

__all__ = ["accept", "cancel", "complete", "discard", "find", "retry"]

_OVER = {RouteState.FAILED, RouteState.DENIED}
_BUSY = {RouteState.WAITING, RouteState.SEALING, RouteState.RUNNING}


def find(rooms: Rooms, uid: str) -> StudyRow:
    """Find a study by StudyInstanceUID or our id; raises NotFound."""
    with reading(rooms.database) as connection:
        study_id = story.find(connection, uid)
        if study_id is None:
            raise NotFound("no such study was received here; see `radseal studies`")
        return arrivals.study(connection, study_id)


def complete(rooms: Rooms, uid: str) -> str:
    """Declare a study complete; raises Refused when it is already."""
    study = find(rooms, uid)
    with writing(rooms.database) as connection:
        current = arrivals.generation(connection, study.id, study.generation)
        if current is None or current.sealed_at is not None:
            raise Refused("this study is complete already; see `radseal why`")
        arrivals.declare(connection, study.id, study.generation)
        rooms.work.wake_in(connection, f"study/{study.id}/{study.generation}")
    return "declared complete; its routes start now"


def retry(rooms: Rooms, uid: str) -> str:
    """Try again what failed, was refused or denied; raises Refused when nothing was."""
    study = find(rooms, uid)
    at = rooms.now()
    stamp = f"{at:%Y%m%dT%H%M%S%f}"  # an id that was used starts nothing a second time
    stuck = {d.workflow_id for d in rooms.work.dead()}
    followed = [w for w in stuck if w.startswith(f"study/{study.id}/")]
    again = len(followed)
    with writing(rooms.database) as connection:
        dead = [
            d
            for d in work.deliveries_of(connection, study_id=study.id)
            if d.state in {DeliveryState.DEAD, DeliveryState.HELD}
        ]
        for delivery in dead:
            work.set_delivery(
                connection, delivery.sop_instance_uid, delivery.destination,
                DeliveryState.WAITING, "waits to be sent again", at,
            )  # fmt: skip
        for run, destination in sorted({(d.run_id, d.destination) for d in dead}):
            again += 1
            rooms.work.enqueue_in(
                connection, "deliver", "deliver", f"deliver/{run}/{destination}/{stamp}",
                run, destination, partition=destination, priority=deliver.priority(connection, run),
            )  # fmt: skip
        for route in work.routes_of(connection, study.id, study.generation):
            attempt = len(work.runs_of(connection, route.id)) + 1
            lost = any(w.startswith(f"route/{route.id}/") for w in stuck)
            if route.state not in _OVER and not (lost and route.state in _BUSY):
                continue
            again += 1
            work.set_route(connection, route.id, RouteState.WAITING, "tried again")
            rooms.work.enqueue_in(
                connection, "route", "route", f"route/{route.id}/{attempt}/{stamp}", route.id,
                attempt,
            )  # fmt: skip
        if not again:
            raise Refused("nothing of this study failed; see `radseal why`")
        state = StudyState.RECEIVING if followed else StudyState.WORKING
        arrivals.set_state(connection, study.id, state, "tried again", at)
        _tell(connection, rooms, study, "retried", f"{again} failed parts are tried again")
    for workflow_id in followed:
        rooms.work.retry(workflow_id)
    return f"{again} failed parts are tried again"


def cancel(rooms: Rooms, uid: str) -> str:
    """Stop what is still to be done for a study; what was delivered stays delivered."""
    study = find(rooms, uid)
    at = rooms.now()
    with writing(rooms.database) as connection:
        waiting = work.deliveries_of(connection, study_id=study.id, state=DeliveryState.WAITING)
        for delivery in waiting:
            work.set_delivery(
                connection, delivery.sop_instance_uid, delivery.destination,
                DeliveryState.CANCELLED, "cancelled by a person", at,
            )  # fmt: skip
            rooms.work.wake_in(connection, f"deliver/{delivery.run_id}/{delivery.destination}")
        routes = [r for r in work.routes_of(connection, study.id) if r.state in _BUSY]
        for route in routes:
            work.set_route(connection, route.id, RouteState.CANCELLED, "cancelled by a person")
        if not waiting and not routes:
            raise Refused("nothing of this study is left to cancel")
        arrivals.set_state(connection, study.id, StudyState.FAILED, "cancelled by a person", at)
        _tell(connection, rooms, study, "cancelled", "cancelled by a person")
    for route in routes:
        rooms.work.cancel(f"route/{route.id}/1")
    for generation in {route.generation for route in routes}:
        finish(rooms, study.id, generation)  # the cancelled workflows no longer can
    return f"{len(routes)} routes and {len(waiting)} deliveries cancelled"


def accept(rooms: Rooms, uid: str, by: str) -> str:
    """Take quarantined images into their study; consent is then asked for both patients."""
    study = find(rooms, uid)
    with writing(rooms.database) as connection:
        rows = quarantine.images(connection, study.id)
        if not rows:
            raise Refused("nothing of this study is in quarantine")
        others = {r.patient for r in rows if r.patient not in study.identities}
        known = [[p.issuer, p.patient_id] for p in (*study.others, *sorted(others, key=repr))]
        arrivals.change_study(connection, study.id, others=known)
        arrivals.set_instance_state(
            connection, [r.arrival for r in rows], InstanceState.HELD, f"accepted by {by}"
        )
        current = arrivals.generation(connection, study.id, study.generation)
        if current is None or current.sealed_at is not None:
            _reopen(connection, rooms, study)
        _tell(
            connection, rooms, study, "accepted",
            f"{len(rows)} quarantined images accepted by {by}; consent is asked for both patients",
        )  # fmt: skip
    return f"{len(rows)} images accepted"


def _reopen(connection: sqlalchemy.Connection, rooms: Rooms, study: StudyRow) -> None:
    number = study.generation + 1
    previous = arrivals.generation(connection, study.id, study.generation)
    subject = (
        previous.subject_ref
        if previous is not None
        else rooms.subject(study.patient, study.study_instance_uid)
    )
    arrivals.open_generation(connection, study.id, number, subject, rooms.clock.steady())
    rooms.work.enqueue_in(
        connection, "study", "study", f"study/{study.id}/{number}", study.id, number
    )


def discard(rooms: Rooms, uid: str, by: str) -> str:
    """Say that images in quarantine or conflict do not count; they are kept and not read."""
    study = find(rooms, uid)
    with writing(rooms.database) as connection:
        rows = quarantine.images(connection, study.id, conflicts=True)
        if not rows:
            raise Refused("nothing of this study is in quarantine")
        arrivals.set_instance_state(
            connection, [r.arrival for r in rows], InstanceState.DISCARDED, f"discarded by {by}"
        )
        _tell(connection, rooms, study, "discarded", f"{len(rows)} images discarded by {by}")
        if study.generation == 0:
            words = "no image of this study counts"
            arrivals.set_state(connection, study.id, StudyState.UNWANTED, words, rooms.now())
    finish(rooms, study.id, study.generation)  # says anew where the study stands
    return f"{len(rows)} images discarded"


def _tell(
    connection: sqlalchemy.Connection, rooms: Rooms, study: StudyRow, code: str, words: str
) -> None:
    at = rooms.now()
    arrivals.tell(
        connection, key=f"act/{study.id}/{code}/{at.isoformat()}", study_id=study.id,
        generation_number=max(1, study.generation), at=at, stage="receive", code=code, words=words,
    )  # fmt: skip
