"""Does a provision speak of this request? Yes, no, or it cannot be told.

"Cannot be told" works against the request on both sides: a permit needs YES, a denial is
content with UNKNOWN. So a listed condition of which the request says nothing never widens what
a patient allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from bridge.consent.document import Actor, DataRule, Provision
from bridge.consent.policy import Answer
from bridge.consent.purposes import (
    NORMAL,
    Coding,
    ancestors,
    explicit_only,
    rank,
    sensitivity_ancestors,
)
from bridge.consent.request import Request

__all__ = ["Match", "covers_data", "speaks_to"]


class Match(IntEnum):
    """Ordered, so that ``min`` is "and" and ``max`` is "or"."""

    NO = 0
    UNKNOWN = 1
    YES = 2


def speaks_to(provision: Provision, request: Request) -> Match:
    """Whether purpose and actor of the request are among the provision's."""
    return min(_purpose(provision, request.purpose), _actor(provision.actors, request.actors))


def covers_data(provision: Provision, request: Request) -> Match:
    """Whether the data asked for is among the provision's: label, reference, time, kind, action."""
    return min(
        _labels(provision.labels, request.labels, provision.type),
        _references(provision.data, request),
        _time(provision, request),
        _kinds((provision.classes,) if provision.classes else (), request.classes),
        _kinds(provision.codes, request.codes),
        _kinds(provision.actions, request.actions),
    )


def _purpose(provision: Provision, asked: Coding) -> Match:
    """Look for the purpose or an ancestor; a permit of an explicit-only one must list it itself."""
    inherits = not (provision.type == "permit" and explicit_only(asked))
    if not provision.purposes:
        return Match.YES if inherits else Match.NO
    kinds = (asked, *ancestors(asked)) if inherits else (asked,)
    return _among(kinds, provision.purposes)


def _among(kinds: Iterable[Coding], listed: Iterable[Coding]) -> Match:
    named, asked = frozenset(listed), frozenset(kinds)
    if named & asked:
        return Match.YES
    vague = {one.code for one in named if not one.system}
    if "" in {one.code for one in named} or vague & {one.code for one in asked}:
        return Match.UNKNOWN
    return Match.NO


def _actor(actors: tuple[Actor, ...], asking: frozenset[str]) -> Match:
    return max((_one_actor(one, asking) for one in actors), default=Match.YES)


def _one_actor(actor: Actor, asking: frozenset[str]) -> Match:
    if not actor.names:
        return Match.UNKNOWN
    found = max(_reference(name, asking) for name in actor.names)
    return found if actor.receives else min(found, Match.UNKNOWN)


def _reference(name: str, known: frozenset[str]) -> Match:
    """Equal is YES; the same type and id on servers that need not be the same is UNKNOWN."""
    if name in known:
        return Match.YES
    if not name or name.startswith("#"):
        return Match.UNKNOWN
    return Match.UNKNOWN if _local(name) in {_local(one) for one in known} else Match.NO


def _local(reference: str) -> str:
    return "/".join(reference.split("/_history/")[0].split("/")[-2:])


def _labels(listed: tuple[Coding, ...], labels: tuple[Coding, ...], answer: Answer) -> Match:
    """Say YES where every label of the data is covered, UNKNOWN where only some are.

    Confidentiality counts by rank: permitting R permits N, denying R denies V. Where only
    sensitivities are listed, a confidentiality up to N says nothing of the data.
    """
    if not listed:
        return Match.YES
    ranks = [found for one in listed if (found := rank(one)) is not None]
    normal = rank(NORMAL) or 0
    telling = [one for one in labels if ranks or (own := rank(one)) is None or own > normal]
    if not telling:
        return Match.NO if labels else Match.UNKNOWN
    return _whole_or_part([_label(one, listed, ranks, answer) for one in telling])


def _label(label: Coding, listed: tuple[Coding, ...], ranks: list[int], answer: Answer) -> Match:
    own = rank(label)
    if own is None:
        return _among((label, *sensitivity_ancestors(label)), listed)
    covered = ranks and (own <= max(ranks) if answer == "permit" else own >= min(ranks))
    return Match.YES if covered else Match.NO


def _whole_or_part(found: list[Match]) -> Match:
    return Match.YES if min(found) is Match.YES else min(max(found), Match.UNKNOWN)


def _references(rules: tuple[DataRule, ...], request: Request) -> Match:
    known = {
        "instance": request.refs,
        "related": request.related,
        "dependents": request.dependents,
        "authoredby": request.authors,
    }
    return max((_data(rule, known[rule.meaning]) for rule in rules), default=Match.YES)


def _data(rule: DataRule, known: frozenset[str] | None) -> Match:
    return Match.UNKNOWN if known is None else _reference(rule.reference, known)


def _time(provision: Provision, request: Request) -> Match:
    """Say YES where the whole time of the data is inside, UNKNOWN where a part is."""
    if provision.data_period is None:
        return Match.YES
    asked = request.span()
    if asked is None:
        return Match.UNKNOWN
    if provision.data_period.holds(asked):
        return Match.YES
    return Match.UNKNOWN if provision.data_period.meets(asked) else Match.NO


def _kinds(concepts: tuple[tuple[Coding, ...], ...], known: frozenset[Coding] | None) -> Match:
    """Any code of any listed concept; a concept that is only text cannot be told."""
    if not concepts:
        return Match.YES
    if known is None or not all(concepts):
        return Match.UNKNOWN
    return max(_among(known, concept) for concept in concepts)
