"""The story that the leaves of one receipt tell, put together again by their hashes. Pure.

result.composed → inference.completed|failed → inference.started → input.sealed,
consent.checked, model.activated → … down to study.received and model.registered (design §4b,
"Refs"). The leaves are believed only as far as they refer to each other: every one must be
reached from the first, and each reference must point to an earlier leaf of the type it names,
of equal subject and study.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bridge.errors import Refused
from ledger.bodies import PREVIOUS

__all__ = ["Absent", "Chain", "Link", "rebuild"]

_MAY_BE_ABSENT = frozenset({PREVIOUS, "consent.granted", "consent.amended"})


@dataclass(frozen=True, slots=True)
class Link:
    """One leaf whose inclusion was verified: its hash as leaves spell it, its index, its record."""

    ref: str
    index: int
    record: Mapping[str, Any]

    @property
    def type(self) -> str:
        """The type of the leaf."""
        return str(self.record["type"])

    @property
    def time(self) -> str:
        """When the log's operator says that it happened: UTC."""
        return str(self.record["time"])

    @property
    def body(self) -> Mapping[str, Any]:
        """What the leaf says."""
        said: Mapping[str, Any] = self.record["body"]
        return said

    def refs(self) -> Sequence[tuple[str, str]]:
        """(rel, leaf hash) of what it stands on."""
        return [(one["rel"], one["leaf"]) for one in self.record.get("refs", ())]

    def __str__(self) -> str:
        return f"{self.type} (leaf {self.index})"


@dataclass(frozen=True, slots=True)
class Absent:
    """A leaf that one of the chain names by its hash and that the file does not carry."""

    rel: str
    leaf: str
    named_by: str


@dataclass(frozen=True, slots=True)
class Chain:
    """What one result stands on. `approved` is None for a model that runs as a shadow."""

    composed: Link
    ended: Link
    started: Link
    sealed: Link
    received: Link
    checked: Link
    activated: Link
    approved: Link | None
    registered: Link
    consents: tuple[Link, ...]
    results: tuple[Link, ...]
    absent: tuple[Absent, ...]


def rebuild(links: Sequence[Link]) -> Chain:
    """Return the chain of these leaves, that of the result first.

    Raises Refused, naming the leaf, where one is missing, is of no use to the first, points
    to a later leaf or one of another type, subject or study, where two speak of different
    models or inputs, or where consent did not permit the run.
    """
    known = {link.ref: link for link in links}
    if not links or links[0].type != "result.composed":
        raise Refused("the first leaf of the receipt is no result.composed")
    if len(known) != len(links):
        raise Refused("the receipt carries one leaf twice")
    absent = [gone for link in links for gone in _follow(link, known)]
    _no_strangers(links, known)
    composed = links[0]
    ended = _one(composed, known, "inference.completed", "inference.failed")
    started = _one(ended, known, "inference.started")
    sealed = _one(started, known, "input.sealed")
    checked = _one(started, known, "consent.checked")
    activated = _one(started, known, "model.activated")
    below = _one(activated, known, "model.approved", "model.registered")
    approved = below if below.type == "model.approved" else None
    chain = Chain(
        composed, ended, started, sealed, _one(sealed, known, "study.received"), checked, activated,
        approved, below if approved is None else _one(approved, known, "model.registered"),
        tuple(link for link in links if link.type in _MAY_BE_ABSENT),
        tuple(link for link in links[1:] if link.type == "result.composed"), tuple(absent),
    )  # fmt: skip
    _agree(chain, known)
    return chain


def _follow(link: Link, known: Mapping[str, Link]) -> list[Absent]:
    """Check each reference of a leaf; returns those that the receipt may leave out and does."""
    absent = []
    for rel, ref in link.refs():
        target = known.get(ref)
        if target is None:
            if rel not in _MAY_BE_ABSENT:
                raise Refused(f"the receipt does not carry the {rel} that its {link} stands on")
            absent.append(Absent(rel, ref, str(link)))
        elif target.type != (link.type if rel == PREVIOUS else rel):
            raise Refused(f"the {link} calls the {target} its {rel}")
        elif target.index >= link.index:
            raise Refused(f"the {link} stands on the {target}, which is no earlier leaf")
    return absent


def _no_strangers(links: Sequence[Link], known: Mapping[str, Link]) -> None:
    """Refuse leaves that the result does not stand on, and such of another subject or study."""
    reached, todo = set(), [links[0].ref]
    while todo:
        ref = todo.pop()
        if ref in known and ref not in reached:
            reached.add(ref)
            todo += [below for _, below in known[ref].refs()]
    for link in links:
        if link.ref not in reached:
            raise Refused(f"the {link} in the receipt is not of this result")
        for name in ("subject", "study"):
            mine = link.record.get(name)
            if mine is not None and mine != links[0].record.get(name):
                raise Refused(f"the {link} in the receipt is of another {name}")


def _one(link: Link, known: Mapping[str, Link], *types: str) -> Link:
    found = [known[ref] for rel, ref in link.refs() if rel in types]
    if len(found) != 1:
        raise Refused(f"the {link} stands on {len(found)} leaves {' or '.join(types)}, not on one")
    return found[0]


def _agree(chain: Chain, known: Mapping[str, Link]) -> None:
    """Refuse a story that contradicts itself: other models or inputs, a run without a permit."""
    model = chain.started.body["model"]
    said = [
        (chain.composed, chain.composed.body.get("model", model)),
        (chain.sealed, chain.sealed.body["route"]["model"]),
        *((link, link.body["model"]) for link in (chain.ended, chain.activated, chain.registered)),
        *((link, link.body["model"]) for link in (chain.approved,) if link is not None),
    ]
    for link, named in said:
        if named != model:
            raise Refused(f"the {link} is about another model than the {chain.started}")
    for other in chain.results:
        if _one(other, known, "inference.completed", "inference.failed") is not chain.ended:
            raise Refused(f"the {other} that the result stands on is of another run")
    checked = chain.checked
    if ("input.sealed", chain.sealed.ref) not in checked.refs():
        raise Refused(f"the {checked} asked consent for another input")
    if checked.body["decision"] != "permit":
        raise Refused(f"the {checked} says {checked.body['decision']}: the run had no consent")
    until = checked.body.get("valid_until")
    if until and datetime.fromisoformat(chain.started.time) >= datetime.fromisoformat(until):
        raise Refused(f"the permit of the {checked} had ended before the {chain.started}")
