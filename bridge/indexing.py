"""What the indexer asks of the house: what to keep of a header, what is readable, what is equal."""

from __future__ import annotations

from pathlib import Path

from bridge.header import same_pixel_bytes
from bridge.rooms import Rooms
from models import sandbox, select
from models.errors import RunFailed

__all__ = ["ATTRIBUTES", "readable", "same_pixels"]

ATTRIBUTES = tuple(
    dict.fromkeys(
        [*select.READ, "InstanceNumber", "PatientSex", "InstitutionalDepartmentName"]
    )
)  # fmt: skip


def same_pixels(held: Path, new: Path) -> bool | None:
    """Compare pixels: by their bytes, and only where those differ decoded, in child processes."""
    if same_pixel_bytes(held, new):
        return True
    limits = sandbox.Limits(timeout_s=60, memory_mb=4096)
    try:
        return sandbox.pixel_digest(held, limits) == sandbox.pixel_digest(new, limits)
    except RunFailed:
        return None


def readable(rooms: Rooms, sop_class_uid: str) -> bool:
    """Whether any active model could read such an object."""
    return any(
        not (classes := package.input.get("sop_classes")) or sop_class_uid in classes
        for _, package in rooms.catalog.active()
    )
