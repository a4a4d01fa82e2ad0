"""Rows of the work: routes, runs, artifacts, deliveries, consent decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, or_, select, update

from bridge.store.database import insert_once
from bridge.store.tables import artifacts, deliveries, routes, runs, unwanted
from bridge.study import ArtifactKind, DeliveryState, Evidence, RouteState

__all__ = [
    "ArtifactRow",
    "DeliveryRow",
    "RouteRow",
    "add_artifact",
    "add_delivery",
    "add_route",
    "artifact",
    "artifact_row",
    "artifacts_of_run",
    "artifacts_of_study",
    "deliveries_of",
    "earlier_artifacts",
    "find_run",
    "finish_run",
    "note_unwanted",
    "place",
    "route",
    "routes_of",
    "run_of",
    "runs_of",
    "set_delivery",
    "set_route",
    "start_run",
    "twin",
    "undelivered_of_model",
]


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route's row: model x series that it wants."""

    id: str
    study_id: str
    generation: int
    model_digest: str
    model_id: str
    model_version: str
    state: RouteState
    reason: str
    roles: Mapping[str, str]
    arrivals: Mapping[str, Sequence[str]]
    evidence: Evidence
    warnings: Sequence[str]
    input_digest: str | None
    mode: str

    @property
    def shadow(self) -> bool:
        """Whether it only looks on: nothing of it is composed or delivered."""
        return self.mode == "shadow"


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """An artifact's row."""

    sop_instance_uid: str
    run_id: str
    study_id: str
    kind: ArtifactKind
    partial: bool
    sop_class_uid: str
    series_instance_uid: str
    revision: int
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery's row."""

    sop_instance_uid: str
    destination: str
    run_id: str
    state: DeliveryState
    attempts: int
    words: str


def _route(row: Row[Any]) -> RouteRow:
    return RouteRow(
        row.id, row.study_id, row.generation, row.model_digest, row.model_id, row.model_version,
        RouteState(row.state), row.reason, row.roles, row.arrivals, Evidence(**row.evidence),
        row.warnings, row.input_digest, row.mode,
    )  # fmt: skip


def add_route(
    connection: Connection,
    *,
    route_id: str,
    study_id: str,
    generation: int,
    model: tuple[str, str, str],
    roles: Mapping[str, str],
    arrivals: Mapping[str, Sequence[str]],
    evidence: Mapping[str, Any],
    warnings: Sequence[str],
    at: datetime,
    mode: str = "active",
) -> bool:
    """Open a route; `model` is (digest, id, version). False if it was opened before."""
    return insert_once(connection, routes, {
        "id": route_id, "study_id": study_id, "generation": generation,
        "model_digest": model[0], "model_id": model[1], "model_version": model[2],
        "state": RouteState.WAITING, "reason": "", "roles": dict(roles),
        "arrivals": {k: list(v) for k, v in arrivals.items()}, "evidence": dict(evidence),
        "warnings": list(warnings), "input_digest": None, "opened_at": at,
        "mode": mode,
    })  # fmt: skip


def route(connection: Connection, route_id: str) -> RouteRow:
    """Give the route with this id; it must exist."""
    return _route(connection.execute(select(routes).where(routes.c.id == route_id)).one())


def routes_of(
    connection: Connection, study_id: str, generation: int | None = None
) -> list[RouteRow]:
    """List a study's routes, of one generation or all."""
    query = select(routes).where(routes.c.study_id == study_id).order_by(routes.c.opened_at)
    if generation is not None:
        query = query.where(routes.c.generation == generation)
    return [_route(row) for row in connection.execute(query)]


def set_route(
    connection: Connection, route_id: str, state: RouteState, reason: str = "", **values: Any
) -> None:
    """Say where a route stands; what was cancelled stays so."""
    connection.execute(
        update(routes)
        .where(routes.c.id == route_id, routes.c.state != RouteState.CANCELLED)
        .values(state=state, reason=reason, **values)
    )


