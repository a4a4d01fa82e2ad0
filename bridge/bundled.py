"""The models that we ship: registered by `init`, never approved or activated by it (§4c)."""

from __future__ import annotations

from bridge import ambient
from bridge.rooms import Rooms
from models import bundled

__all__ = ["register_bundled"]


def register_bundled(rooms: Rooms, by: str) -> list[str]:
    """Register what we ship, each pinned by its package digest in our code; returns the ids."""
    return [
        rooms.catalog.push_bundled(
            bundled.folder(name), digest, ambient.now(), by=by, progress=lambda _what: None
        ).id
        for name, digest in bundled.DIGESTS.items()
    ]
