"""Rows of images that wait for a person's word: unreadable, quarantined, in conflict."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from bridge.store.arrivals import HeldRow, held_row
from bridge.store.database import insert_once
from bridge.store.tables import instances, studies
from bridge.study import InstanceState

__all__ = ["add_unreadable", "counts", "images", "set_apart"]


def add_unreadable(
    connection: Connection, arrival: str, reason: str, size: int, at: datetime
) -> bool:
    """Keep that a file could not be read as an object of any study."""
    return insert_once(connection, instances, {
        "arrival": arrival, "study_id": None, "sop_instance_uid": "", "sop_class_uid": "",
        "series_instance_uid": "", "transfer_syntax_uid": "", "issuer": "", "patient_id": "",
        "dataset_sha256": "", "size": size, "calling_ae": "", "received_at": at,
        "generation": 0, "state": InstanceState.QUARANTINED, "reason": reason,
        "attributes": {},
    })  # fmt: skip


def counts(connection: Connection, study_id: str | None = None) -> list[Row[Any]]:
    """List what is quarantined or in conflict: per study and reason, how many."""
    query = (
        select(
            studies.c.id, studies.c.study_instance_uid, instances.c.reason, instances.c.state,
            func.count().label("number"), func.max(instances.c.received_at).label("last"),
        )
        .select_from(instances.outerjoin(studies, studies.c.id == instances.c.study_id))
        .where(instances.c.state.in_([InstanceState.QUARANTINED, InstanceState.CONFLICT]))
        .group_by(studies.c.id, studies.c.study_instance_uid, instances.c.reason,
                  instances.c.state)
    )  # fmt: skip
    if study_id is not None:
        query = query.where(studies.c.id == study_id)
    return list(connection.execute(query))


def images(connection: Connection, study_id: str, *, conflicts: bool = False) -> list[HeldRow]:
    """List a study's quarantined instances; `conflicts` adds those that contradict a held one."""
    states = [InstanceState.QUARANTINED, *([InstanceState.CONFLICT] if conflicts else [])]
    rows = connection.execute(
        select(instances).where(instances.c.study_id == study_id, instances.c.state.in_(states))
    )
    return [held_row(row) for row in rows]


def set_apart(connection: Connection, study_id: str) -> dict[str, int]:
    """Count per series the images in quarantine or discarded, of which no other copy is held."""
    mine = instances.c.study_id == study_id
    uid, series = instances.c.sop_instance_uid, instances.c.series_instance_uid
    held_uids = select(uid).where(mine, instances.c.state == InstanceState.HELD)
    apart = instances.c.state.in_([InstanceState.QUARANTINED, InstanceState.DISCARDED])
    rows = connection.execute(
        select(series, func.count(uid.distinct()).label("number"))
        .where(mine, apart, uid.not_in(held_uids))
        .group_by(series)
    )
    return {row.series_instance_uid: row.number for row in rows}