def twin(connection: Connection, row: RouteRow, input_digest: str) -> RouteRow | None:
    """Find an earlier route of this study on which this model read this very input."""
    found = connection.execute(
        select(routes)
        .where(
            routes.c.study_id == row.study_id,
            routes.c.model_digest == row.model_digest,
            routes.c.input_digest == input_digest,
            routes.c.mode == row.mode,  # what a shadow found stands for nothing that is delivered
            routes.c.id != row.id,
            routes.c.generation < row.generation,
            routes.c.state.not_in(
                [RouteState.CARRIED, RouteState.CANCELLED, RouteState.DENIED, RouteState.FAILED]
            ),
        )
        .order_by(routes.c.generation.desc())
    ).first()
    return None if found is None else _route(found)


def note_unwanted(
    connection: Connection,
    study_id: str,
    generation: int,
    model: tuple[str, str, str],
    reason: str,
) -> None:
    """Keep why a model does not want this study."""
    insert_once(connection, unwanted, {
        "study_id": study_id, "generation": generation, "model_digest": model[0],
        "model_id": model[1], "model_version": model[2], "reason": reason,
    })  # fmt: skip


def start_run(
    connection: Connection, run_id: str, route_id: str, attempt: int, at: datetime
) -> None:
    """Write a run's row when it starts; repeating changes nothing."""
    insert_once(connection, runs, {
        "id": run_id, "route_id": route_id, "attempt": attempt, "state": "running", "code": "",
        "reason": "", "started_at": at, "finished_at": None, "seconds": None, "peak_mb": None,
        "findings": None, "runtime": None,
    })  # fmt: skip


def finish_run(
    connection: Connection, run_id: str, state: str, at: datetime, **values: Any
) -> None:
    """Say how a run ended: completed or failed."""
    connection.execute(
        update(runs).where(runs.c.id == run_id).values(state=state, finished_at=at, **values)
    )


def run_of(connection: Connection, run_id: str) -> Row[Any]:
    """Give a run's row; it must exist."""
    return connection.execute(select(runs).where(runs.c.id == run_id)).one()


def find_run(connection: Connection, run_id: str) -> Row[Any] | None:
    """Find a run's row."""
    return connection.execute(select(runs).where(runs.c.id == run_id)).first()


def runs_of(connection: Connection, route_id: str) -> list[Row[Any]]:
    """List the runs of a route, oldest first."""
    return list(
        connection.execute(select(runs).where(runs.c.route_id == route_id).order_by(runs.c.attempt))
    )


def add_artifact(connection: Connection, row: ArtifactRow, at: datetime) -> bool:
    """Write an artifact's row; False if it was composed before."""
    return insert_once(connection, artifacts, {
        "sop_instance_uid": row.sop_instance_uid, "run_id": row.run_id,
        "study_id": row.study_id, "kind": row.kind, "partial": row.partial,
        "sop_class_uid": row.sop_class_uid, "series_instance_uid": row.series_instance_uid,
        "revision": row.revision, "file": row.file, "size": row.size, "composed_at": at,
    })  # fmt: skip


def artifact_row(row: Row[Any]) -> ArtifactRow:
    """Give an artifact's row its types."""
    return ArtifactRow(
        row.sop_instance_uid, row.run_id, row.study_id, ArtifactKind(row.kind), row.partial,
        row.sop_class_uid, row.series_instance_uid, row.revision, row.file, row.size,
    )  # fmt: skip


def artifact(connection: Connection, sop_instance_uid: str) -> ArtifactRow | None:
    """Find an artifact."""
    row = connection.execute(
        select(artifacts).where(artifacts.c.sop_instance_uid == sop_instance_uid)
    ).first()
    return None if row is None else artifact_row(row)


def earlier_artifacts(
    connection: Connection, study_id: str, model_id: str, kind: ArtifactKind, before: datetime
) -> list[ArtifactRow]:
    """List what this model said of this study before, by runs that started earlier."""
    rows = connection.execute(
        select(artifacts)
        .join(runs, runs.c.id == artifacts.c.run_id)
        .join(routes, routes.c.id == runs.c.route_id)
        .where(
            artifacts.c.study_id == study_id, artifacts.c.kind == kind,
            routes.c.model_id == model_id, runs.c.started_at < before,
        )
        .order_by(runs.c.started_at)
    )  # fmt: skip
    return [artifact_row(row) for row in rows]


