"""Who made a result, and what it is called.

A result UID is derived, never drawn: a retry of the same outcome names the same
instance (design §4.4). The *model* is the processing equipment (IHE AIR
6.5.3.1), the *gateway* is the general equipment.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from models.findings import Code

__all__ = [
    "ARTIFICIAL_INTELLIGENCE",
    "WHOLE_STUDY",
    "Gateway",
    "Model",
    "Naming",
    "Predecessor",
    "derived_uid",
    "device_uid",
]

ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")

WHOLE_STUDY = 0
"""The number under which `Naming.tracking` is asked for what belongs to no segment."""

Predecessor = tuple[str, str, str, str]
"""(series, SOP instance, study, SOP class) UIDs of the object that this one replaces."""


def derived_uid(*parts: str) -> str:
    """Return the UID 2.25.<n> that these parts name, the same on every machine.

    n is the UUID made of the first 16 bytes of SHA-256 over the parts, each
    preceded by its length in UTF-8 bytes as a big-endian u64; version (8) and
    variant bits are set as RFC 9562 asks. PS3.5 B.2 is the 2.25 form.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    raw = bytearray(digest.digest()[:16])
    raw[6] = (raw[6] & 0x0F) | 0x80
    raw[8] = (raw[8] & 0x3F) | 0x80
    return f"2.25.{uuid.UUID(bytes=bytes(raw)).int}"


def device_uid(digest: str) -> str:
    """Return the Device UID of the model with this digest (hex): it changes with the weights."""
    return derived_uid("device", digest.lower())


@dataclass(frozen=True, slots=True)
class Model:
    """The algorithm as results name it.

    `digest` is the hex SHA-256 of its model file. `source` is written nowhere
    that AIR compares: there the vendor stands. `parameters` are said beside the
    parameters of each run.
    """

    name: str
    version: str
    vendor: str
    digest: str
    id: str
    device_uid: str
    family: Code = ARTIFICIAL_INTELLIGENCE
    source: str = ""
    parameters: tuple[str, ...] = ()
    research_only: bool = True


@dataclass(frozen=True, slots=True)
class Gateway:
    """The radseal of a site: the equipment that composed the object."""

    site_name: str
    manufacturer: str = "radseal"
    model_name: str = "radseal"
    software_versions: str = "0"
    serial: str = "0"


@dataclass(frozen=True, slots=True)
class Naming:
    """The names and times of one object; all of it is decided before it is composed.

    `tracking` gives the Tracking UID of a segment number, of `WHOLE_STUDY`, or
    of -k for the k-th qualitative statement; where a mapping has none, it is
    derived from the instance. `started` and `finished` are aware; they are
    written in the source's time zone where the source says one, else in their
    own.
    """

    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    instance_number: int
    tracking: Callable[[int], str] | Mapping[int, str]
    revision: int
    started: datetime
    finished: datetime
    predecessor: Predecessor | None = None

    def tracking_uid(self, number: int) -> str:
        """Return the Tracking UID of this segment number (see the class)."""
        if callable(self.tracking):
            return self.tracking(number)
        known = self.tracking.get(number)
        return known or derived_uid("tracking", self.sop_instance_uid, str(number))
