"""Reading for people: the list of studies, and all that is known of one."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select

from bridge.store import arrivals, quarantine, work
from bridge.store.tables import (
    artifacts,
    deliveries,
    events,
    generations,
    instances,
    routes,
    runs,
    studies,
    unwanted,
)
from bridge.study import (
    DeliveryState,
    Evidence,
    InstanceState,
    SeriesLine,
    StoryArtifact,
    StoryDelivery,
    StoryLine,
    StoryRoute,
    StudyLine,
    StudyState,
    StudyStory,
)

_UNIT_SHOWN = {"[hnsf'U]": "HU", "mm3": "mm³", "1": ""}

__all__ = ["counts", "find", "list_runs", "list_studies", "story"]


def _line(row: Row[Any], held: int) -> StudyLine:
    return StudyLine(
        id=row.id, study_instance_uid=row.study_instance_uid, state=StudyState(row.state),
        state_words=row.state_words, patient_id=row.patient_id, patient_name=row.patient_name,
        accession_number=row.accession_number, study_date=row.study_date,
        modalities=row.modalities, source=row.calling_ae, instances=held,
        generation=row.generation, received_at=row.received_at, updated_at=row.updated_at,
    )  # fmt: skip


def list_studies(
    connection: Connection,
    *,
    state: StudyState | None = None,
    modality: str | None = None,
    search: str | None = None,
    uid: str | None = None,
    limit: int = 50,
    offset: int = 0,
) -> tuple[list[StudyLine], int]:
    """List studies, newest first, and how many match.

    `search` looks in patient id, patient name and accession number (a POST only, design
    §4.11); `uid` matches a StudyInstanceUID or our study id exactly.
    """
    query = select(studies)
    if state is not None:
        query = query.where(studies.c.state == state)
    if modality:
        query = query.where(studies.c.modalities.contains(modality, autoescape=True))
    if uid:
        query = query.where(or_(studies.c.study_instance_uid == uid, studies.c.id == uid))
    if search:
        query = query.where(
            or_(*(
                column.icontains(search, autoescape=True)
                for column in (studies.c.patient_id, studies.c.patient_name,
                               studies.c.accession_number)
            ))
        )  # fmt: skip
    total = connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()
    rows = list(
        connection.execute(
            query.order_by(studies.c.received_at.desc(), studies.c.id).limit(limit).offset(offset)
        )
    )
    held: dict[str, int] = dict(
        connection.execute(
            select(instances.c.study_id, func.count())
            .where(
                instances.c.study_id.in_([row.id for row in rows]),
                instances.c.state == InstanceState.HELD,
            )
            .group_by(instances.c.study_id)
        ).all()
    )
    return [_line(row, held.get(row.id, 0)) for row in rows], total


def counts(connection: Connection) -> dict[StudyState, int]:
    """Count the studies in each state."""
    rows = connection.execute(select(studies.c.state, func.count()).group_by(studies.c.state))
    return {StudyState(state): count for state, count in rows}


def find(connection: Connection, uid: str) -> str | None:
    """Give our study id for a StudyInstanceUID or an id of ours."""
    return connection.execute(
        select(studies.c.id).where(or_(studies.c.study_instance_uid == uid, studies.c.id == uid))
    ).scalar()


def story(connection: Connection, study_id: str) -> StudyStory:
    """Tell everything about a study; it must exist."""
    row = connection.execute(select(studies).where(studies.c.id == study_id)).one()
    held = arrivals.held(connection, study_id)
    generation = arrivals.generation(connection, study_id, row.generation)
    return StudyStory(
        line=_line(row, len(held)),
        series=tuple(_series(held, generation)),
        waiting="" if generation is None or generation.sealed_at else row.state_words,
        quarantined=tuple((q.reason, q.number) for q in quarantine.counts(connection, study_id)),
        routes=tuple(_routes(connection, study_id)),
        lines=tuple(
            StoryLine(e.at, e.generation, e.stage, e.code, e.words, e.model_id, e.leaf)
            for e in connection.execute(
                select(events).where(events.c.study_id == study_id).order_by(events.c.at)
            )
        ),
    )


def _series(
    held: list[arrivals.HeldRow], generation: arrivals.GenerationRow | None
) -> list[SeriesLine]:
    by_series: dict[str, list[arrivals.HeldRow]] = defaultdict(list)
    for instance in held:
        by_series[instance.series_instance_uid].append(instance)
    answers = (generation.counts.get("answers") or []) if generation is not None else []
    expected = answers[-1]["series"] if answers else {}
    return [
        SeriesLine(
            uid, str(group[0].attributes.get("Modality", "")),
            str(group[0].attributes.get("SeriesDescription", "")), len(group),
            expected.get(uid),
        )
        for uid, group in by_series.items()
    ]  # fmt: skip


def _routes(connection: Connection, study_id: str) -> list[StoryRoute]:
    made = _artifacts(connection, study_id)
    told = []
    for row in connection.execute(
        select(routes).where(routes.c.study_id == study_id).order_by(routes.c.opened_at)
    ):
        run = connection.execute(
            select(runs).where(runs.c.route_id == row.id).order_by(runs.c.attempt.desc())
        ).first()
        findings: dict[str, Any] = (run.findings if run is not None else None) or {}
        told.append(
            StoryRoute(
                id=row.id, generation=row.generation, model=row.model_id,
                version=row.model_version, model_digest=row.model_digest, state=row.state,
                reason=row.reason or (run.reason if run is not None else ""),
                evidence=Evidence(**row.evidence).words,
                statement=findings.get("statement", ""),
                measurements=tuple(_measurements(findings)),
                seconds=None if run is None else run.seconds,
                artifacts=tuple(made.get(run.id, ()) if run is not None else ()),
            )
        )  # fmt: skip
    told.extend(
        StoryRoute(
            id=None, generation=row.generation, model=row.model_id, version=row.model_version,
            model_digest=row.model_digest, state="not wanted", reason=row.reason, evidence="",
            statement="", measurements=(), seconds=None, artifacts=(),
        )
        for row in connection.execute(
            select(unwanted)
            .where(unwanted.c.study_id == study_id)
            .order_by(unwanted.c.generation)
        )
    )  # fmt: skip
    return told


def _measurements(findings: dict[str, Any]) -> list[tuple[str, str, str]]:
    labels = {s["number"]: s["label"] for s in findings.get("segments", ())}
    return [
        (
            f"{labels[m['segment']]}: {m['what']['meaning']}"
            if m["segment"] in labels and len(labels) > 1
            else str(m["what"]["meaning"]),
            f"{m['value']:.6g}",
            _UNIT_SHOWN.get(m["unit"]["value"], str(m["unit"]["value"])),
        )
        for m in findings.get("measurements", ())
    ]


def _artifacts(connection: Connection, study_id: str) -> dict[str, list[StoryArtifact]]:
    sent: dict[str, list[StoryDelivery]] = defaultdict(list)
    for row in connection.execute(
        select(deliveries)
        .join(artifacts)
        .where(artifacts.c.study_id == study_id)
        .order_by(deliveries.c.destination)
    ):
        sent[row.sop_instance_uid].append(
            StoryDelivery(row.destination, DeliveryState(row.state), row.attempts, row.words,
                          row.changed_at)
        )  # fmt: skip
    leaves = {
        row.key: row.leaf
        for row in connection.execute(
            select(events.c.key, events.c.leaf).where(
                events.c.study_id == study_id, events.c.code == "result.composed"
            )
        )
    }
    made: dict[str, list[StoryArtifact]] = defaultdict(list)
    for one in work.artifacts_of_study(connection, study_id):
        made[one.run_id].append(
            StoryArtifact(
                one.kind, one.sop_instance_uid, one.sop_class_uid, one.revision,
                one.size, leaves.get(f"composed/{one.run_id}/{one.kind}"),
                tuple(sent[one.sop_instance_uid]),
            )
        )  # fmt: skip
    return made


def list_runs(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """List the newest runs."""
    rows = connection.execute(
        select(
            runs.c.id, routes.c.model_id.label("model"), routes.c.model_version.label("version"),
            routes.c.study_id, runs.c.state, runs.c.reason, runs.c.started_at,
            runs.c.finished_at, runs.c.seconds,
        )
        .join(routes, routes.c.id == runs.c.route_id)
        .order_by(runs.c.started_at.desc())
        .limit(limit)
    )  # fmt: skip
    return [dict(row._mapping) for row in rows]


def open_generations(connection: Connection) -> list[tuple[str, int]]:
    """List the generations that still wait for images: (study id, generation)."""
    rows = connection.execute(
        select(generations.c.study_id, generations.c.generation).where(
            generations.c.sealed_at.is_(None)
        )
    )
    return [(row.study_id, row.generation) for row in rows]
