"""What the rows hold of one patient, and how they forget it.

A study belongs to the patient that its row names. It goes whole: also images of somebody else
that arrived in it. Of a study that belongs to somebody else go the images that carry the erased
identity (in whatever state), what was read from one of them, and the identity's own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, Text, and_, cast, delete, func, or_, select, text

from bridge.store.arrivals import StudyRow, change_study, study
from bridge.store.database import vacuum
from bridge.store.tables import (
    METADATA,
    artifacts,
    consents,
    decisions,
    deliveries,
    events,
    generations,
    instances,
    routes,
    runs,
    studies,
    unwanted,
)
from bridge.store.work import ArtifactRow, artifact_row
from bridge.study import DeliveryState, InstanceState, Patient

__all__ = [
    "Extent",
    "Left",
    "OpenGeneration",
    "extent",
    "forget",
    "left",
    "open_generations",
    "scrub",
    "unread",
]

_MANY = 500  # values in one IN (…), well below every database's limit
IMPERSONAL = frozenset(
    {
        "models",
        "vendors",
        "model_owners",
        "signers",
        "selftests",
        "tokens",
        "logins",
        "sessions",
        "settings",
    }
)
"""Tables that name no patient. A new table is one of these or `forget` knows it (a test looks)."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What of the rows belongs to a patient.

    `own` and `shared` map study ids to StudyInstanceUIDs; `arrivals` are the images in shared
    studies that go, as (study id, arrival); routes, runs and artifacts are those of both.
    """

    own: Mapping[str, str]
    shared: Mapping[str, str]
    arrivals: tuple[tuple[str, str], ...]
    images: int
    routes: tuple[str, ...]
    runs: Mapping[str, str]  # run id -> route id
    artifacts: tuple[ArtifactRow, ...]
    consents: int

    @property
    def empty(self) -> bool:
        """Whether the rows hold nothing of this patient."""
        return not (self.own or self.shared or self.consents)


@dataclass(frozen=True, slots=True)
class Left:
    """What left the house before: which object, where to, when (UTC, ISO 8601).

    For an audit bundle `sop_instance_uid` is the hash of its access.disclosed leaf, and the
    study is not said.
    """

    destination: str
    kind: str
    sop_instance_uid: str
    study_instance_uid: str
    at: str


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """A generation that was said to be received and was never said to be over."""

    study_id: str
    study_instance_uid: str
    generation: int
    subject_ref: str
    received: str


def extent(connection: Connection, patient: Patient, study_uid: str, subject_ref: str) -> Extent:
    """Find everything of a patient, or of one study that names none (then `study_uid` says it)."""
    mine = and_(studies.c.issuer == patient.issuer, studies.c.patient_id == patient.patient_id)
    if not patient.identified:
        mine = and_(studies.c.study_instance_uid == study_uid, studies.c.patient_id == "")
    rows = connection.execute(select(studies.c.id, studies.c.study_instance_uid).where(mine))
    own = {row.id: row.study_instance_uid for row in rows}
    shared = _shared(connection, patient, subject_ref, own) if patient.identified else {}
    gone = _arrivals(connection, patient, shared)
    read = _routes(connection, own, shared, {arrival for _, arrival in gone}, subject_ref)
    made = {
        row.id: row.route_id
        for some in _some(read)
        for row in connection.execute(
            select(runs.c.id, runs.c.route_id).where(runs.c.route_id.in_(some))
        )
    }
    composed = tuple(
        artifact_row(row)
        for some in _some(made)
        for row in connection.execute(select(artifacts).where(artifacts.c.run_id.in_(some)))
    )
    kept = connection.execute(select(consents.c.id).where(consents.c.subject_ref == subject_ref))
    images = select(func.count()).select_from(instances)
    held = len(gone) + sum(
        connection.execute(images.where(instances.c.study_id == one)).scalar_one() for one in own
    )
    return Extent(own, shared, gone, held, tuple(read), made, composed, len(list(kept)))


def _shared(
    connection: Connection, patient: Patient, subject_ref: str, own: Mapping[str, str]
) -> dict[str, str]:
    """Find studies of somebody else in which this patient's images or name stand."""
    found = {
        row.study_id
        for row in connection.execute(
            select(instances.c.study_id)
            .where(
                instances.c.issuer == patient.issuer,
                instances.c.patient_id == patient.patient_id,
                instances.c.study_id.is_not(None),
            )
            .distinct()
        )
    }
    found |= {
        row.study_id
        for row in connection.execute(
            select(generations.c.study_id).where(generations.c.subject_ref == subject_ref)
        )
    }
    several = select(studies.c.id, studies.c.others).where(cast(studies.c.others, Text) != "[]")
    pair = [patient.issuer, patient.patient_id]
    found |= {row.id for row in connection.execute(several) if pair in row.others}
    return {one: study(connection, one).study_instance_uid for one in sorted(found - own.keys())}


