"""Rows of a shadow trial: what became of each input that a model was given, without a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from bridge.store.tables import instances, routes, runs, studies

__all__ = ["Outcome", "outcomes"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One route of a model and its last run; `attributes` are of one image that it reads."""

    study_id: str
    generation: int
    roles: Mapping[str, str]
    state: str
    opened_at: datetime
    calling_ae: str
    code: str
    finished_at: datetime | None
    seconds: float | None
    findings: Mapping[str, Any] | None
    attributes: Mapping[str, Any]


def outcomes(
    connection: Connection, model_digest: str, since: datetime, until: datetime
) -> Iterator[Outcome]:
    """Give what became of the routes that were opened in [since, until), oldest first."""
    last = (
        select(runs.c.route_id, func.max(runs.c.attempt).label("attempt"))
        .group_by(runs.c.route_id)
        .subquery()
    )
    rows = connection.execute(
        select(routes, studies.c.calling_ae, runs.c.code, runs.c.finished_at, runs.c.seconds,
               runs.c.findings)
        .join(studies, studies.c.id == routes.c.study_id)
        .outerjoin(last, last.c.route_id == routes.c.id)
        .outerjoin(runs, (runs.c.route_id == routes.c.id) & (runs.c.attempt == last.c.attempt))
        .where(routes.c.model_digest == model_digest, routes.c.opened_at >= since,
               routes.c.opened_at < until)
        .order_by(routes.c.opened_at, routes.c.id)
    ).all()  # fmt: skip
    for row in rows:
        yield _outcome(row, _attributes(connection, row.arrivals))


def _attributes(connection: Connection, arrivals: Mapping[str, list[str]]) -> Mapping[str, Any]:
    first = next((files[0] for files in arrivals.values() if files), "")
    found: Mapping[str, Any] | None = connection.scalar(
        select(instances.c.attributes).where(instances.c.arrival == first)
    )
    return found or {}


def _outcome(row: Row[Any], attributes: Mapping[str, Any]) -> Outcome:
    return Outcome(
        row.study_id, row.generation, row.roles, row.state, row.opened_at, row.calling_ae,
        row.code or "", row.finished_at, row.seconds, row.findings, attributes,
    )  # fmt: skip
