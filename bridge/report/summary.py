"""Summary image: a Secondary Capture of one page, for a PACS that does not show SR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from bridge.report.codes import short
from bridge.report.envelope import UNVERIFIED, dress, unique
from bridge.report.errors import ReportError
from bridge.report.identity import Gateway, Model, Naming
from bridge.report.page import SIZE, Colour, Edges, Page, Row, draw, plain_number
from models.findings import ABSENT, PRESENT, Findings, Measurement, Segment

__all__ = ["compose", "picture"]

_RED, _GREEN = (255, 122, 107), (110, 201, 140)
_BOXES = ((255, 191, 71), (86, 180, 233), (204, 121, 167), (0, 158, 115), (240, 228, 66))
_Bytes = NDArray[np.uint8]


def _measured(measurement: Measurement, segments: dict[int, Segment]) -> Row:
    segment = segments.get(measurement.segment or 0)
    unit = measurement.unit.value
    what = measurement.what.meaning
    if segment is not None and len(segments) > 1:
        volume_only = measurement.what.value == "118565006"
        what = segment.label if volume_only else f"{segment.label}: {what}"
    elif segment is not None and what.lower() == "volume":
        what = f"{segment.label}, {what.lower()}"
    return Row(
        what=what,
        value=plain_number(measurement.value),
        unit="" if unit == "1" else unit.replace("[hnsf'U]", "HU"),
        color=segment.color if segment else None,
    )


def _certainty(score: float, calibrated: bool) -> str:
    """Call a score a probability only where the vendor says that it is calibrated."""
    return f"probability {100 * score:.0f} %" if calibrated else f"score {score:.2f}"


def _rows(findings: Findings) -> tuple[Row, ...]:
    segments = {s.number: s for s in findings.segments}
    said = [
        Row(
            what=q.finding.meaning,
            value=q.value.meaning,
            color=_RED if q.value == PRESENT else _GREEN if q.value == ABSENT else None,
            under="" if q.probability is None else _certainty(q.probability, q.calibrated),
        )
        for q in findings.qualitative
    ]
    boxed = [
        Row(
            what=f"{box.finding.meaning}, image {box.frame + 1}",
            value=_certainty(box.score, box.calibrated),
            color=_BOXES[k % len(_BOXES)],
        )
        for k, box in enumerate(findings.boxes)
    ]
    return (*boxed, *said, *(_measured(m, segments) for m in findings.measurements))


def _said(findings: Findings | None) -> str:
    """Give the sentence a person reads first, with the triage priority before it."""
    if findings is None:
        return ""
    return f"{findings.priority}: {findings.statement}" if findings.priority else findings.statement


def _drawn(findings: Findings, boxes: NDArray[np.float32]) -> tuple[tuple[Edges, Colour], ...]:
    """Give the boxes on the picture with the colours of their rows."""
    if boxes.ndim != 2 or boxes.shape[1] != 5 or not np.isfinite(boxes).all():
        raise ReportError("boxes of a preview are rows of five finite numbers")
    drawn = []
    for place, x0, y0, x1, y1 in boxes.astype(float).tolist():
        if not 0 <= place < len(findings.boxes):
            raise ReportError("a box of a preview is none of the findings")
        drawn.append(((x0, y0, x1, y1), _BOXES[int(place) % len(_BOXES)]))
    return tuple(drawn)


def _date(source: Dataset) -> str:
    day = str(source.get("StudyDate", "") or "")
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 and day.isdigit() else "unknown"


def _aspect(source: Dataset, image: NDArray[np.uint8] | None) -> float:
    """Return row by column spacing where the picture is a source slice, else 1."""
    spacing = source.get("PixelSpacing") or source.get("ImagerPixelSpacing")
    same = image is not None and image.shape == (source.get("Rows"), source.get("Columns"))
    if not spacing or not same or float(spacing[1]) <= 0 or float(spacing[0]) <= 0:
        return 1.0
    return float(spacing[0]) / float(spacing[1])


def picture(
    findings: Findings | None,
    image: NDArray[np.uint8] | None,
    labels: NDArray[np.uint8] | None,
    sources: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    failure: str | None = None,
    heat: _Bytes | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Return the page as RGB uint8 [512, 512, 3]; see `compose`."""
    if findings is None and failure is None:
        raise ReportError("a summary shows findings or says why there are none")
    if image is not None and (image.ndim != 2 or image.dtype != np.uint8):
        raise ReportError("a preview is uint8 and has the axes row, column")
    if image is not None and any(
        other is not None and other.shape != image.shape for other in (labels, heat)
    ):
        raise ReportError("a preview, its labels and its heat map have the same shape")
    outlines = []
    if findings is not None and labels is not None:
        outlines = [(labels == min(s.number, 255), s.color) for s in findings.segments]
    research = "For research use only; not for diagnosis. " if model.research_only else ""
    source = sources[0]
    ran = (
        f"Study of {_date(source)}, {source.get('Modality', '') or 'image'}, {len(sources)} images"
    )
    return draw(
        Page(
            title=model.name,
            subtitle=f"version {model.version}, {model.vendor}, model {model.digest[:12]}",
            statement=failure or _said(findings),
            rows=() if failure or findings is None else _rows(findings),
            footer=(f"{research}{UNVERIFIED}.", f"{ran}. {gateway.site_name}"),
            label=UNVERIFIED,
            image=image,
            heat=heat,
            boxes=() if findings is None or boxes is None else _drawn(findings, boxes),
            outlines=tuple((m, c) for m, c in outlines if m.any()),
            aspect=_aspect(source, image),
            warning="" if findings is None else "; ".join(findings.warnings),
            failed=failure is not None,
        )
    )


def compose(
    findings: Findings | None,
    image: NDArray[np.uint8] | None,
    labels: NDArray[np.uint8] | None,
    sources: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    naming: Naming,
    failure: str | None = None,
    heat: _Bytes | None = None,
    boxes: NDArray[np.float32] | None = None,
) -> Dataset:
    """Return the Secondary Capture (512 x 512 RGB, Explicit VR Little Endian).

    `image` is a slice as uint8 [row, column], drawn as it is; `labels` has its
    shape and holds Segment.number, `heat` has it and is 0..255; `boxes` are those of
    models.preview. `failure` is the sentence of a run
    without result: findings and pictures may then be None.
    """
    images = unique(sources)
    pixels = picture(findings, image, labels, images, model, gateway, failure, heat, boxes)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = UID(naming.sop_instance_uid)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.FileMetaInformationVersion = b"\x00\x01"
    ds.preamble = bytes(128)
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = naming.sop_instance_uid
    ds.SeriesInstanceUID = naming.series_instance_uid
    ds.InstanceNumber = naming.instance_number
    ds.Modality = str(images[0].get("Modality", "") or "OT")
    ds.ConversionType = "WSD"
    ds.ImageType = ["DERIVED", "SECONDARY", "AI"]
    ds.BurnedInAnnotation = "YES"
    ds.Laterality = ""
    ds.PatientOrientation = ""
    ds.ImageComments = UNVERIFIED
    ds.SamplesPerPixel = 3
    ds.PhotometricInterpretation = "RGB"
    ds.PlanarConfiguration = 0
    ds.Rows = ds.Columns = SIZE
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit = 7
    ds.PixelRepresentation = 0
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    dress(
        ds,
        source=images[0],
        model=model,
        gateway=gateway,
        naming=naming,
        description=f"{short(model.name, 30)} summary",
    )
    return ds
