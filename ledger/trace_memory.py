"""What a trace remembers of the leaves it has read, in bounded memory. Pure.

The rules look back: a delivery to its permit, a withdrawal to its consent. Everything is
remembered of the last 32,768 to 65,536 leaves; of older ones only models and consent documents,
and eight bytes each of the others (`Places`): where such a leaf stands, so that the caller's
`recall` can read it again from the log. Without `recall` nothing is forgotten.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from sys import intern, maxsize
from typing import Any

__all__ = ["RUN", "Memory", "Moments", "Order", "Places", "Seen", "seconds"]

Order = tuple[int, str, int]
"""A leaf's place in the story (`Seen.order`)."""

RUN = 32_768
"""Leaves between two forgettings; a multiple of the width of a tile."""

_SENT = ("destination", "kind", "payload", "object")
_KEPT: Mapping[str, Sequence[str]] = {
    "model.registered": ("model", "by"),
    "model.approved": ("model", "by"),
    "model.activated": ("model", "mode"),
    "input.sealed": ("route",),
    "consent.checked": ("decision", "basis", "purpose", "valid_until", "destination", "override"),
    "inference.started": ("model",),
    "inference.completed": ("model",),
    "inference.failed": ("model",),
    "result.composed": ("model", "kind"),
    "delivery.started": _SENT,
    "result.delivered": _SENT,
}
"""What later leaves are compared with, of each type; of others nothing."""
_NOTHING: Mapping[str, Any] = {}
_PINNED = frozenset({
    "model.registered", "model.approved", "model.activated", "model.suspended", "model.retired",
    "consent.granted", "consent.amended",
})  # fmt: skip
_CONSENTS = ("consent.granted", "consent.amended")
_REFERENCE = itemgetter("rel", "leaf")

Recall = Callable[[str], "tuple[int, Mapping[str, Any]] | None"]
"""Give (index, record) of the earlier leaf with this hash; None if the log has none."""


@dataclass(slots=True)
class Seen:
    """One leaf. After it was judged, `body` holds only what later leaves are compared with.

    `rests_on` are the consent documents of a consent.checked: those it refers to and those that
    `matched` names, which may be another patient's. `carried` marks a leaf of an earlier log.
    `found` are the leaves that it refers to, by type, while it is judged.
    """

    index: int
    ref: str
    type: str
    time: str
    node: str
    subject: str | None
    study: str | None
    body: Mapping[str, Any]
    refs: Sequence[tuple[str, str]]
    rests_on: Sequence[str]
    carried: bool
    found: Mapping[str, Sequence[Seen]] | None = None

    @classmethod
    def of(cls, index: int, ref: str, record: Mapping[str, Any]) -> Seen:
        """Take what counts from a record that `ledger.leaf` has checked."""
        get = record.get
        refs = list(map(_REFERENCE, get("refs", ())))
        kind, subject, study = intern(record["type"]), get("subject"), get("study")
        return cls(
            index, ref, kind, record["time"], record["node"],
            subject and intern(subject), study and intern(study), record["body"], refs,
            _documents(record["body"], refs) if kind == "consent.checked" else (),
            "carried" in record,
        )  # fmt: skip

    @property
    def order(self) -> Order:
        """Its place in the story: what was carried here happened before all that is said here."""
        return (0, self.time, self.index) if self.carried else (1, "", self.index)

    def trim(self) -> None:
        """Forget what no later leaf is compared with."""
        said, self.found, self.body = self.body, None, _NOTHING
        if kept := _KEPT.get(self.type):
            self.body = body = {}
            for key in kept:
                if key in said:
                    body[key] = said[key]


def _documents(body: Mapping[str, Any], refs: Sequence[tuple[str, str]]) -> list[str]:
    found = [ref for rel, ref in refs if rel in _CONSENTS]
    matched = [one.get("leaf") for one in body.get("matched", ()) if isinstance(one, Mapping)]
    return found + [ref for ref in matched if isinstance(ref, str)]


