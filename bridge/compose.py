"""Findings become objects: composed, fsynced, then said in the ledger, in this order.

From the first fsync on nothing is composed again: a retry finds the bytes and sends
those (design §4b). If the outcome is replaced, the new object is a new revision that
names its predecessor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite

from bridge import commitments as keys
from bridge.header import dataset_of
from bridge.infer import chain_of, paths_of
from bridge.record import Chain
from bridge.report import check, content, fallback, seg, sr, summary
from bridge.report.errors import ReportError
from bridge.report.identity import (
    ARTIFICIAL_INTELLIGENCE,
    Model,
    Naming,
    derived_uid,
    device_uid,
)
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.arrivals import StudyRow
from bridge.store.database import reading, writing
from bridge.store.work import ArtifactRow, RouteRow
from bridge.study import ArtifactKind, RouteState
from models.findings import Findings
from models.package import Package, read_code

__all__ = ["compose", "compose_fallback", "model_of"]

_SERIES_NUMBER = {
    ArtifactKind.SEG: 9910,
    ArtifactKind.SR: 9920,
    ArtifactKind.SUMMARY: 9930,
    ArtifactKind.SR_COMPREHENSIVE: 9940,
    ArtifactKind.SR_ENHANCED: 9950,
}
_OLDER = {
    ArtifactKind.SR: ArtifactKind.SR_COMPREHENSIVE,
    ArtifactKind.SR_COMPREHENSIVE: ArtifactKind.SR_ENHANCED,
}


@dataclass(frozen=True, slots=True)
class _Job:
    rooms: Rooms
    chain: Chain
    study: StudyRow
    route: RouteRow
    package: Package
    run: Any
    sources: Sequence[Dataset]
    findings: Findings | None


def compose(rooms: Rooms, run_id: str) -> str:
    """Compose a run's objects and their leaves, the SEG before the SR; returns the run's id.

    Of a shadow's run nothing: its findings stand in its row, for the comparison.
    """
    job = _job(rooms, run_id)
    if job.route.state is RouteState.CANCELLED or job.route.shadow:
        return run_id
    leaves: list[str] = []
    made: Dataset | None = None
    for kind in _kinds(job):
        data, row = _object(job, kind, made)
        leaves.append(_record(job, kind, row, data, leaves, uses_seg=made is not None))
        if kind is ArtifactKind.SEG:
            made = dcmread(BytesIO(data))
    return run_id


def compose_fallback(rooms: Rooms, run_id: str, refused: ArtifactKind) -> ArtifactRow | None:
    """Compose the report in the next older SR class; None where there is none.

    An artifact of its own: its UIDs, its bytes, its leaf, before anything of it is sent.
    """
    if refused not in _OLDER:
        return None
    job = _job(rooms, run_id)
    data, row = _object(job, _OLDER[refused], None)
    _record(job, _OLDER[refused], row, data, [], uses_seg=False)
    return row


def _job(rooms: Rooms, run_id: str) -> _Job:
    with reading(rooms.database) as connection:
        run = work.run_of(connection, run_id)
        route = work.route(connection, run.route_id)
    chain, study, _ = chain_of(rooms, route)
    findings = Findings.from_json(run.findings) if run.findings else None
    package = rooms.catalog.package(route.model_digest)
    sources = _sources(rooms, study, route, findings)
    return _Job(rooms, chain, study, route, package, run, sources, findings)


def _kinds(job: _Job) -> list[ArtifactKind]:
    """Which objects this outcome has: what the manifest allows, in the order of reference."""
    if job.findings is None:
        partial = any(d.partial and "sr" in d.send for d in job.rooms.site.destinations)
        return [ArtifactKind.SR] if partial else []
    results = job.package.results
    kinds = []
    if job.findings.segments and results.get("seg", True):
        kinds.append(ArtifactKind.SEG)
    if results.get("sr", True):
        kinds.append(ArtifactKind.SR)
    if results.get("secondary_capture", True):
        kinds.append(ArtifactKind.SUMMARY)
    return kinds


def _sources(
    rooms: Rooms, study: StudyRow, route: RouteRow, findings: Findings | None
) -> list[Dataset]:
    """Read the source headers, in the order of the mask's frames where there is one."""
    files = [path for group in paths_of(rooms, study, route).values() for path in group]
    headers = [dataset_of(path) for path in files]
    if findings is None:
        return headers
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    return [by_uid[uid] for uid in dict.fromkeys(findings.frames)]


