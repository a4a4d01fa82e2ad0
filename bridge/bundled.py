"""The models that we ship, pinned by the digest of their packages (design §4c)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import models
from bridge import ambient
from bridge.rooms import Rooms

__all__ = ["BUNDLED", "folder_of", "register_bundled"]

BUNDLED: Mapping[str, str] = {}


def folder_of(name: str) -> Path:
    """Give the folder of a bundled package."""
    return Path(models.__file__).parent / "bundled" / name


def register_bundled(rooms: Rooms, by: str) -> list[str]:
    """Register what we ship; it is not approved and not active until people say so."""
    return [
        rooms.catalog.push_bundled(
            folder_of(name), digest, ambient.now(), by=by, progress=lambda _what: None
        ).id
        for name, digest in BUNDLED.items()
    ]