def place(connection: Connection, identity: str) -> tuple[str, int]:
    """Give (study id, generation) of a route or a run; it must exist."""
    row = connection.execute(
        select(routes.c.study_id, routes.c.generation)
        .select_from(routes.outerjoin(runs, runs.c.route_id == routes.c.id))
        .where(or_(routes.c.id == identity, runs.c.id == identity))
    ).first()
    if row is None:
        raise KeyError(identity)
    return row.study_id, row.generation


def undelivered_of_model(connection: Connection, study_id: str, model_id: str) -> list[DeliveryRow]:
    """List the results of a model for a study that wait, were refused or are held back."""
    rows = connection.execute(
        select(deliveries)
        .join(runs, runs.c.id == deliveries.c.run_id)
        .join(routes, routes.c.id == runs.c.route_id)
        .where(
            routes.c.study_id == study_id, routes.c.model_id == model_id,
            deliveries.c.state.in_(
                [DeliveryState.WAITING, DeliveryState.DEAD, DeliveryState.HELD]
            ),
        )
    )  # fmt: skip
    return [_delivery(row) for row in rows]


def _delivery(row: Row[Any]) -> DeliveryRow:
    return DeliveryRow(
        row.sop_instance_uid, row.destination, row.run_id, DeliveryState(row.state), row.attempts,
        row.words,
    )  # fmt: skip


def artifacts_of_run(connection: Connection, run_id: str) -> list[ArtifactRow]:
    """List a run's artifacts: SEG first, then SR, then the summary."""
    order = [ArtifactKind.SEG, ArtifactKind.SR]
    rows = connection.execute(select(artifacts).where(artifacts.c.run_id == run_id))
    return sorted(
        (artifact_row(row) for row in rows),
        key=lambda a: order.index(a.kind) if a.kind in order else len(order),
    )


def artifacts_of_study(connection: Connection, study_id: str) -> list[ArtifactRow]:
    """List a study's artifacts, oldest first."""
    rows = connection.execute(
        select(artifacts).where(artifacts.c.study_id == study_id).order_by(artifacts.c.composed_at)
    )
    return [artifact_row(row) for row in rows]


def add_delivery(
    connection: Connection, artifact_row: ArtifactRow, destination: str, at: datetime
) -> bool:
    """Open the delivery of an artifact to a destination."""
    return insert_once(connection, deliveries, {
        "sop_instance_uid": artifact_row.sop_instance_uid, "destination": destination,
        "run_id": artifact_row.run_id, "state": DeliveryState.WAITING, "attempts": 0,
        "words": "waits to be sent", "changed_at": at,
    })  # fmt: skip


def deliveries_of(
    connection: Connection,
    *,
    run_id: str | None = None,
    destination: str | None = None,
    study_id: str | None = None,
    generation: int | None = None,
    state: DeliveryState | None = None,
) -> list[DeliveryRow]:
    """List deliveries by run, destination, study, generation or state."""
    query = select(deliveries).join(artifacts)
    if generation is not None:
        query = query.join(runs, runs.c.id == deliveries.c.run_id).join(
            routes, routes.c.id == runs.c.route_id
        )
        query = query.where(routes.c.generation == generation)
    if run_id is not None:
        query = query.where(deliveries.c.run_id == run_id)
    if destination is not None:
        query = query.where(deliveries.c.destination == destination)
    if study_id is not None:
        query = query.where(artifacts.c.study_id == study_id)
    if state is not None:
        query = query.where(deliveries.c.state == state)
    return [_delivery(row) for row in connection.execute(query)]


def set_delivery(
    connection: Connection,
    sop_instance_uid: str,
    destination: str,
    state: DeliveryState,
    words: str,
    at: datetime,
    *,
    tried: bool = False,
) -> int:
    """Say where a delivery stands; `tried` counts one more attempt. Returns the attempts."""
    this = and_(
        deliveries.c.sop_instance_uid == sop_instance_uid,
        deliveries.c.destination == destination,
    )
    connection.execute(
        update(deliveries)
        .where(this)
        .values(
            state=state, words=words, changed_at=at,
            attempts=deliveries.c.attempts + (1 if tried else 0),
        )
    )  # fmt: skip
    row = connection.execute(select(deliveries.c.attempts).where(this)).one()
    return int(row.attempts)
