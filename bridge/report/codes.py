"""The coded words of our reports, each as PS3.16 spells it (the checker compares)."""

from __future__ import annotations

from models.findings import Code

__all__ = ["PROCEDURES", "concept", "short"]


def concept(value: str, scheme: str, meaning: str) -> Code:
    """Return a Code; a short name for tables."""
    return Code(value, scheme, meaning)


def short(text: str, limit: int = 64) -> str:
    """Return `text` on one line and cut to `limit` characters (LO and SH values)."""
    line = " ".join(text.replace("\\", "/").split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


REPORT = concept("126000", "DCM", "Imaging Measurement Report")
MEASUREMENTS = concept("126010", "DCM", "Imaging Measurements")
DERIVED = concept("126011", "DCM", "Derived Imaging Measurements")
EVALUATIONS = concept("C0034375", "UMLS", "Qualitative Evaluations")
GROUP = concept("125007", "DCM", "Measurement Group")
TRACKING_ID = concept("112039", "DCM", "Tracking Identifier")
TRACKING_UID = concept("112040", "DCM", "Tracking Unique Identifier")
FINDING = concept("121071", "DCM", "Finding")
FINDING_CATEGORY = concept("276214006", "SCT", "Finding category")
METHOD = concept("370129005", "SCT", "Measurement Method")
REFERENCED_SEGMENT = concept("121191", "DCM", "Referenced Segment")
SOURCE_SERIES = concept("121232", "DCM", "Source series for segmentation")
SOURCE_OF_MEASUREMENT = concept("121112", "DCM", "Source of Measurement")
ORIGINAL_SOURCE = concept("111040", "DCM", "Original Source")
PROCEDURE = concept("121058", "DCM", "Procedure reported")
LANGUAGE = concept("121049", "DCM", "Language of Content Item and Descendants")
ENGLISH = concept("en", "RFC5646", "English")
OBSERVER_TYPE = concept("121005", "DCM", "Observer Type")
DEVICE = concept("121007", "DCM", "Device")
DEVICE_UID = concept("121012", "DCM", "Device Observer UID")
DEVICE_NAME = concept("121013", "DCM", "Device Observer Name")
DEVICE_MANUFACTURER = concept("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = concept("121015", "DCM", "Device Observer Model Name")
ALGORITHM_NAME = concept("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = concept("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = concept("111002", "DCM", "Algorithm Parameters")
ALGORITHM_FAMILY = concept("111000", "DCM", "Algorithm Family")
CERTAINTY = concept("111012", "DCM", "Certainty of Finding")
PERCENT = concept("%", "UCUM", "Percent")
MODEL_SCORE = concept("MODEL_SCORE", "99RADSEAL", "Model score")
NO_UNITS = concept("1", "UCUM", "no units")
COMMENT = concept("121106", "DCM", "Comment")
NARRATIVE = concept("111412", "DCM", "Narrative Summary")
CAD_SUMMARY = concept("111017", "DCM", "CAD Processing and Findings Summary")
NONE_SUCCEEDED = concept("111245", "DCM", "No algorithms succeeded; without findings")
ANALYSES = concept("111065", "DCM", "Summary of Analyses")
FAILED = concept("111224", "DCM", "Failed")
IMAGE_LIBRARY = concept("111028", "DCM", "Image Library")
LIBRARY_GROUP = concept("126200", "DCM", "Image Library Group")
MODALITY = concept("121139", "DCM", "Modality")
PROCESSING = concept("109102", "DCM", "Processing Equipment")
ACQUISITION = concept("109101", "DCM", "Acquisition Equipment")

PROCEDURES: dict[str, Code] = {
    "CT": concept("25045-6", "LN", "CT unspecified body region"),
    "MR": concept("25056-3", "LN", "MRI unspecified body region"),
    "PT": concept("44136-0", "LN", "PET unspecified body region"),
    "NM": concept("49118-3", "LN", "NM unspecified body region"),
    "CR": concept("43468-8", "LN", "XR unspecified body region"),
    "DX": concept("43468-8", "LN", "XR unspecified body region"),
}
"""The imaging procedure that was read (PS3.16 CID 100), by the source's modality."""

PROCEDURE_OTHER = concept("363679005", "SCT", "Imaging procedure")

MODALITIES: dict[str, str] = {
    "CT": "Computed Tomography",
    "MR": "Magnetic Resonance",
    "PT": "Positron emission tomography",
    "NM": "Nuclear Medicine",
    "CR": "Computed Radiography",
    "DX": "Digital Radiography",
    "US": "Ultrasound",
    "MG": "Mammography",
    "XA": "X-Ray Angiography",
    "OT": "Other Modality",
    "SC": "Secondary Capture",
}
"""Modality codes of scheme DCM (CID 33) with their meanings."""
