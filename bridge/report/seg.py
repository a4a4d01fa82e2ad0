"""Segmentation (PS3.3 A.51): the mask of a run as BINARY frames on its source images.

Only frames that hold something are written. Rows and Columns stay those of the
source: viewers refuse anything else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import Segmentation, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from bridge.report.codes import short
from bridge.report.envelope import dress, header, unique
from bridge.report.errors import ReportError
from bridge.report.identity import Gateway, Model, Naming, derived_uid
from models.findings import Code, Findings, Segment

__all__ = ["compose", "tracking_identifier"]


def tracking_identifier(model: Model, segment: Segment) -> str:
    """Return the Tracking Identifier (0062,0020), the same in SEG and SR."""
    return short(f"{segment.label} ({model.name} {model.version})")


def _coded(code: Code) -> PydicomCode:
    return PydicomCode(code.value, code.scheme, short(code.meaning))


def _description(segment: Segment, model: Model, naming: Naming, text: str) -> SegmentDescription:
    algorithm = AlgorithmIdentificationSequence(
        name=short(model.name),
        family=_coded(model.family),
        version=short(model.version),
        source=short(model.vendor),
    )
    algorithm[0].AlgorithmParameters = text
    return SegmentDescription(
        segment_number=segment.number,
        segment_label=short(segment.label),
        segmented_property_category=_coded(segment.category),
        segmented_property_type=_coded(segment.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
        tracking_uid=naming.tracking_uid(segment.number),
        tracking_id=tracking_identifier(model, segment),
        display_color=CIELabColor.from_rgb(*segment.color),
    )


def _numbered(findings: Findings, mask: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the mask with segment numbers in place of the model's label values.

    A mask with a layer per segment (labels that overlap) has its numbers already.
    """
    if findings.segments and mask.ndim == 4 and mask.shape[3] == len(findings.segments):
        if mask.dtype != np.uint8 or int(mask.max(initial=0)) > 1:
            raise ReportError("the layers of a mask are uint8 and hold 0 and 1")
        return mask
    if mask.ndim != 3 or mask.dtype not in (np.uint8, np.uint16):
        raise ReportError("a mask is uint8 or uint16 and has the axes frame, row, column")
    if not findings.segments:
        raise ReportError("findings without segments cannot become a SEG")
    if all(s.number == s.index for s in findings.segments):
        highest = max(s.number for s in findings.segments)
        if int(mask.max(initial=0)) <= highest:
            return mask
    table = np.zeros(int(np.iinfo(mask.dtype).max) + 1, np.uint16)
    for segment in findings.segments:
        table[segment.index] = segment.number
    small = len(findings.segments) < 256
    numbered: NDArray[np.integer] = table.astype(np.uint8 if small else np.uint16)[mask]
    return numbered


def _checked(mask: NDArray[np.integer], sources: Sequence[Dataset], findings: Findings) -> None:
    frames = sum(int(s.get("NumberOfFrames", 1) or 1) for s in sources)
    shape = (frames, int(sources[0].Rows), int(sources[0].Columns))
    if mask.shape[:3] != shape:
        raise ReportError(f"the mask is {mask.shape}, its source images are {shape}")
    uids = [str(s.SOPInstanceUID) for s in sources]
    if len(sources) > 1 and list(findings.frames) != uids:
        raise ReportError("the source images are not in the order of the mask's frames")


def compose(
    findings: Findings,
    mask: NDArray[np.integer],
    sources: Sequence[Dataset],
    model: Model,
    gateway: Gateway,
    naming: Naming,
) -> Dataset:
    """Return the SEG: BINARY, Explicit VR Little Endian, one segment per Findings segment.

    `mask` is [frame, row, column] and holds Segment.index values, or, where labels
    overlap, [frame, row, column, Segment.number - 1] of 0 and 1; `sources` are the
    source headers in the order of its first axis (one header if the source
    is a multi-frame image). Raises ReportError if mask, headers and findings do
    not belong together.
    """
    images = unique(sources)
    _checked(mask, images, findings)
    numbered = _numbered(findings, mask)
    if not numbered.any():
        raise ReportError("the mask is empty; say that nothing was found in the SR instead")
    text = "; ".join((*findings.parameters, *model.parameters, f"model_sha256={model.digest}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = Segmentation(
            source_images=[header(s) for s in images],
            pixel_array=numbered,
            segmentation_type="BINARY",
            segment_descriptions=[_description(s, model, naming, text) for s in findings.segments],
            series_instance_uid=naming.series_instance_uid,
            series_number=naming.series_number,
            sop_instance_uid=naming.sop_instance_uid,
            instance_number=naming.instance_number,
            manufacturer=short(gateway.manufacturer),
            manufacturer_model_name=short(gateway.model_name),
            software_versions=short(gateway.software_versions),
            device_serial_number=short(gateway.serial),
            content_label="AI_SEGMENTATION",
            content_description=short(findings.statement),
            content_creator_name=f"{short(model.name, 60)}^",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            omit_empty_frames=True,
        )
    _rename_dimensions(ds, naming)
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
        description=f"{model.name} {model.version} SEG",
    )
    return plain


def _rename_dimensions(ds: Dataset, naming: Naming) -> None:
    """Replace highdicom's random Dimension Organization UID by a derived one."""
    uid = derived_uid("dimensions", naming.sop_instance_uid)
    for item in [*ds.DimensionOrganizationSequence, *ds.DimensionIndexSequence]:
        item.DimensionOrganizationUID = uid
