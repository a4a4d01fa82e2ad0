"""The models that we ship: registered when a site is first used, never approved by us (§4c).

Not by `init` itself: a leaf pins the log's origin, which may be edited until then.
"""

from __future__ import annotations

from bridge import ambient
from bridge.rooms import Rooms
from bridge.store import catalog
from bridge.store.database import reading
from models import bundled

__all__ = ["register_bundled"]


def register_bundled(rooms: Rooms, by: str) -> list[str]:
    """Register what we ship and is not there yet, pinned by its digest in our code; their ids."""
    with reading(rooms.database) as connection:
        known = {row.package_digest for row in catalog.list_models(connection)}
    return [
        rooms.registrar.push_bundled(
            bundled.folder(name), digest, ambient.now(), by=by, progress=lambda _what: None
        ).id
        for name, digest in bundled.DIGESTS.items()
        if digest not in known
    ]
