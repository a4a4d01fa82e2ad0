"""Rows of what arrived: studies, instances, generations, and the facts told of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, select, update

from bridge.store.database import insert_once
from bridge.store.tables import artifacts, events, generations, instances, studies
from bridge.study import Instance, InstanceState, Patient, StudyState

__all__ = [
    "GenerationRow",
    "HeldRow",
    "StudyRow",
    "add_instance",
    "add_modality",
    "add_study",
    "all_arrivals",
    "by_arrival",
    "change_study",
    "close_generation",
    "declare",
    "generation",
    "held",
    "held_by_uid",
    "held_identities",
    "held_row",
    "is_own",
    "keep_counts",
    "leaf_of",
    "lock_study",
    "open_generation",
    "own_series",
    "seal_generation",
    "set_instance_state",
    "set_state",
    "set_waiting_words",
    "study",
    "study_by_uid",
    "tell",
    "touch",
    "was_indexed",
]


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study's row."""

    id: str
    study_instance_uid: str
    patient: Patient
    others: tuple[Patient, ...]
    calling_ae: str
    state: StudyState
    generation: int
    study_date: str

    @property
    def identities(self) -> tuple[Patient, ...]:
        """All identities that hold for this study: its own and those a person accepted."""
        return (self.patient, *self.others)


@dataclass(frozen=True, slots=True)
class HeldRow:
    """An instance's row, as far as decisions need it."""

    arrival: str
    study_id: str | None
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    patient: Patient
    dataset_sha256: str
    state: InstanceState
    received_at: datetime
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """A generation's row: the images that came in one go."""

    study_id: str
    generation: int
    subject_ref: str
    opened_at: datetime
    last_received_at: datetime
    declared: bool
    counts: Mapping[str, Any]
    sealed_at: datetime | None
    evidence: str
    closed_at: datetime | None


def _study(row: Row[Any]) -> StudyRow:
    return StudyRow(
        row.id, row.study_instance_uid, Patient(row.issuer, row.patient_id),
        tuple(Patient(*pair) for pair in row.others), row.calling_ae, StudyState(row.state),
        row.generation, row.study_date,
    )  # fmt: skip


def study_by_uid(connection: Connection, study_instance_uid: str) -> StudyRow | None:
    """Find a study by its StudyInstanceUID."""
    row = connection.execute(
        select(studies).where(studies.c.study_instance_uid == study_instance_uid)
    ).first()
    return None if row is None else _study(row)


def study(connection: Connection, study_id: str) -> StudyRow:
    """Give the study with this id of ours; it must exist."""
    return _study(connection.execute(select(studies).where(studies.c.id == study_id)).one())


def lock_study(connection: Connection, study_id: str) -> None:
    """Hold the study's row until the transaction ends (on SQLite the writer holds all)."""
    connection.execute(select(studies.c.id).where(studies.c.id == study_id).with_for_update())


def add_study(connection: Connection, study_id: str, first: Instance) -> StudyRow:
    """Write the row of a study of which `first` is the first instance."""
    connection.execute(
        studies.insert().values(
            id=study_id, study_instance_uid=first.study_instance_uid,
            issuer=first.patient.issuer, patient_id=first.patient.patient_id, others=[],
            patient_name=first.patient_name, accession_number=first.accession_number,
            study_date=first.study_date, modalities=first.modality, calling_ae=first.calling_ae,
            state=StudyState.RECEIVING, state_words="receiving", generation=0,
            received_at=first.received_at, updated_at=first.received_at,
        )
    )  # fmt: skip
    return study(connection, study_id)


def change_study(connection: Connection, study_id: str, **values: Any) -> None:
    """Change columns of a study's row."""
    connection.execute(update(studies).where(studies.c.id == study_id).values(**values))


def set_state(
    connection: Connection, study_id: str, state: StudyState, words: str, at: datetime
) -> None:
    """Say where the study stands."""
    change_study(connection, study_id, state=state, state_words=words, updated_at=at)