def _object(job: _Job, kind: ArtifactKind, seg_made: Dataset | None) -> tuple[bytes, ArtifactRow]:
    """Give an object's durable bytes and its row: those that are there, or new ones."""
    rooms, run_id = job.rooms, job.run.id
    with reading(rooms.database) as connection:
        known = {a.kind: a for a in work.artifacts_of_run(connection, run_id)}
        earlier = work.earlier_artifacts(
            connection, job.study.id, job.route.model_id, kind, job.run.started_at
        )
    if kind in known:
        row = known[kind]
        return rooms.files.artifact(job.study.id, row.sop_instance_uid).read_bytes(), row
    revision = len(earlier) + 1
    naming = _naming(job, kind, revision, earlier[-1] if earlier else None)
    path = rooms.files.artifact(job.study.id, naming.sop_instance_uid)
    if not path.exists():
        made = _build(job, kind, naming, seg_made)
        buffer = BytesIO()
        dcmwrite(buffer, made, enforce_file_format=True)
        path = rooms.files.keep_artifact(job.study.id, naming.sop_instance_uid, buffer.getvalue())
    # A crash here leaves bytes without a row: the same UID is derived again and they stand.
    data = path.read_bytes()
    header = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=["SOPClassUID"])
    row = ArtifactRow(
        naming.sop_instance_uid, run_id, job.study.id, kind, _is_partial(job) is not None,
        str(header.SOPClassUID), naming.series_instance_uid, revision,
        str(path.relative_to(rooms.folder)), len(data),
    )  # fmt: skip
    return data, row


def _is_partial(job: _Job) -> str | None:
    if job.findings is None:
        return f"the analysis failed: {job.run.reason}"
    return job.route.evidence.words if job.route.evidence.incomplete else None


def _build(job: _Job, kind: ArtifactKind, naming: Naming, seg_made: Dataset | None) -> Dataset:
    model, gateway = model_of(job.package), job.rooms.gateway
    findings = job.findings
    if kind in _OLDER.values():
        return _recast(job, kind, naming)
    if findings is None:
        return sr.compose_failure(job.run.reason, job.sources, model, gateway, naming)
    folder = job.rooms.files.run_folder(job.route.id)
    match kind:
        case ArtifactKind.SEG:
            made = seg.compose(
                findings, _array(folder / "mask.npz", "mask"), job.sources, model, gateway, naming
            )
        case ArtifactKind.SR:
            made = sr.compose(
                findings, job.sources, model, gateway, naming, seg_made, _is_partial(job)
            )
        case _:
            with np.load(folder / "preview.npz", allow_pickle=False) as shown:
                made = summary.compose(
                    findings, shown["image"], shown["labels"], job.sources, model, gateway,
                    naming, heat=shown.get("heat"), boxes=shown.get("boxes"),
                )  # fmt: skip
    faults = check.faults(made, [*job.sources, *([seg_made] if seg_made is not None else [])])
    if faults:
        raise ReportError(f"the {kind} does not pass our own check: {faults[0]}")
    return made


def _recast(job: _Job, kind: ArtifactKind, naming: Naming) -> Dataset:
    """Make the same report in an older class, from the stored bytes of the one there is."""
    with reading(job.rooms.database) as connection:
        known = work.artifacts_of_run(connection, job.run.id)
    report = next(a for a in known if a.kind is ArtifactKind.SR)
    stored = job.rooms.files.artifact(job.study.id, report.sop_instance_uid)
    return fallback.recast(
        dcmread(stored), kind, sop_instance_uid=naming.sop_instance_uid,
        series_instance_uid=naming.series_instance_uid, series_number=naming.series_number,
    )  # fmt: skip


def _array(path: Path, name: str) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays[name])


def model_of(package: Package) -> Model:
    """Give the algorithm as results name it."""
    said = package.algorithm
    return Model(
        name=package.name, version=package.version, vendor=package.vendor,
        digest=package.model_digest, id=package.id, device_uid=device_uid(package.model_digest),
        family=read_code(said.get("family")) or ARTIFICIAL_INTELLIGENCE,
        source=str(said.get("source") or package.vendor),
        parameters=tuple(said.get("parameters", ())), research_only=package.research_only,
    )  # fmt: skip


