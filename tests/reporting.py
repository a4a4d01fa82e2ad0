"""Source headers and findings for the tests of bridge/report, made here and of nobody."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from pydicom.dataset import Dataset

from bridge.report.identity import Gateway, Model, Naming, derived_uid, device_uid
from models.findings import (
    ABSENT,
    PRESENT,
    VOLUME,
    Code,
    Findings,
    Measurement,
    Qualitative,
    Segment,
)

ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
LUNG = Code("39607008", "SCT", "Lung")
ML = Code("mL", "UCUM", "milliliter")
PERCENT = Code("%", "UCUM", "Percent")
LOW = Code("LAA950", "99RADSEAL", "Low attenuation area")
NODULE = Code("27925004", "SCT", "Nodule")
STARTED = datetime(2026, 11, 24, 10, 0, 0, 250000, tzinfo=UTC)
FINISHED = datetime(2026, 11, 24, 10, 0, 7, tzinfo=UTC)
ROWS, COLUMNS, FRAMES = 10, 12, 4

MODEL = Model(
    name="Lung density",
    version="1.0.0",
    vendor="Example vendor",
    digest="ab" * 32,
    id="org.example.lung",
    device_uid=device_uid("ab" * 32),
    parameters=("window=lung",),
)
GATEWAY = Gateway("General Hospital", software_versions="0.1.0", serial="site-1")


def naming(kind: str, **changed: object) -> Naming:
    values: dict = {
        "sop_instance_uid": derived_uid("sop", kind),
        "series_instance_uid": derived_uid("series", kind),
        "series_number": 9001,
        "instance_number": 1,
        "tracking": lambda number: derived_uid("track", str(number)),
        "revision": 1,
        "started": STARTED,
        "finished": FINISHED,
    }
    return Naming(**{**values, **changed})


def sources(**changed: object) -> list[Dataset]:
    made = []
    for k in range(FRAMES):
        ds = Dataset()
        ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        ds.SOPInstanceUID = derived_uid("image", str(k))
        ds.StudyInstanceUID = derived_uid("study")
        ds.SeriesInstanceUID = derived_uid("source series")
        ds.FrameOfReferenceUID = derived_uid("frame of reference")
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.StudyDate, ds.StudyTime = "20261124", "095900"
        ds.AccessionNumber = "A-1"
        ds.Modality = "CT"
        ds.Manufacturer, ds.ManufacturerModelName = "Scanners", "One"
        ds.ReferringPhysicianName = "Doctor^Refer"
        ds.StudyDescription = "Chest"
        ds.PatientName = "Müller^Jürgen"
        ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "P-1", "19660101", "M"
        ds.PatientAge = "060Y"
        ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 2, k + 1
        ds.ImagePositionPatient = [-10.0, -20.0, -30.0 + 2.5 * k]
        ds.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        ds.PixelSpacing, ds.SliceThickness = [0.8, 0.5], 2.5
        ds.Rows, ds.Columns = ROWS, COLUMNS
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 16
        for keyword, value in changed.items():
            setattr(ds, keyword, value)
        made.append(ds)
    return made


def mask() -> np.ndarray:
    made = np.zeros((FRAMES, ROWS, COLUMNS), np.uint8)
    made[1, 2:5, 3:7] = 7
    made[2, 2:6, 3:8] = 7
    made[2, 7:9, 1:3] = 3
    return made


def segmentation(**changed: object) -> Findings:
    """Two labels whose values in the mask (7, 3) differ from their numbers (1, 2)."""
    values: dict = {
        "kind": "segmentation",
        "statement": "Lung volume 0.032 mL.",
        "frames": tuple(str(s.SOPInstanceUID) for s in sources()),
        "segments": (
            Segment(1, 7, "Lung", ANATOMY, LUNG, 32, (64, 180, 255)),
            Segment(2, 3, "Spot", ANATOMY, Code("SPOT", "99RADSEAL", "Spot"), 4, (255, 140, 0)),
        ),
        "measurements": (
            Measurement(VOLUME, 0.032, ML, 1),
            Measurement(VOLUME, 0.004, ML, 2),
            Measurement(LOW, 3.25, PERCENT),
        ),
        "voxel_mm3": 1.0,
        "parameters": ("threshold=-500",),
    }
    return Findings(**{**values, **changed})


def classification() -> Findings:
    uids = tuple(str(s.SOPInstanceUID) for s in sources())
    return Findings(
        kind="classification",
        statement="Nodule present; no pneumothorax.",
        frames=uids,
        qualitative=(
            Qualitative(NODULE, PRESENT, 0.83, threshold=0.5, sop_instance_uid=uids[3]),
            Qualitative(Code("36118008", "SCT", "Pneumothorax"), ABSENT, 0.1, calibrated=True),
        ),
    )
