"""What came out of a model: coded, with units, and nothing that names a patient.

Findings are the only thing a run hands to the rooms that write DICOM, HL7 or
FHIR. They are plain frozen values; `to_json` and `from_json` are exact
inverses, so that a run's outcome survives a restart as bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = [
    "ABSENT",
    "PRESENT",
    "UNDETERMINED",
    "VOLUME",
    "Box",
    "Code",
    "Findings",
    "Measurement",
    "Qualitative",
    "Segment",
]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: (CodeValue, CodingSchemeDesignator, CodeMeaning), PS3.3 table 8.8-1."""

    value: str
    scheme: str
    meaning: str


PRESENT = Code("52101004", "SCT", "Present")
ABSENT = Code("272519000", "SCT", "Absent")
UNDETERMINED = Code("373068000", "SCT", "Undetermined")
VOLUME = Code("118565006", "SCT", "Volume")


@dataclass(frozen=True, slots=True)
class Segment:
    """One label of a mask on the source geometry.

    `number` is the SEG's SegmentNumber (1-based, contiguous); `index` is the
    value of the voxels in the mask array; `voxels` counts them. `color` is
    sRGB 0..255.
    """

    number: int
    index: int
    label: str
    category: Code
    type: Code
    voxels: int
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its UCUM unit; `segment` is a Segment.number, or None for the whole study."""

    what: Code
    value: float
    unit: Code
    segment: int | None = None
    method: Code | None = None


@dataclass(frozen=True, slots=True)
class Qualitative:
    """A statement about a finding: present, absent or undetermined (PS3.16 CID 240).

    `probability` is 0..1 or None; it is called a probability of disease only
    where `calibrated`. `sop_instance_uid` is the image that shows it best.
    """

    finding: Code
    value: Code
    probability: float | None = None
    calibrated: bool = False
    threshold: float | None = None
    sop_instance_uid: str | None = None
    operating_point: str | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A finding with a place: a box on the source images.

    Columns x0..x1 and rows y0..y1 are pixel edges (0 is the outer edge of the
    first pixel). `first` to `last` are the images it touches and `frame` the one
    in their middle, as places in Findings.frames. `score` is 0..1, a
    probability only where `calibrated`.
    """

    finding: Code
    label: str
    score: float
    frame: int
    first: int
    last: int
    x0: float
    y0: float
    x1: float
    y1: float
    calibrated: bool = False
    threshold: float | None = None
    operating_point: str | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """The outcome of one run.

    `frames` are the SOPInstanceUIDs of the source images in the order of the
    mask's first axis; the mask itself (uint8 or uint16, [frame, row, column])
    travels beside the findings as an array. `statement` is the one sentence a
    person reads first; it is positive also when nothing was found.
    `voxel_mm3` is the volume of a source voxel in cubic millimetres, or None
    for projections. `warnings` are said to the reader (an age that was unknown).
    `parameters` say how the numbers were read (operating points and thresholds).
    `priority` is the model's triage; None where it does none.
    """

    kind: Literal["segmentation", "classification", "measurement", "detection"]
    statement: str
    frames: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    qualitative: tuple[Qualitative, ...] = ()
    voxel_mm3: float | None = None
    nothing_found: bool = False
    warnings: tuple[str, ...] = ()
    parameters: tuple[str, ...] = field(default=())
    boxes: tuple[Box, ...] = ()
    priority: Literal["STAT", "ROUTINE"] | None = None

    def to_json(self) -> dict[str, Any]:
        """Render as JSON values; `from_json` gives back an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Findings:
        """Read what `to_json` wrote; raises KeyError or TypeError on anything else."""
        return cls(
            kind=data["kind"],
            statement=data["statement"],
            frames=tuple(data["frames"]),
            segments=tuple(
                Segment(
                    **{
                        **s,
                        "category": Code(**s["category"]),
                        "type": Code(**s["type"]),
                        "color": tuple(s["color"]),
                    }
                )
                for s in data["segments"]
            ),
            measurements=tuple(
                Measurement(
                    **{
                        **m,
                        "what": Code(**m["what"]),
                        "unit": Code(**m["unit"]),
                        "method": Code(**m["method"]) if m["method"] else None,
                    }
                )
                for m in data["measurements"]
            ),
            qualitative=tuple(
                Qualitative(**{**q, "finding": Code(**q["finding"]), "value": Code(**q["value"])})
                for q in data["qualitative"]
            ),
            voxel_mm3=data["voxel_mm3"],
            nothing_found=data["nothing_found"],
            warnings=tuple(data["warnings"]),
            parameters=tuple(data["parameters"]),
            # Runs of earlier versions have none.
            boxes=tuple(
                Box(**{**b, "finding": Code(**b["finding"])}) for b in data.get("boxes", ())
            ),
            priority=data.get("priority"),
        )
