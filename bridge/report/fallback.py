"""The same report in an older SR class, for a PACS that does not take Comprehensive 3D SR. Pure.

Our content trees use nothing that Comprehensive SR (PS3.3 A.35.3) or Enhanced SR (A.35.2)
forbid: no SCOORD3D, no reference by position. So the content stays, item for item; class,
UIDs and series change, and with them the object's content digest.
"""

from __future__ import annotations

import copy

from pydicom import Dataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
)

from bridge.report.errors import ReportError

__all__ = ["CLASSES", "recast"]

CLASSES = {
    "sr": str(Comprehensive3DSRStorage),
    "sr-comprehensive": str(ComprehensiveSRStorage),
    "sr-enhanced": str(EnhancedSRStorage),
}


def _uses_3d(item: Dataset) -> bool:
    return item.get("ValueType") == "SCOORD3D" or any(
        _uses_3d(child) for child in item.get("ContentSequence", ())
    )


def recast(
    sr: Dataset, kind: str, *, sop_instance_uid: str, series_instance_uid: str, series_number: int
) -> Dataset:
    """Return a copy of a report of ours as the SR class that `kind` names.

    Raises ReportError where the content holds what that class forbids.
    """
    if _uses_3d(sr):
        raise ReportError("the report holds 3-D coordinates, which no older SR class takes")
    made = copy.deepcopy(sr)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UID(CLASSES[kind])
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    made.SeriesInstanceUID = series_instance_uid
    made.SeriesNumber = series_number
    return made