def add_instance(
    connection: Connection,
    instance: Instance,
    study_id: str | None,
    generation_number: int,
    state: InstanceState,
    reason: str = "",
) -> bool:
    """Write an instance's row; False if this file was indexed before."""
    return insert_once(connection, instances, {
        "arrival": instance.arrival, "study_id": study_id,
        "sop_instance_uid": instance.sop_instance_uid, "sop_class_uid": instance.sop_class_uid,
        "series_instance_uid": instance.series_instance_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "issuer": instance.patient.issuer, "patient_id": instance.patient.patient_id,
        "dataset_sha256": instance.dataset_sha256, "size": instance.size,
        "calling_ae": instance.calling_ae, "received_at": instance.received_at,
        "generation": generation_number, "state": state, "reason": reason,
        "attributes": dict(instance.attributes),
    })  # fmt: skip


def add_modality(connection: Connection, study_id: str, modality: str) -> None:
    """Add a modality to those of the study."""
    row = connection.execute(select(studies.c.modalities).where(studies.c.id == study_id)).one()
    known = {m for m in row.modalities.split(" ") if m}
    if modality and modality not in known:
        change_study(connection, study_id, modalities=" ".join(sorted({*known, modality})))


def held_row(row: Row[Any]) -> HeldRow:
    """Give an instance's row its types."""
    return HeldRow(
        row.arrival, row.study_id, row.sop_instance_uid, row.sop_class_uid,
        row.series_instance_uid, Patient(row.issuer, row.patient_id), row.dataset_sha256,
        InstanceState(row.state), row.received_at, row.attributes,
    )  # fmt: skip


def held(connection: Connection, study_id: str) -> list[HeldRow]:
    """List the instances of a study that count, in order of arrival."""
    rows = connection.execute(
        select(instances)
        .where(instances.c.study_id == study_id, instances.c.state == InstanceState.HELD)
        .order_by(instances.c.arrival)
    )
    return [held_row(row) for row in rows]


def own_series(connection: Connection, study_id: str) -> frozenset[str]:
    """Series of our own results in this study: no count compares them."""
    rows = connection.execute(
        select(artifacts.c.series_instance_uid).where(artifacts.c.study_id == study_id)
    )
    return frozenset(row.series_instance_uid for row in rows)


def set_waiting_words(connection: Connection, study_id: str, words: str) -> None:
    """Say what a study that is being received waits for."""
    connection.execute(
        update(studies)
        .where(studies.c.id == study_id, studies.c.state == StudyState.RECEIVING)
        .values(state_words=words)
    )


def by_arrival(connection: Connection, study_id: str) -> list[HeldRow]:
    """List every instance of a study, also those that a corrected copy replaced."""
    rows = connection.execute(select(instances).where(instances.c.study_id == study_id))
    return [held_row(row) for row in rows]


def leaf_of(connection: Connection, key: str) -> str:
    """Give the leaf of a fact that was told; it must have one."""
    leaf = connection.execute(select(events.c.leaf).where(events.c.key == key)).scalar_one()
    return str(leaf)


def held_identities(connection: Connection, study_id: str) -> frozenset[Patient]:
    """Which identities the held images of a study carry."""
    rows = connection.execute(
        select(instances.c.issuer, instances.c.patient_id)
        .where(instances.c.study_id == study_id, instances.c.state == InstanceState.HELD)
        .distinct()
    )
    return frozenset(Patient(row.issuer, row.patient_id) for row in rows)


def held_by_uid(connection: Connection, uids: Iterable[str]) -> dict[str, HeldRow]:
    """Find what is held (or quarantined) under these SOPInstanceUIDs."""
    rows = connection.execute(
        select(instances)
        .where(
            instances.c.sop_instance_uid.in_(list(uids)),
            instances.c.state.in_([InstanceState.HELD, InstanceState.QUARANTINED]),
            instances.c.study_id.is_not(None),
        )
        .order_by(instances.c.arrival)
    )
    return {row.sop_instance_uid: held_row(row) for row in rows}


