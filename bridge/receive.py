"""Received files become rows, in groups: the indexer (design §4.2).

The file is the truth; this can run again over any of them. For a group: read the
headers, link the files into their studies' folders, commit the rows and whatever
they start in one transaction, then clear the inbox. A crash anywhere in between
finds the names still in the inbox and repeats to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, Engine

from bridge import assemble, metrics
from bridge.errors import BadInstance
from bridge.files import Files
from bridge.header import read_instance
from bridge.store import arrivals, quarantine, work
from bridge.store.database import reading, writing
from bridge.study import Instance, InstanceState, Patient, StudyState

__all__ = ["Indexer"]

GROUP = 200
BAD_STUDY = "unreadable"
_UNDER_WAY = {StudyState.RECEIVING, StudyState.WORKING}  # its closing will look at quarantine
_REPLACES = {"new", "correction", "quarantine"}

SamePixels = Callable[[Path, Path], bool | None]
Opened = Callable[[Connection, str, int], None]
SubjectOf = Callable[[Patient, str], str]


@dataclass(frozen=True, slots=True)
class _Read:
    path: Path
    instance: Instance | None
    fault: BadInstance | None


class Indexer:
    """Takes acknowledged files out of the inbox.

    `opened(connection, study_id, generation)` is called inside the transaction that opens a
    generation and enqueues what follows it. `same_pixels(held, new)` compares decoded pixels
    in a child process: None when one of them cannot be decoded. `subject_of` gives the vault's
    reference for a patient (or for a study without one).
    """

    def __init__(
        self,
        *,
        engine: Engine,
        files: Files,
        keywords: Sequence[str],
        issuer_of: Callable[[str], str],
        same_pixels: SamePixels,
        subject_of: SubjectOf,
        opened: Opened,
        readable: Callable[[str], bool],
        new_id: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._files = files
        self._keywords = keywords
        self._issuer_of = issuer_of
        self._same_pixels = same_pixels
        self._subject_of = subject_of
        self._opened = opened
        self._readable = readable
        self._new_id = new_id

    def index(self, now: datetime) -> int:
        """Index one group of files; returns how many. `now` is the steady clock."""
        with self._files.turns.indexing():  # an erasure clears the inbox meanwhile, or neither
            return self._index(now)

    def _index(self, now: datetime) -> int:
        paths = self._files.arrived(GROUP)
        if not paths:
            return 0
        done = self._indexed_before(paths)
        read = [self._read(path) for path in paths if path.stem not in done]
        good = [r for r in read if r.instance is not None]
        self._files.settle(
            (r.path, r.instance.study_instance_uid) for r in good if r.instance is not None
        )
        self._files.settle((r.path, BAD_STUDY) for r in read if r.fault is not None)
        compared = self._compare(good)
        told_nothing: list[Instance] = []
        with writing(self._engine) as connection:
            for item in read:
                if item.instance is not None:
                    if not self._admit(connection, item.instance, compared, now):
                        told_nothing.append(item.instance)
                elif item.fault is not None:
                    self._refuse(connection, item.path, item.fault, now)
        # A crash here leaves names in the inbox whose rows exist: the next pass clears them.
        self._files.clear(paths)
        for instance in told_nothing:
            self._files.drop(instance.study_instance_uid, instance.arrival)
        return len(paths)

    def _indexed_before(self, paths: Sequence[Path]) -> set[str]:
        with reading(self._engine) as connection:
            return arrivals.was_indexed(connection, [path.stem for path in paths])

    def _read(self, path: Path) -> _Read:
        try:
            return _Read(path, read_instance(path, self._keywords, self._issuer_of), None)
        except BadInstance as fault:
            return _Read(path, None, fault)

    def _compare(self, items: Iterable[_Read]) -> dict[str, bool | None]:
        """Compare pixels of copies whose bytes differ, outside any transaction."""
        wanted = [r for r in items if r.instance is not None]
        with reading(self._engine) as connection:
            held = arrivals.held_by_uid(
                connection, [r.instance.sop_instance_uid for r in wanted if r.instance]
            )
            places = {
                row.arrival: arrivals.study(connection, row.study_id).study_instance_uid
                for row in held.values()
                if row.study_id is not None
            }
        verdicts: dict[str, bool | None] = {}
        first: dict[str, Path] = {
            uid: self._files.instance(places[row.arrival], row.arrival) for uid, row in held.items()
        }
        digests = {uid: row.dataset_sha256 for uid, row in held.items()}
        for item in wanted:
            instance = item.instance
            if instance is None:
                continue
            uid = instance.sop_instance_uid
            if uid in first and digests[uid] != instance.dataset_sha256:
                verdicts[instance.arrival] = self._same_pixels(first[uid], item.path)
            elif uid not in first:  # a pair inside one group is compared as well
                first[uid], digests[uid] = item.path, instance.dataset_sha256
        return verdicts

    def _admit(
        self,
        connection: Connection,
        instance: Instance,
        compared: dict[str, bool | None],
        now: datetime,
    ) -> bool:
        """Apply the decision; False where the file says nothing that is not held already."""
        instance = replace(instance, received_at=now)  # by the steady clock: see assemble
        if arrivals.is_own(connection, instance.sop_instance_uid):
            instance = replace(instance, own=True)
        study = arrivals.study_by_uid(connection, instance.study_instance_uid)
        row = arrivals.held_by_uid(connection, [instance.sop_instance_uid]).get(
            instance.sop_instance_uid
        )
        same = None
        if row is not None and row.study_id is not None:
            holder = arrivals.study(connection, row.study_id)
            same = assemble.Same(
                holder.study_instance_uid, row.series_instance_uid, row.dataset_sha256,
                same_pixels=compared.get(instance.arrival), held=row.state is InstanceState.HELD,
            )  # fmt: skip
        known = None
        if study is not None and (on_images := arrivals.held_identities(connection, study.id)):
            known = assemble.Known(study.identities, on_images)
        admission = assemble.admit(instance, known, same)
        metrics.INDEXED.labels(admission.outcome).inc()
        if admission.outcome == "own" and study is None:
            return False
        if study is None:
            study = arrivals.add_study(connection, self._new_id(), instance)
        self._apply(connection, study, row, instance, admission, now)
        return admission.outcome not in {"duplicate", "own"}

    def _apply(
        self,
        connection: Connection,
        study: arrivals.StudyRow,
        row: arrivals.HeldRow | None,
        instance: Instance,
        admission: assemble.Admission,
        now: datetime,
    ) -> None:
        if row is not None and admission.outcome in _REPLACES:
            # Held before: a correction. In quarantine before: whatever this copy says of itself.
            arrivals.set_instance_state(
                connection, [row.arrival], InstanceState.DISCARDED, "replaced by a newer copy"
            )
        match admission.outcome:
            case "new":
                self._hold(connection, study, instance, now)
            case "duplicate":
                self._tell(connection, study, "resent", admission.reason, now, once=True)
            case "correction":
                self._correct(connection, study, instance, now)
            case "own":
                arrivals.add_instance(
                    connection, instance, study.id, study.generation, InstanceState.OWN
                )
                self._tell(connection, study, "own", admission.reason, now, once=True)
            case "conflict":
                self._put_aside(connection, study, instance, InstanceState.CONFLICT, admission, now)
            case "quarantine":
                state = InstanceState.QUARANTINED
                self._put_aside(connection, study, instance, state, admission, now)

    def _put_aside(
        self,
        connection: Connection,
        study: arrivals.StudyRow,
        instance: Instance,
        state: InstanceState,
        admission: assemble.Admission,
        now: datetime,
    ) -> None:
        """Keep an instance out of its study until a person decides; the study goes on without."""
        number, words = study.generation, admission.reason
        arrivals.add_instance(connection, instance, study.id, number, state, words)
        self._tell(connection, study, admission.outcome, words, now, once=True)
        arrivals.lock_study(connection, study.id)
        if number == 0 or arrivals.study(connection, study.id).state not in _UNDER_WAY:
            arrivals.set_state(connection, study.id, StudyState.ATTENTION, words, now)

    def _hold(
        self,
        connection: Connection,
        study: arrivals.StudyRow,
        instance: Instance,
        now: datetime,
    ) -> None:
        number = study.generation
        if number == 0:
            study = self._begin(connection, study, instance)
        current = arrivals.generation(connection, study.id, number, hold=True)
        opens = current is None or current.sealed_at is not None
        if not opens and self._is_read(connection, study.id, number, instance):
            words = "an image came late for a series that is being read"
            arrivals.seal_generation(connection, study.id, number, words, now)
            opens = True
        if opens and (number == 0 or self._readable(instance.sop_class_uid)):
            number += 1
            subject = self._subject_of(study.patient, study.study_instance_uid)
            arrivals.open_generation(connection, study.id, number, subject, now)
            self._tell(
                connection, replace(study, generation=number), "generation",
                "first images" if number == 1 else "late images open the next generation", now,
            )  # fmt: skip
            self._opened(connection, study.id, number)
        elif not opens:
            arrivals.touch(connection, study.id, number, now)
        arrivals.add_instance(connection, instance, study.id, number, InstanceState.HELD)
        arrivals.add_modality(connection, study.id, instance.modality)
        arrivals.change_study(connection, study.id, updated_at=now)

    @staticmethod
    def _is_read(
        connection: Connection, study_id: str, generation: int, instance: Instance
    ) -> bool:
        """Whether a route of this generation has taken the instance's series already."""
        return any(
            instance.series_instance_uid in route.roles.values()
            for route in work.routes_of(connection, study_id, generation)
        )

    def _begin(
        self, connection: Connection, study: arrivals.StudyRow, instance: Instance
    ) -> arrivals.StudyRow:
        """Let the first image that counts say whose study this is."""
        arrivals.change_study(
            connection, study.id, issuer=instance.patient.issuer,
            patient_id=instance.patient.patient_id, patient_name=instance.patient_name,
            accession_number=instance.accession_number, study_date=instance.study_date,
            calling_ae=instance.calling_ae,
        )  # fmt: skip
        return arrivals.study(connection, study.id)

    def _correct(
        self,
        connection: Connection,
        study: arrivals.StudyRow,
        instance: Instance,
        now: datetime,
    ) -> None:
        number = study.generation
        arrivals.add_instance(connection, instance, study.id, number, InstanceState.HELD)
        identities = arrivals.held_identities(connection, study.id)
        if len(identities) == 1 and instance.patient != study.patient:
            arrivals.change_study(
                connection, study.id, issuer=instance.patient.issuer,
                patient_id=instance.patient.patient_id, patient_name=instance.patient_name,
                updated_at=now,
            )  # fmt: skip
            self._tell(
                connection, study, "identity",
                "the sender corrected the patient's identity on all images; the pixels are the "
                "same, so results stand and nothing is run again", now, once=True,
            )  # fmt: skip
        elif len(identities) > 1:
            self._tell(
                connection, study, "correcting",
                "the sender is correcting the patient's identity; some images still carry the "
                "former one", now, once=True,
            )  # fmt: skip
        else:
            self._tell(
                connection, study, "correction",
                "sent again with other header values or another encoding, the pixels are the same",
                now, once=True,
            )  # fmt: skip

    def _refuse(
        self, connection: Connection, path: Path, fault: BadInstance, now: datetime
    ) -> None:
        metrics.INDEXED.labels("unreadable").inc()
        quarantine.add_unreadable(
            connection, path.stem, str(fault), path.stat().st_size, now
        )  # fmt: skip

    def _tell(
        self,
        connection: Connection,
        study: arrivals.StudyRow,
        code: str,
        words: str,
        now: datetime,
        *,
        once: bool = False,
    ) -> None:
        suffix = words[:60] if once else str(study.generation)
        arrivals.tell(
            connection, key=f"receive/{study.id}/{study.generation}/{code}/{suffix}",
            study_id=study.id, generation_number=max(1, study.generation), at=now,
            stage="receive", code=code, words=words,
        )  # fmt: skip
