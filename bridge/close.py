"""Closing a generation of which nothing is left to do: where the study stands, study.closed.

Whoever finishes something last closes it. The decision is read and written under the
study's lock in one transaction, so that two who finish together cannot overwrite each
other with what they saw before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from bridge import assemble
from bridge.rooms import Rooms
from bridge.store import arrivals, quarantine, work
from bridge.store.database import reading, writing
from bridge.store.work import RouteRow
from bridge.study import DeliveryState, RouteState, StudyState

__all__ = ["finish"]

_BUSY = {RouteState.WAITING, RouteState.SEALING, RouteState.RUNNING}


@dataclass(frozen=True, slots=True)
class _Closing:
    state: StudyState
    words: str
    counts: Mapping[str, int]
    apart: Mapping[str, int]  # reason code -> images in quarantine or in conflict
    routes: Sequence[RouteRow]


def finish(rooms: Rooms, study_id: str, generation: int) -> None:
    """Close the generation if nothing of it is left to do; safe to repeat at any time."""
    with writing(rooms.database) as connection:
        closing = _decide(connection, rooms, study_id, generation)
    if closing is None:
        return
    with reading(rooms.database) as connection:
        current = arrivals.generation(connection, study_id, generation)
        study = arrivals.study(connection, study_id)
        received = arrivals.leaf_of(connection, f"received/{study_id}/{generation}")
    if current is None:
        raise KeyError(study_id)
    chain = rooms.record.chain(current.subject_ref, study.study_instance_uid)
    for code, number in closing.apart.items():
        # Without a reference to study.received: the images are apart, the study is not over by it.
        rooms.record.say(
            "study.quarantined", f"quarantined/{study_id}/{generation}/{code}",
            {"reason": code, "instances": number}, chain=chain,
        )  # fmt: skip
    leaf = rooms.record.say(
        "study.closed",
        f"closed/{study_id}/{generation}",
        {
            "outcome": closing.state.value,
            "generation": generation,
            "counts": dict(closing.counts),
        },
        chain=chain,
        refs=[("study.received", received)],
    )
    with writing(rooms.database) as connection:
        arrivals.close_generation(connection, study_id, generation, rooms.now())
        arrivals.tell(
            connection, key=f"closed/{study_id}/{generation}", study_id=study_id,
            generation_number=generation, at=rooms.now(), stage="record", code="study.closed",
            words=closing.words, leaf=leaf,
        )  # fmt: skip
    for route in closing.routes:
        rooms.files.drop_run_folder(route.id)


def _decide(
    connection: Connection, rooms: Rooms, study_id: str, generation: int
) -> _Closing | None:
    """Decide under the study's lock whether the generation is over; None while it is not."""
    arrivals.lock_study(connection, study_id)
    apart: dict[str, int] = {}
    for row in quarantine.counts(connection, study_id):
        code = assemble.apart_code(row.reason)
        apart[code] = apart.get(code, 0) + row.number
    quarantined = sum(apart.values())
    newest = arrivals.study(connection, study_id).generation
    _show(connection, rooms, study_id, newest, quarantined)
    routes = _settled(connection, study_id, generation)
    sent = [
        d.state for d in work.deliveries_of(connection, study_id=study_id, generation=generation)
    ]
    if routes is None or DeliveryState.WAITING in sent:
        return None
    state, words = _outcome(routes, sent)
    counts = {
        "routes": len(routes),
        "delivered": sent.count(DeliveryState.STORED),
        "dead": sent.count(DeliveryState.DEAD),
        "held": sent.count(DeliveryState.HELD),
        "quarantined": quarantined,
    }
    return _Closing(state, _with_quarantine(words, quarantined), counts, apart, routes)


def _show(
    connection: Connection, rooms: Rooms, study_id: str, newest: int, quarantined: int
) -> None:
    """Say where the study stands: the newest generation's routes, whoever's deliveries."""
    # A study stands where its results stand; a shadow that is slow or fails is none of them.
    routes = _settled(connection, study_id, newest, live=True)
    if routes is None:
        return
    sent = [d.state for d in work.deliveries_of(connection, study_id=study_id)]
    if DeliveryState.WAITING in sent:
        state, words = StudyState.WORKING, "results wait to be delivered"
    else:
        state, words = _outcome(routes, sent)
        if quarantined:
            state, words = StudyState.ATTENTION, _with_quarantine(words, quarantined)
    arrivals.set_state(connection, study_id, state, words, rooms.now())


def _settled(
    connection: Connection, study_id: str, generation: int, *, live: bool = False
) -> list[RouteRow] | None:
    """Give a generation's routes; None while more may open or one is at work.

    `live`: a shadow at work does not count, unless there are shadows only.
    """
    current = arrivals.generation(connection, study_id, generation)
    routes = work.routes_of(connection, study_id, generation)
    awaited = [r for r in routes if not r.shadow] if live else []
    busy = any(r.state in _BUSY for r in awaited or routes)
    if current is None or current.sealed_at is None or busy:
        return None
    return routes


def _with_quarantine(words: str, quarantined: int) -> str:
    return f"{words}; {quarantined} images in quarantine" if quarantined else words


def _outcome(opened: Sequence[RouteRow], sent: Sequence[DeliveryState]) -> tuple[StudyState, str]:
    routes = [r for r in opened if not r.shadow]
    states = [r.state for r in routes]
    if DeliveryState.DEAD in sent:
        return StudyState.ATTENTION, "a destination refused a result; see the study, then retry"
    if opened and not routes:
        return StudyState.UNWANTED, "only a shadow model reads this study: not delivered"
    if not routes:
        return StudyState.UNWANTED, "no active model wants this study"
    if RouteState.FAILED in states:
        reason = next(r.reason for r in routes if r.state is RouteState.FAILED)
        return StudyState.FAILED, reason
    if RouteState.CANCELLED in states:
        return StudyState.FAILED, "cancelled by a person"
    if DeliveryState.STORED in sent:
        return StudyState.DELIVERED, "results stored at their destinations"
    if sent and all(one is DeliveryState.CANCELLED for one in sent):
        return StudyState.FAILED, "cancelled by a person"
    if DeliveryState.HELD in sent or all(s is RouteState.DENIED for s in states):
        return StudyState.DENIED, next((r.reason for r in routes if r.reason), "consent denies it")
    if RouteState.CARRIED in states:
        return StudyState.DELIVERED, "the result of an earlier generation stands"
    return StudyState.DELIVERED, "read; no destination wants a result"
