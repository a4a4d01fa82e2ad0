"""Try a package on a person's own DICOM files, without a site: which series, what came out, the SR.

The same rooms as a site uses, in the same order: header, selection, the model in its child,
composing and checking the report. Nothing is kept and nothing is sent. Lines name no patient.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from bridge.assemble import Verdict
from bridge.compose import model_of
from bridge.errors import BadInstance, NotFound
from bridge.header import attributes_of, dataset_of
from bridge.report import check, seg, sr
from bridge.report.errors import ReportError
from bridge.report.identity import Gateway, Naming, derived_uid
from bridge.report.text import as_text
from bridge.route import series_facts, study_facts
from bridge.study import Evidence
from models import sandbox
from models.errors import PackageError, RunFailed
from models.findings import Findings
from models.package import Package
from models.select import READ, Choice, SeriesFacts, StudyFacts, choose

__all__ = ["Tried", "on"]

_MOST_FILES = 20_000


@dataclass(frozen=True, slots=True)
class Tried:
    """What was seen, line by line, and whether the model ran and its report passed our check."""

    ran: bool
    lines: list[str]


@dataclass(frozen=True, slots=True)
class _Image:
    """A file as routing sees an instance (`bridge.route.Held`)."""

    arrival: str
    study_instance_uid: str
    series_instance_uid: str
    attributes: Mapping[str, Any]


def on(package: Package, paths: Sequence[Path], now: Callable[[], datetime]) -> Tried:
    """Run a package on files and folders of files, the first study that it wants.

    Raises NotFound where nothing is there to read.
    """
    images, lines = _read(_files(paths))
    if not images:
        raise NotFound("none of these files is a DICOM image; name files or a folder of them")
    studies: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        studies[image.study_instance_uid].append(image)
    for number, held in enumerate(studies.values(), 1):
        if len(studies) > 1:
            lines.append(f"study {number} of {len(studies)}: {len(held)} files")
        choice = _chosen(package, held, lines)
        if choice is not None:
            return _run(package, held, choice, lines, now)
    return Tried(False, lines)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found.extend(sorted(p for p in path.rglob("*") if p.is_file()))
        elif path.is_file():
            found.append(path)
        else:
            raise NotFound(f"{path} is neither a file nor a folder")
    if len(found) > _MOST_FILES:
        raise NotFound(f"{len(found)} files are too many to try; name one study")
    return found


def _read(paths: Sequence[Path]) -> tuple[list[_Image], list[str]]:
    images, lines = [], []
    for path in paths:
        try:
            dataset = dataset_of(path)
            images.append(
                _Image(
                    str(path), str(dataset.get("StudyInstanceUID", "")),
                    str(dataset.get("SeriesInstanceUID", "")), attributes_of(dataset, READ),
                )
            )  # fmt: skip
        except BadInstance as error:
            lines.append(f"left out: {path.name}: {error}")
    return images, lines


def _chosen(package: Package, held: Sequence[_Image], lines: list[str]) -> Choice | None:
    """Say of each series whether the model takes it, and choose; None where it wants none."""
    uids = {image.series_instance_uid for image in held}
    evidence = {uid: Evidence("explicit", len(held), None, 0) for uid in uids}
    facts = series_facts(held, Verdict(evidence, None, 0, ask=False, words=""))
    patient = study_facts(held)
    try:
        choice = choose(package, facts, patient)
        if len(package.input["series"]) == 1:
            lines.extend(_single(package, one, patient) for one in facts)
    except PackageError as error:
        lines.append(f"not selected: {error}")
        return None
    if not isinstance(choice, Choice):
        lines.append(f"not selected: {choice.reason}")
        return None
    for role, uid in choice.roles.items():
        count = sum(image.series_instance_uid == uid for image in held)
        lines.append(f"selected for the role {role}: {_named(facts, uid)}, {count} files")
    return choice


def _single(package: Package, one: SeriesFacts, patient: StudyFacts) -> str:
    answer = choose(package, [one], patient)
    if isinstance(answer, Choice):
        return f"{_named([one], one.series_instance_uid)}: fits"
    return answer.reason


def _named(facts: Sequence[SeriesFacts], uid: str) -> str:
    found = next(f.attributes for f in facts if f.series_instance_uid == uid)
    number, modality = found.get("SeriesNumber"), str(found.get("Modality", "?"))[:16]
    return f"a series ({modality})" if number is None else f"series {number} ({modality})"


def _run(
    package: Package,
    held: Sequence[_Image],
    choice: Choice,
    lines: list[str],
    now: Callable[[], datetime],
) -> Tried:
    roles = {
        role: [Path(i.arrival).resolve() for i in held if i.series_instance_uid == uid]
        for role, uid in choice.roles.items()
    }
    with tempfile.TemporaryDirectory(prefix="radseal-rehearsal-") as name:
        started = now()
        try:
            outcome = sandbox.run(
                package=package, roles=roles, work=Path(name), limits=sandbox.Limits(),
                warnings=choice.warnings,
            )  # fmt: skip
        except RunFailed as failed:
            return Tried(False, [*lines, f"FAILED ({failed.code}): {failed.text}"])
        lines.extend(_found(outcome.findings))
        lines.append(
            f"ran in {outcome.seconds:.2f} s, peak memory {outcome.peak_mb} MB, "
            f"{outcome.runtime['name']} {outcome.runtime['version']} "
            f"({', '.join(outcome.runtime['providers'])})"
        )
        try:
            text, faults = _report(package, roles, outcome, started, now())
        except ReportError as error:
            return Tried(False, [*lines, f"FAILED: the report cannot be composed: {error}"])
    lines.extend(["", text.rstrip(), *(f"FAULT of the report: {fault}" for fault in faults)])
    return Tried(not faults, lines)


def _found(findings: Findings) -> list[str]:
    labels = {s.number: s.label for s in findings.segments}
    lines = [f"finding: {findings.statement}"]
    lines.extend(f"  segment {s.number}: {s.label}, {s.voxels} voxels" for s in findings.segments)
    for one in findings.measurements:
        whose = f"{labels[one.segment]}: " if one.segment in labels else ""
        lines.append(f"  {whose}{one.what.meaning} {one.value:.6g} {one.unit.value}")
    for said in findings.qualitative:
        score = "" if said.probability is None else f" (score {said.probability:.4f})"
        lines.append(f"  {said.finding.meaning}: {said.value.meaning}{score}")
    lines.extend(f"  warning: {warning}" for warning in findings.warnings)
    return lines


def _report(
    package: Package,
    roles: Mapping[str, Sequence[Path]],
    outcome: sandbox.Outcome,
    started: datetime,
    finished: datetime,
) -> tuple[str, list[str]]:
    """Compose SEG and SR as a site would; returns the SR as text and what our check finds."""
    headers = [dataset_of(path) for paths in roles.values() for path in paths]
    by_uid = {str(header.SOPInstanceUID): header for header in headers}
    sources = [by_uid[uid] for uid in dict.fromkeys(outcome.findings.frames)]
    model, gateway, made = model_of(package), Gateway("rehearsal"), None

    def naming(kind: str) -> Naming:
        return Naming(
            derived_uid("rehearsal", package.package_digest, kind),
            derived_uid("rehearsal", kind), 1, 1,
            lambda number: derived_uid("rehearsal", str(number)), 1, started, finished,
        )  # fmt: skip

    faults: list[str] = []
    if outcome.mask_path is not None and outcome.findings.segments:
        with np.load(outcome.mask_path, allow_pickle=False) as arrays:
            mask = np.asarray(arrays["mask"])
        made = seg.compose(outcome.findings, mask, sources, model, gateway, naming("seg"))
        faults.extend(check.faults(made, sources))
    report = sr.compose(outcome.findings, sources, model, gateway, naming("sr"), made)
    faults.extend(check.faults(report, [*sources, *([made] if made is not None else [])]))
    return as_text(report), faults