def _arrivals(
    connection: Connection, patient: Patient, shared: Iterable[str]
) -> tuple[tuple[str, str], ...]:
    return tuple(
        (row.study_id, row.arrival)
        for one in shared
        for row in connection.execute(
            select(instances.c.study_id, instances.c.arrival).where(
                instances.c.study_id == one,
                instances.c.issuer == patient.issuer,
                instances.c.patient_id == patient.patient_id,
            )
        )
    )


def _routes(
    connection: Connection,
    own: Iterable[str],
    shared: Iterable[str],
    gone: set[str],
    subject_ref: str,
) -> list[str]:
    """List the routes of own studies, and those of shared ones that read what goes."""
    found = [
        row.id
        for one in own
        for row in connection.execute(select(routes.c.id).where(routes.c.study_id == one))
    ]
    joined = routes.join(
        generations,
        and_(
            generations.c.study_id == routes.c.study_id,
            generations.c.generation == routes.c.generation,
        ),
    )
    for one in shared:
        for row in connection.execute(
            select(routes.c.id, routes.c.arrivals, generations.c.subject_ref)
            .select_from(joined)
            .where(routes.c.study_id == one)
        ):
            read = {arrival for files in row.arrivals.values() for arrival in files}
            if read & gone or row.subject_ref == subject_ref:
                found.append(row.id)
    return found


def _some(values: Iterable[str]) -> list[list[str]]:
    """Cut a list into pieces that fit into one statement."""
    every = list(values)
    return [every[start : start + _MANY] for start in range(0, len(every), _MANY)]


def left(connection: Connection, found: Extent) -> list[Left]:
    """List what was stored at a destination before: erasing here does not erase it there."""
    kept = {a.sop_instance_uid: a for a in found.artifacts}
    uids = {**found.own, **found.shared}
    told = [
        Left(
            row.destination, kept[row.sop_instance_uid].kind, row.sop_instance_uid,
            uids[kept[row.sop_instance_uid].study_id], row.changed_at.isoformat(),
        )
        for some in _some(kept)
        for row in connection.execute(
            select(deliveries).where(
                deliveries.c.sop_instance_uid.in_(some),
                deliveries.c.state == DeliveryState.STORED,
            )
        )
    ]  # fmt: skip
    return sorted(told, key=lambda one: (one.destination, one.at, one.sop_instance_uid))


def open_generations(
    connection: Connection, found: Extent, subject_ref: str
) -> list[OpenGeneration]:
    """List what would stay open in the log for ever once its key is gone."""
    told = []
    for study_id, uid in {**found.own, **found.shared}.items():
        for row in connection.execute(
            select(generations.c.generation, generations.c.subject_ref).where(
                generations.c.study_id == study_id, generations.c.closed_at.is_(None)
            )
        ):
            key = f"received/{study_id}/{row.generation}"
            leaf = connection.execute(select(events.c.leaf).where(events.c.key == key)).scalar()
            if leaf and (study_id in found.own or row.subject_ref == subject_ref):
                told.append(OpenGeneration(study_id, uid, row.generation, row.subject_ref, leaf))
    return told


