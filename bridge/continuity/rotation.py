"""A new pair of keys beside the old one, and later instead of it (`radseal key …`).

While both pairs are there, every checkpoint bears both: a reader with the old vkeys and one with
the new ones is served. Then the old pair is destroyed. The log tells both steps (key.rotated), in
a leaf that the first checkpoint after the step covers. A crash anywhere is repaired by typing the
command again.
"""

from __future__ import annotations

from bridge import ambient
from bridge.errors import Refused
from bridge.origins.ended import number_of_log
from bridge.origins.signing import Pair, drop_pair, end_overlap, folder_of, make_pair, pairs
from bridge.rooms import Rooms
from bridge.site import Site
from ledger.verify import open_checkpoint

__all__ = ["add_pair", "drop_old_pairs", "signing"]


def signing(site: Site) -> list[Pair]:
    """Give the pairs that sign the open log, newest first."""
    return pairs(folder_of(site.folder, number_of_log(site.folder)), site.origin)


def add_pair(site: Site, by: str, reason: str) -> bool:
    """Let a new pair sign beside the one there is; False where two sign already."""
    found = signing(site)
    if len(found) > 1:
        return False
    folder = folder_of(site.folder, number_of_log(site.folder))
    about = {"by": by, "reason": reason, "at": ambient.now().isoformat(timespec="seconds")}
    make_pair(folder, site.origin, found[0].number + 1, ambient.entropy, about)
    return True


def drop_old_pairs(rooms: Rooms, by: str) -> bool:
    """Destroy every pair but the newest; False where only one is there.

    Raises Refused while the published checkpoint does not bear the newest pair: without it
    nobody could read the log on.
    """
    newest, *older = signing(rooms.site)
    folder = folder_of(rooms.site.folder, number_of_log(rooms.site.folder))
    if older:
        text = rooms.record.log.checkpoint_text()
        known = [key for pair in (newest, *older) for key in pair.vkeys]
        if not set(newest.vkeys) <= set(open_checkpoint(text, known)[1]):
            raise Refused(
                "no checkpoint bears the new keys yet; start `radseal serve` once, then type this "
                "again"
            )
        end_overlap(folder, newest, by)
    for number in range(1, newest.number):  # also what a crash left of one
        drop_pair(folder, number)
    return bool(older)
