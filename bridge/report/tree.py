"""Content items of a TID 1500 report, in the order and with the names that readers need.

Each function returns the items of one template or row; highdicom's value types
check value types and relationships. Rows are those of PS3.16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from highdicom.sr import (
    CodeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode

from bridge.report import codes
from bridge.report.errors import ReportError
from bridge.report.identity import Model
from bridge.report.region import Place
from models.findings import Code, Measurement

__all__ = [
    "algorithm",
    "code",
    "container",
    "library",
    "number",
    "observer",
    "place",
    "segment",
    "text",
    "tracking",
    "uid",
]

CONTAINS = "CONTAINS"
CONTEXT = "HAS OBS CONTEXT"
MODIFIER = "HAS CONCEPT MOD"
ACQUISITION = "HAS ACQ CONTEXT"


def _coded(value: Code) -> PydicomCode:
    return PydicomCode(value.value, value.scheme, codes.short(value.meaning))


def code(name: Code, value: Code, relation: str = CONTAINS) -> ContentItem:
    """Return a CODE item."""
    return CodeContentItem(_coded(name), _coded(value), relationship_type=relation)


def text(name: Code, value: str, relation: str = CONTAINS) -> ContentItem:
    """Return a TEXT item."""
    return TextContentItem(_coded(name), value, relationship_type=relation)


def uid(name: Code, value: str, relation: str = CONTAINS) -> ContentItem:
    """Return a UIDREF item."""
    return UIDRefContentItem(_coded(name), value, relationship_type=relation)


def container(
    name: Code,
    items: Iterable[ContentItem],
    *,
    template: str | None = None,
    root: bool = False,
) -> ContentItem:
    """Return a CONTAINER with these items; a template gives it a template identifier."""
    box = ContainerContentItem(
        _coded(name),
        is_content_continuous=False,
        template_id=template,
        relationship_type=None if root else CONTAINS,
    )
    box.ContentSequence = ContentSequence(list(items), is_root=False)
    return box


def number(measurement: Measurement, extra: Sequence[ContentItem] = ()) -> ContentItem:
    """Return a NUM item with its method (TID 1419 row 5, TID 300 row 1)."""
    if not math.isfinite(measurement.value):
        raise ReportError(f"{measurement.what.meaning} is not a finite number")
    item = NumContentItem(
        _coded(measurement.what),
        float(measurement.value),
        _coded(measurement.unit),
        relationship_type=CONTAINS,
    )
    inner = list(extra)
    if measurement.method is not None:
        inner.insert(0, code(codes.METHOD, measurement.method, MODIFIER))
    if inner:
        item.ContentSequence = ContentSequence(inner)
    return item


def observer(model: Model) -> list[ContentItem]:
    """Return TID 1001/1002/1004: the model is the observing device (AIR table 6.5.3.1-1)."""
    return [
        code(codes.OBSERVER_TYPE, codes.DEVICE, CONTEXT),
        uid(codes.DEVICE_UID, model.device_uid, CONTEXT),
        text(codes.DEVICE_NAME, codes.short(model.id), CONTEXT),
        text(codes.DEVICE_MANUFACTURER, codes.short(model.vendor), CONTEXT),
        text(codes.DEVICE_MODEL, codes.short(model.name), CONTEXT),
    ]


def algorithm(model: Model, parameters: Sequence[str]) -> list[ContentItem]:
    """Return TID 4019; the digest of the model is one of its parameters."""
    said = [*parameters, *model.parameters, f"model_sha256={model.digest}"]
    return [
        text(codes.ALGORITHM_NAME, codes.short(model.name), MODIFIER),
        text(codes.ALGORITHM_VERSION, codes.short(model.version), MODIFIER),
        *(text(codes.ALGORITHM_PARAMETERS, p, MODIFIER) for p in said),
        code(codes.ALGORITHM_FAMILY, model.family, MODIFIER),
    ]


def tracking(identifier: str, unique: str) -> list[ContentItem]:
    """Return rows 2 and 3 of a measurement group; readers expect them first."""
    return [
        text(codes.TRACKING_ID, identifier, CONTEXT),
        uid(codes.TRACKING_UID, unique, CONTEXT),
    ]


def segment(seg: Dataset, segment_number: int) -> ContentItem:
    """Return TID 1411 row 7: the whole segment."""
    return ImageContentItem(
        _coded(codes.REFERENCED_SEGMENT),
        referenced_sop_class_uid=str(seg.SOPClassUID),
        referenced_sop_instance_uid=str(seg.SOPInstanceUID),
        referenced_segment_numbers=segment_number,
        relationship_type=CONTAINS,
    )


def place(where: Place) -> ContentItem:
    """Return TID 1501 rows 10c and 10d: a closed polyline, selected from its image."""
    item = ScoordContentItem(
        _coded(codes.SOURCE_OF_MEASUREMENT),
        graphic_type="POLYLINE",
        graphic_data=where.polyline(),
        relationship_type=CONTAINS,
    )
    image = ImageContentItem(
        _coded(codes.ORIGINAL_SOURCE),
        referenced_sop_class_uid=where.sop_class_uid,
        referenced_sop_instance_uid=where.sop_instance_uid,
        referenced_frame_numbers=where.frame,
        relationship_type="SELECTED FROM",
    )
    item.ContentSequence = ContentSequence([image])
    return item


def library(sources: Sequence[Dataset]) -> ContentItem:
    """Return TID 1600: the images that the model was given, in one group."""
    modality = str(sources[0].get("Modality", "") or "OT")
    meaning = codes.MODALITIES.get(modality)
    items: list[ContentItem] = []
    if meaning is not None:
        items.append(code(codes.MODALITY, Code(modality, "DCM", meaning), ACQUISITION))
    items.extend(
        ImageContentItem(
            _coded(codes.ORIGINAL_SOURCE),
            referenced_sop_class_uid=str(source.SOPClassUID),
            referenced_sop_instance_uid=str(source.SOPInstanceUID),
            relationship_type=CONTAINS,
        )
        for source in sources
    )
    return container(codes.IMAGE_LIBRARY, [container(codes.LIBRARY_GROUP, items)], template="1600")
