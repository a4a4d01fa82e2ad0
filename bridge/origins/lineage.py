"""A site's logs: the open one, and those before it that ended (`radseal ledger continue`).

What a site has said, it has said in one of them. Whoever needs a leaf of an ended log in the
open one has it carried there, word for word (`ledger/carried.py`), with all that it stands on,
first things first: so every reference in a log points into that log, and its trace rules hold
without the others. Nothing is carried that nobody needs, except what an ended log had taken and
not published.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger import carried, leaf
from ledger.errors import UnknownLeaf
from ledger.log import Log

__all__ = ["Lineage"]

_OF_ONE_LOG = frozenset({"log", "key", "config", "witness"})


class Lineage:
    """The open log and the ended ones, newest first."""

    def __init__(self, log: Log, ended: Sequence[Log] = ()) -> None:
        self.log = log
        self.ended = tuple(ended)

    def said(self, kind: str, idem: str) -> bytes | None:
        """Give the leaf of a fact that an ended log holds, carried here; None if it is new.

        What is about a log itself (its keys, settings, witnesses) is said anew in each.
        """
        if not self.ended or kind.partition(".")[0] in _OF_ONE_LOG:
            return None
        return self.log.find(idem) or self._carry(idem)

    def here(self, leaf_hash: bytes) -> bytes:
        """Give the hash of this leaf in the open log; one of an ended log is carried first."""
        log = self.holder(leaf_hash)
        if log is self.log:
            return leaf_hash
        idem = leaf.parse(log.leaf(leaf_hash))["idem"]
        return self.log.find(idem) or self._carry(idem) or leaf_hash

    def holder(self, leaf_hash: bytes) -> Log:
        """Give the log that holds a leaf; raises UnknownLeaf."""
        if not self.ended:
            return self.log
        for log in (self.log, *self.ended):
            if log.store.find(leaf_hash=leaf_hash) is not None:
                return log
        raise UnknownLeaf

    def standing(self, leaf_hash: bytes) -> tuple[Log, bytes]:
        """Give (log, hash) where a fact stands now: carried, if it was, else where it was said."""
        log = self.holder(leaf_hash)
        if log is not self.log:
            carried_to = self.log.find(leaf.parse(log.leaf(leaf_hash))["idem"])
            if carried_to is not None:
                return self.log, carried_to
        return log, leaf_hash

    def find(self, idem: str) -> bytes | None:
        """Give the hash under which a fact was said, in whichever log."""
        for log in (self.log, *self.ended):
            found = log.find(idem)
            if found is not None:
                return found
        return None

    def carry_unpublished(self) -> None:
        """Say here what ended logs took and never published, oldest first; again, nothing happens.

        What a later log took over is its own to publish or to hand on.
        """
        for place in reversed(range(len(self.ended))):
            log, later = self.ended[place], self.ended[:place]
            for leaf_hash in log.unpublished():
                record = leaf.parse(log.leaf(leaf_hash))
                if record["type"].partition(".")[0] in _OF_ONE_LOG:
                    continue
                if all(one.find(record["idem"]) is None for one in later):
                    self.here(leaf_hash)

    def _carry(self, idem: str) -> bytes | None:
        """Carry the newest telling of a fact, what it stands on before it."""
        for log in self.ended:
            found = log.find(idem)
            if found is not None:
                old = leaf.parse(log.leaf(found))
                refs = [
                    {"rel": one["rel"], "leaf": leaf.ref(self.here(leaf.unref(one["leaf"])))}
                    for one in old.get("refs", ())
                ]
                return self.log.append(idem, leaf.render(carried.carry(old, log.origin, refs)))
        return None