def unread(connection: Connection) -> list[str]:
    """List the arrivals of files that nobody can read: whose they are is not known."""
    rows = connection.execute(
        select(instances.c.arrival).where(
            instances.c.study_id.is_(None), instances.c.state == InstanceState.QUARANTINED
        )
    )
    return [row.arrival for row in rows]


def forget(
    connection: Connection,
    found: Extent,
    patient: Patient,
    subject_ref: str,
    unreadable: Sequence[str],
) -> None:
    """Delete the rows of all of it, and of these unreadable arrivals."""
    _forget_routes(connection, found)
    for one in found.own:
        for table in (unwanted, events, generations, instances):
            connection.execute(delete(table).where(table.c.study_id == one))
        connection.execute(delete(studies).where(studies.c.id == one))
    _forget_images(connection, [*(arrival for _, arrival in found.arrivals), *unreadable])
    for one in found.shared:
        connection.execute(
            delete(generations).where(
                generations.c.study_id == one, generations.c.subject_ref == subject_ref
            )
        )
        row = study(connection, one)
        change_study(connection, one, others=_without(row, patient))
    connection.execute(delete(consents).where(consents.c.subject_ref == subject_ref))


def _without(row: StudyRow, patient: Patient) -> list[list[str]]:
    return [[p.issuer, p.patient_id] for p in row.others if p != patient]


def _forget_images(connection: Connection, arrivals: Sequence[str]) -> None:
    for some in _some(arrivals):
        connection.execute(delete(instances).where(instances.c.arrival.in_(some)))


def _forget_routes(connection: Connection, found: Extent) -> None:
    for some in _some(found.runs):
        connection.execute(delete(deliveries).where(deliveries.c.run_id.in_(some)))
        connection.execute(delete(artifacts).where(artifacts.c.run_id.in_(some)))
    for some in _some(found.routes):
        connection.execute(delete(decisions).where(decisions.c.route_id.in_(some)))
        connection.execute(delete(runs).where(runs.c.route_id.in_(some)))
        connection.execute(delete(routes).where(routes.c.id.in_(some)))
    if found.shared:  # their story stays, but for the lines about what goes
        for one in (*found.routes, *found.runs):
            connection.execute(
                delete(events).where(
                    events.c.study_id.in_(list(found.shared)),
                    or_(events.c.key.contains(f"/{one}/"), events.c.key.endswith(f"/{one}")),
                )
            )


def scrub(engine: Engine, more: Sequence[str]) -> None:
    """Rewrite the tables, so that deleted rows are gone from the files, too.

    On SQLite the whole file, with the engine's tables in it; on PostgreSQL each of ours, and
    `more` by name. What an archive of its write-ahead log holds is out of reach.
    Raises Busy when somebody reads for so long that the log cannot be emptied.
    """
    if engine.dialect.name == "postgresql":
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            for table in METADATA.sorted_tables:
                if table.name not in IMPERSONAL:
                    _forget_statistics(connection, table)
    vacuum(engine, [*(t.name for t in METADATA.sorted_tables if t.name not in IMPERSONAL), *more])


def _forget_statistics(connection: Connection, table: Table) -> None:
    """Drop the samples of values that PostgreSQL keeps for its planner, and take new ones.

    ANALYZE leaves the old ones where a table is empty; naming a column's type anew drops them.
    """
    quote = connection.dialect.identifier_preparer.quote
    same = ", ".join(
        f"ALTER COLUMN {quote(c.name)} TYPE {c.type.compile(connection.dialect)}" for c in table.c
    )
    connection.execute(text(f"ALTER TABLE {quote(table.name)} {same}"))