class Memory:
    """The leaves so far, by their hash in base64."""

    def __init__(self) -> None:
        self.recall: Recall | None = None
        self._pinned: dict[str, Seen] = {}
        self._recent: dict[str, Seen] = {}
        self._before: dict[str, Seen] = {}
        self._here: dict[str, str] = {}

    def find(self, ref: str) -> Seen | None:
        """Give an earlier leaf; None if there is none of this hash."""
        found = self._recent.get(ref) or self._before.get(ref) or self._pinned.get(ref)
        if found is None and self.recall is not None:
            told = self.recall(ref)
            if told is not None:
                found = Seen.of(told[0], ref, told[1])
                self._put(found)
        return found

    def keep(self, one: Seen) -> None:
        """Remember the leaf that was just judged; every `RUN` leaves older ones are forgotten."""
        if self.recall is not None and one.index and one.index % RUN == 0:
            self._before, self._recent = self._recent, {}
        self._put(one)

    def _put(self, one: Seen) -> None:
        one.trim()
        (self._pinned if one.type in _PINNED else self._recent).setdefault(one.ref, one)

    def targets(self, one: Seen, *types: str) -> list[Seen]:
        """Give the earlier leaves that it refers to as one of these types."""
        targets: list[Seen] = []
        if one.found is not None:
            for kind in types:
                targets += one.found.get(kind, ())
            return targets
        for rel, ref in one.refs:
            if rel in types and (target := self.find(ref)) is not None:
                targets.append(target)
        return targets

    def carry(self, one: Seen, there: str) -> None:
        """Remember that a leaf of an earlier log, `there`, stands here as this one."""
        self._here[there] = one.ref

    def here(self, ref: str) -> str:
        """Give the hash under which a leaf of an earlier log was carried here, or the same."""
        return self._here.get(ref, ref)

    def disown(self, there: str) -> Seen | None:
        """Forget that a leaf was carried: this log says it itself; give the copy, if any was."""
        copy = self._here.pop(there, None)
        return None if copy is None else self.find(copy)


class Moments:
    """When something happened, by what it happened to; in order of the story."""

    def __init__(self) -> None:
        self._of: dict[Hashable, list[tuple[Order, int]]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def add(self, key: Hashable, one: Seen) -> None:
        """Take a leaf that says it."""
        insort(self._of.setdefault(key, []), (one.order, one.index))

    def first(self, key: Hashable, before: Order, after: Order | None = None) -> int | None:
        """Give the index of the first such leaf before one place and after another."""
        said = self._of.get(key)
        if said is None:
            return None
        at = 0 if after is None else bisect_right(said, (after, maxsize))
        return said[at][1] if at < len(said) and said[at][0] < before else None


class Places:
    """Where each leaf stands, in eight bytes: 48 bits of its key, 16 of its place in a run.

    The key is the beginning of its hash (`add`), or any other number (`put`).
    """

    def __init__(self) -> None:
        self._runs: list[array[int]] = []
        self._open: list[int] = []

    def add(self, hashes: Sequence[bytes]) -> None:
        """Take the next leaves by their hashes; a run must end where one of these calls ends."""
        whole = int.from_bytes
        self.put([whole(one[:6], "big") for one in hashes])

    def put(self, keys: Sequence[int]) -> None:
        """Take the next leaves by keys of 48 bits; a run must end where one of these calls ends."""
        at = len(self._open)
        self._open += [key << 16 | n for n, key in enumerate(keys, at)]
        if len(self._open) == RUN:
            self._runs.append(array("Q", sorted(self._open)))
            self._open = []

    def candidates(self, leaf_hash: bytes) -> Iterator[int]:
        """Give indexes of leaves with such a beginning in full runs: compare the whole hash."""
        key = int.from_bytes(leaf_hash[:6], "big")
        for number in range(len(self._runs) - 1, -1, -1):
            run = self._runs[number]
            at = bisect_left(run, key << 16)
            while at < RUN and run[at] >> 16 == key:
                yield number * RUN + (run[at] & 0xFFFF)
                at += 1

    def twins(self) -> Iterator[tuple[int, list[int]]]:
        """Give each key that several leaves have, and their indexes: compare what it stands for.

        Takes a 256th of all leaves at a time, so that memory stays what it is.
        """
        runs = [*self._runs, array("Q", sorted(self._open))]
        ends = [0] * len(runs)
        for part in range(1, 257):
            starts, ends = ends, [bisect_left(run, part << 56) for run in runs]
            some = [run[start:end] for run, start, end in zip(runs, starts, ends, strict=True)]
            keys = [entry >> 16 for run in some for entry in run]
            if len(set(keys)) < len(keys):
                for key, times in Counter(keys).items():
                    if times > 1:
                        yield key, list(_placed(some, key))


def _placed(runs: Sequence[array[int]], key: int) -> Iterator[int]:
    for number, run in enumerate(runs):
        for entry in run[bisect_left(run, key << 16) : bisect_left(run, (key + 1) << 16)]:
            yield number * RUN + (entry & 0xFFFF)


def seconds(earlier: str, later: str) -> float:
    """Seconds between two times as leaves spell them; 0 where one is not known."""
    if not earlier or not later:
        return 0.0
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