def _naming(job: _Job, kind: ArtifactKind, revision: int, earlier: ArtifactRow | None) -> Naming:
    """Derive every UID from the outcome, so that a retry names the same instance (§4.4)."""
    route, study_uid = job.route, job.study.study_instance_uid
    digest = route.input_digest or _unread(job)
    named = (
        job.rooms.site.origin, study_uid, digest, route.model_digest, job.package.package_digest,
        kind.value, str(revision),
    )  # fmt: skip
    finished: datetime = job.run.finished_at

    def tracking(number: int) -> str:
        return derived_uid(
            "tracking", job.rooms.site.origin, study_uid, route.model_id, str(number)
        )

    return Naming(
        sop_instance_uid=derived_uid("instance", *named),
        series_instance_uid=derived_uid("series", *named),
        series_number=_SERIES_NUMBER[kind] + revision - 1,
        instance_number=1,
        tracking=tracking,
        revision=revision,
        started=job.run.started_at,
        finished=finished,
        predecessor=None
        if earlier is None
        else (
            earlier.series_instance_uid, earlier.sop_instance_uid, study_uid,
            earlier.sop_class_uid,
        ),
    )  # fmt: skip


def _unread(job: _Job) -> str:
    """Name an input whose pixels could not be decoded: by its files."""
    files = sorted(f for group in job.route.arrivals.values() for f in group)
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def _in_this_chain(job: _Job, earlier: ArtifactRow) -> bool:
    """Whether an earlier object is of the same subject; after a corrected identity it is not."""
    with reading(job.rooms.database) as connection:
        study_id, number = work.place(connection, earlier.run_id)
        subjects = {
            found.subject_ref
            for one in (number, job.route.generation)
            if (found := arrivals.generation(connection, study_id, one)) is not None
        }
    return len(subjects) == 1


def _record(
    job: _Job,
    kind: ArtifactKind,
    row: ArtifactRow,
    data: bytes,
    leaves: Sequence[str],
    *,
    uses_seg: bool,
) -> str:
    """Say result.composed for these bytes, then keep the row and the story's line."""
    rooms, run_id = job.rooms, job.run.id
    dataset = dcmread(BytesIO(data))
    key = rooms.record.commitment(job.chain, row.sop_instance_uid)
    text = rooms.record.text
    ended = "inference.completed" if job.findings is not None else "inference.failed"
    with reading(rooms.database) as connection:
        refs = [(ended, arrivals.leaf_of(connection, f"{ended}/{run_id}"))]
        earlier = work.earlier_artifacts(
            connection, job.study.id, job.route.model_id, kind, job.run.started_at
        )
        if earlier and _in_this_chain(job, earlier[-1]):
            before = f"composed/{earlier[-1].run_id}/{kind}"
            refs.append(("previous", arrivals.leaf_of(connection, before)))
        if kind in _OLDER.values():
            report = arrivals.leaf_of(connection, f"composed/{run_id}/{ArtifactKind.SR}")
            refs.append(("result.composed", report))
    if kind is ArtifactKind.SR and uses_seg:
        refs.append(("result.composed", leaves[0]))
    leaf = rooms.record.say(
        "result.composed", f"composed/{run_id}/{kind}",
        {
            "kind": kind.value, "revision": row.revision, "partial": row.partial,
            "sop_class": row.sop_class_uid, "model": job.route.model_digest,
            "content": text(keys.content_commitment(key, content.content_digest(dataset))),
            "attributes": {
                tag.lower(): text(keys.attribute_commitment(key, tag, value))
                for tag, value in content.attribute_digests(dataset).items()
            },
        },
        chain=job.chain, refs=refs,
    )  # fmt: skip
    with writing(rooms.database) as connection:
        work.add_artifact(connection, row, rooms.now())
        arrivals.tell(
            connection, key=f"composed/{run_id}/{kind}", study_id=job.study.id,
            generation_number=job.route.generation, at=rooms.now(), stage="report",
            code="result.composed",
            words=f"{kind} composed, {row.size / 1024:.0f} kB"
            + (f", revision {row.revision}" if row.revision > 1 else ""),
            model_id=job.route.model_id, leaf=leaf,
        )  # fmt: skip
    return leaf
