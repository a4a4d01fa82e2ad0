"""Comprehensive 3D SR by TID 1500, as IHE AIR and the viewers in use read it.

One report holds one kind of group: TID 1411 where there is a segmentation, else
TID 1501 (a box is one, with its rectangle). What belongs to no group (the sentence
for the reader, warnings, statements beside a segmentation) stands in Qualitative
Evaluations.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

from highdicom.sr import Comprehensive3DSR, ContentItem
from pydicom.dataset import Dataset

from bridge.report import codes, tree
from bridge.report.envelope import UNVERIFIED, dress, header, unique
from bridge.report.errors import ReportError
from bridge.report.identity import WHOLE_STUDY, Gateway, Model, Naming
from bridge.report.region import Place, of_box, places, whole_image
from bridge.report.seg import tracking_identifier
from bridge.report.text import as_text
from models.findings import ABSENT, Box, Code, Findings, Measurement, Qualitative, Segment

__all__ = ["as_text", "compose", "compose_failure"]

RESEARCH = "For research use only; not for diagnosis."


def compose(
    findings: Findings,
    sources: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    naming: Naming,
    seg: Dataset | None,
    partial: str | None = None,
) -> Dataset:
    """Return the SR of these findings (Comprehensive 3D SR, Explicit VR Little Endian).

    `sources` are the headers of the source series in the order of the mask's
    frames. `seg` is the SEG of the same run, which groups then refer to.
    `partial` says why the input was not the whole series; the report is then
    PARTIAL. Raises ReportError where a value cannot be written.
    """
    images = unique(sources)
    if seg is not None and findings.boxes:
        raise ReportError("one report has no place for boxes beside a segmentation")
    if seg is not None and not findings.nothing_found:
        groups = _segment_groups(findings, images, model, naming, seg)
    else:
        groups = _plain_groups(findings, images, model, naming)
        seg = None
    statements: list[ContentItem] = []
    if seg is not None:
        statements = [tree.code(q.finding, q.value) for q in findings.qualitative]
    statements.append(tree.text(codes.NARRATIVE, findings.statement))
    said = [] if findings.priority is None else [f"Triage priority: {findings.priority}."]
    notes = [*said, *findings.warnings, *([f"Incomplete input: {partial}"] if partial else [])]
    sections = [
        *([tree.container(codes.MEASUREMENTS, groups)] if groups else []),
        *([] if seg is None else _derived(findings, model)),
        tree.container(codes.EVALUATIONS, [*statements, *_notes(model, notes)]),
    ]
    evidence = images if seg is None else [*images, seg]
    return _document(sections, images, evidence, model, gateway, naming, partial)


def compose_failure(
    reason: str,
    sources: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    naming: Naming,
) -> Dataset:
    """Return the SR of a run that gave no result: PARTIAL, and never an "Absent".

    `reason` is a sentence without patient data.
    """
    images = unique(sources)
    items = [
        tree.code(codes.CAD_SUMMARY, codes.NONE_SUCCEEDED),
        tree.code(codes.ANALYSES, codes.FAILED),
        tree.text(codes.NARRATIVE, f"No AI result: {reason}"),
        *_notes(model, []),
    ]
    sections = [tree.container(codes.EVALUATIONS, items)]
    return _document(sections, images, images, model, gateway, naming, f"No AI result: {reason}")


def _notes(model: Model, said: Sequence[str]) -> list[ContentItem]:
    first = f"{UNVERIFIED}. {RESEARCH if model.research_only else ''}".strip()
    return [tree.text(codes.COMMENT, note) for note in (first, *said)]


def _of_segment(findings: Findings, segment: Segment) -> list[Measurement]:
    """Return the measurements of this segment; those of the whole study go to an only segment."""
    alone = len(findings.segments) == 1
    return [
        m
        for m in findings.measurements
        if m.segment == segment.number or (m.segment is None and alone)
    ]


def _segment_groups(
    findings: Findings,
    images: Sequence[Dataset],
    model: Model,
    naming: Naming,
    seg: Dataset,
) -> list[ContentItem]:
    """Return one TID 1411 group per segment that has a measurement."""
    shown = places(seg)
    groups = []
    for part in findings.segments:
        numbers = _of_segment(findings, part)
        if not numbers:
            continue
        items = [
            *tree.tracking(tracking_identifier(model, part), naming.tracking_uid(part.number)),
            tree.code(codes.FINDING_CATEGORY, part.category),
            tree.code(codes.FINDING, part.type),
            tree.segment(seg, part.number),
            tree.uid(codes.SOURCE_SERIES, str(images[0].SeriesInstanceUID)),
            tree.place(shown.get(part.number) or whole_image(images)),
            *tree.algorithm(model, findings.parameters),
            *(tree.number(m) for m in numbers),
        ]
        groups.append(tree.container(codes.GROUP, items, template="1411"))
    return groups


def _derived(findings: Findings, model: Model) -> list[ContentItem]:
    """Return Derived Imaging Measurements: what was measured over all segments together.

    TID 1420 wants references to the groups by position here; readers in use
    (highdicom, for one) fail on such items, so the numbers stand alone.
    """
    numbers = [m for m in findings.measurements if m.segment is None]
    if len(findings.segments) == 1 or not numbers:
        return []
    items = [*tree.algorithm(model, findings.parameters), *(tree.number(m) for m in numbers)]
    return [tree.container(codes.DERIVED, items)]


def _study_group(
    findings: Findings, images: Sequence[Dataset], model: Model, naming: Naming
) -> ContentItem:
    """Return a TID 1501 group of the measurements that belong to the whole study."""
    numbers = [m for m in findings.measurements if m.segment is None]
    return _plain_group(
        identifier=codes.short(f"Study ({model.name} {model.version})"),
        number=WHOLE_STUDY,
        finding=numbers[0].what,
        where=whole_image(images),
        items=[tree.number(m) for m in numbers],
        parameters=findings.parameters,
        model=model,
        naming=naming,
    )


def _plain_group(
    *,
    identifier: str,
    number: int,
    finding: Code,
    where: Place,
    items: Sequence[ContentItem],
    parameters: Sequence[str],
    model: Model,
    naming: Naming,
) -> ContentItem:
    content = [
        *tree.tracking(identifier, naming.tracking_uid(number)),
        tree.code(codes.FINDING, finding),
        *tree.algorithm(model, parameters),
        tree.place(where),
        *items,
    ]
    return tree.container(codes.GROUP, content, template="1501")


def _plain_groups(
    findings: Findings, images: Sequence[Dataset], model: Model, naming: Naming
) -> list[ContentItem]:
    """Return the TID 1501 groups: one per statement, per segment and for the study."""
    groups = []
    for k, said in enumerate(findings.qualitative, start=1):
        groups.append(
            _plain_group(
                identifier=codes.short(f"{said.finding.meaning} ({model.name} {model.version})"),
                number=-k,
                finding=said.finding,
                where=whole_image(images, said.sop_instance_uid),
                items=_statement(said),
                parameters=[*findings.parameters, *_read(said)],
                model=model,
                naming=naming,
            )
        )
    groups += [
        _box_group(k, box, findings, images, model, naming)
        for k, box in enumerate(findings.boxes, start=1)
    ]
    for part in findings.segments:
        items = [tree.number(m) for m in findings.measurements if m.segment == part.number]
        if findings.nothing_found and not findings.qualitative:
            items.insert(0, tree.code(part.type, ABSENT))
        if items:
            groups.append(
                _plain_group(
                    identifier=tracking_identifier(model, part),
                    number=part.number,
                    finding=part.type,
                    where=whole_image(images),
                    items=items,
                    parameters=findings.parameters,
                    model=model,
                    naming=naming,
                )
            )
    if any(m.segment is None for m in findings.measurements):
        groups.append(_study_group(findings, images, model, naming))
    return groups


_BOXES_FROM = 100_000
"""Tracking numbers of boxes; segments count up from 1, statements down from -1."""


def _box_number(box: Box, uid: str) -> int:
    """Derive a number from the place: the same box keeps its tracking UID in a later revision."""
    place = f"{box.finding.scheme} {box.finding.value} {uid} {box.frame}"
    edges = " ".join(f"{v:.1f}" for v in (box.x0, box.y0, box.x1, box.y1))
    digest = hashlib.sha256(f"{place} {edges}".encode()).digest()
    return _BOXES_FROM + int.from_bytes(digest[:6])


def _box_group(
    k: int,
    box: Box,
    findings: Findings,
    images: Sequence[Dataset],
    model: Model,
    naming: Naming,
) -> ContentItem:
    """Return the TID 1501 group of one box, with its rectangle on the image in its middle."""
    where = of_box(images, findings.frames, box)
    items = [*_score(box.finding, box.score, calibrated=box.calibrated)]
    if box.last > box.first:
        items.append(tree.text(codes.COMMENT, f"Extends over {box.last - box.first + 1} images."))
    return _plain_group(
        identifier=codes.short(f"{box.label} {k} ({model.name} {model.version})"),
        number=_box_number(box, where.sop_instance_uid),
        finding=box.finding,
        where=where,
        items=items,
        parameters=[*findings.parameters, *_read(box)],
        model=model,
        naming=naming,
    )


def _read(said: Qualitative | Box) -> list[str]:
    """Say how a score was read: the operating point and its threshold."""
    point = [] if said.operating_point is None else [f"operating_point={said.operating_point}"]
    return [*point, *([] if said.threshold is None else [f"threshold={said.threshold:g}"])]


def _score(finding: Code, score: float, *, calibrated: bool) -> list[ContentItem]:
    """Return a certainty in per cent where it is calibrated, else a score without a unit."""
    if not 0 <= score <= 1:
        raise ReportError(f"{finding.meaning}: a score or probability lies between 0 and 1")
    if not calibrated:
        score_item = tree.number(Measurement(codes.MODEL_SCORE, round(score, 6), codes.NO_UNITS))
        return [score_item, tree.text(codes.COMMENT, "The model's score is no probability.")]
    certainty = round(100 * score, 4)
    return [
        tree.number(Measurement(codes.CERTAINTY, certainty, codes.PERCENT)),
        tree.text(codes.COMMENT, "Certainty is the model's calibrated probability."),
    ]


def _statement(said: Qualitative) -> list[ContentItem]:
    """Return the statement as CODE, with its score (TID 1501 rows 10 and 11)."""
    items: list[ContentItem] = []
    if said.probability is not None:
        items += _score(said.finding, said.probability, calibrated=said.calibrated)
    return [*items, tree.code(said.finding, said.value)]


def _predecessor(naming: Naming) -> list[Dataset]:
    if naming.predecessor is None:
        return []
    series, instance, study, sop_class = naming.predecessor
    earlier = Dataset()
    earlier.StudyInstanceUID = study
    earlier.SeriesInstanceUID = series
    earlier.SOPInstanceUID = instance
    earlier.SOPClassUID = sop_class
    return [earlier]


def _root(sections: Sequence[ContentItem], images: Sequence[Dataset], model: Model) -> ContentItem:
    modality = str(images[0].get("Modality", "") or "")
    procedure = codes.PROCEDURES.get(modality, codes.PROCEDURE_OTHER)
    items = [
        tree.code(codes.LANGUAGE, codes.ENGLISH, tree.MODIFIER),
        *tree.observer(model),
        tree.code(codes.PROCEDURE, procedure, tree.MODIFIER),
        tree.library(images),
        *sections,
    ]
    return tree.container(codes.REPORT, items, template="1500", root=True)


def _document(
    sections: Sequence[ContentItem],
    images: Sequence[Dataset],
    evidence: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    naming: Naming,
    partial: str | None,
) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = Comprehensive3DSR(
            evidence=[header(s) for s in evidence],
            content=_root(sections, images, model),
            series_instance_uid=naming.series_instance_uid,
            series_number=naming.series_number,
            sop_instance_uid=naming.sop_instance_uid,
            instance_number=naming.instance_number,
            manufacturer=codes.short(gateway.manufacturer),
            is_complete=partial is None,
            is_final=False,
            previous_versions=_predecessor(naming) or None,
            specific_character_set="ISO_IR 192",
        )
    if partial is not None:
        ds.CompletionFlagDescription = codes.short(partial)
    plain = Dataset()
    plain.update(ds)
    plain.file_meta = ds.file_meta
    plain.preamble = ds.preamble
    dress(
        plain,
        source=images[0],
        model=model,
        gateway=gateway,
        naming=naming,
        description=f"{model.name} {model.version} SR",
    )
    return plain