def all_arrivals(connection: Connection) -> frozenset[str]:
    """Name every file that has a row."""
    return frozenset(connection.execute(select(instances.c.arrival)).scalars())


def was_indexed(connection: Connection, arrivals: Iterable[str]) -> set[str]:
    """Which of these files have their row already (a crash came between commit and clean-up)."""
    rows = connection.execute(
        select(instances.c.arrival).where(instances.c.arrival.in_(list(arrivals)))
    )
    return {row.arrival for row in rows}


def is_own(connection: Connection, sop_instance_uid: str) -> bool:
    """Whether this is an artifact of ours that came back."""
    return (
        connection.execute(
            select(artifacts.c.run_id).where(artifacts.c.sop_instance_uid == sop_instance_uid)
        ).first()
        is not None
    )


def set_instance_state(
    connection: Connection, arrivals: Sequence[str], state: InstanceState, reason: str
) -> None:
    """Say what became of these instances."""
    connection.execute(
        update(instances)
        .where(instances.c.arrival.in_(list(arrivals)))
        .values(state=state, reason=reason)
    )


def open_generation(
    connection: Connection, study_id: str, number: int, subject_ref: str, at: datetime
) -> None:
    """Open the generation that the next images belong to."""
    insert_once(connection, generations, {
        "study_id": study_id, "generation": number, "subject_ref": subject_ref,
        "opened_at": at, "last_received_at": at, "declared": False, "counts": {},
        "sealed_at": None, "evidence": "", "closed_at": None,
    })  # fmt: skip
    change_study(
        connection, study_id, generation=number, state=StudyState.RECEIVING,
        state_words="receiving", updated_at=at,
    )  # fmt: skip


def _of(study_id: str, number: int) -> Any:
    return and_(generations.c.study_id == study_id, generations.c.generation == number)


def generation(
    connection: Connection, study_id: str, number: int, *, hold: bool = False
) -> GenerationRow | None:
    """Find a generation; `hold` keeps others from changing it until this transaction ends."""
    query = select(generations).where(_of(study_id, number))
    row = connection.execute(query.with_for_update() if hold else query).first()
    return None if row is None else GenerationRow(*row)


def touch(connection: Connection, study_id: str, number: int, at: datetime) -> None:
    """Say that an image came at `at` (the indexer's steady clock)."""
    connection.execute(update(generations).where(_of(study_id, number)).values(last_received_at=at))


def declare(connection: Connection, study_id: str, number: int) -> None:
    """Say that somebody declared the study complete."""
    connection.execute(update(generations).where(_of(study_id, number)).values(declared=True))


def keep_counts(
    connection: Connection, study_id: str, number: int, counts: Mapping[str, Any]
) -> None:
    """Keep the source's last answers."""
    connection.execute(update(generations).where(_of(study_id, number)).values(counts=dict(counts)))


def seal_generation(
    connection: Connection, study_id: str, number: int, evidence: str, at: datetime
) -> None:
    """Say that the study's generation is complete, and why."""
    connection.execute(
        update(generations).where(_of(study_id, number)).values(sealed_at=at, evidence=evidence)
    )


def close_generation(connection: Connection, study_id: str, number: int, at: datetime) -> None:
    """Say that nothing of this generation is left to do."""
    connection.execute(update(generations).where(_of(study_id, number)).values(closed_at=at))


def tell(
    connection: Connection,
    *,
    key: str,
    study_id: str,
    generation_number: int,
    at: datetime,
    stage: str,
    code: str,
    words: str,
    model_id: str | None = None,
    leaf: str | None = None,
) -> bool:
    """Add one fact to the study's story; the same key is said once. No PHI in `words`."""
    return insert_once(connection, events, {
        "key": key, "study_id": study_id, "generation": generation_number, "at": at,
        "stage": stage, "code": code, "words": words, "model_id": model_id, "leaf": leaf,
    })  # fmt: skip
