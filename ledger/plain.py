"""Leaves as most are spelled, read quickly: ASCII without escapes. Pure.

Such a leaf has one spelling, so one pattern for its type knows its keys, their order, the shape
of every value and the whole envelope; what no pattern can know, an object inside a body, is
rendered again and compared. Whatever does not fit is left to `ledger.leaf`, which says what is
wrong. So `parse` refuses nothing, and accepts nothing that `ledger.leaf` would refuse; tests
compare the two. A full audit takes half the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from ledger.bodies import BOTH, HASH, LABEL, NONE, PREVIOUS, TYPES, WHEN, Kind, is_unexplained
from ledger.errors import LeafError
from ledger.tiles import MAX_ENTRY

__all__ = ["ACTORS", "ALIAS", "DECODER", "ENCODER", "UUID", "VERSION", "parse"]

VERSION = 1
ACTORS = ("system", "user", "device", "patient")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
ALIAS = r"[A-Za-z0-9+/][A-Za-z0-9:+/=._-]{15,159}"


def _no_fraction(text: str) -> float:
    raise LeafError(f"{text} has no canonical form; use whole numbers")


def _whole(text: str) -> int:
    if len(text) > 16 or abs(number := int(text)) >= 1 << 53:
        raise LeafError("a number has more than 53 bits")
    return number


DECODER = json.JSONDecoder(parse_float=_no_fraction, parse_constant=_no_fraction, parse_int=_whole)
"""Reads JSON of whole numbers; raises LeafError for others."""
ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=False
)
"""Writes the canonical form."""
# Of a body whose numbers a pattern or test has looked at; the stubs do not know this attribute.
_READ = json.JSONDecoder().scan_once  # type: ignore[attr-defined]

# What an object or list in a body looks like, two deep; whether its keys stand in order and its
# numbers are spelled well is looked at afterwards. Atomic, so that a hostile leaf costs no more.
_TEXT = r'"[^"]*+"'
_PLAIN = rf"(?:{_TEXT}|[0-9a-z-]++)"


def _listed(item: str) -> str:
    return rf"(?:{item}(?:,{item})*+)?+"


_LIST = rf"\[{_listed(_PLAIN)}\]"
_OBJECT = rf"\{{{_listed(f'{_TEXT}:(?:{_PLAIN}|{_LIST})')}\}}"
_ANY = rf"(?:{_PLAIN}|{_LIST}|{_OBJECT})"
_NESTED = rf"((?>{_TEXT}|\[{_listed(_ANY)}\]|\{{{_listed(f'{_TEXT}:{_ANY}')}\}}))"
_LABEL = LABEL.plain[1:-1]
_REF = rf'\{{"leaf":{HASH.plain},"rel":"[a-z._]{{1,40}}"\}}'
_PAIRS = re.compile(r'"leaf":"([^"]+)","rel":"([^"]+)"')
_RELS = {*TYPES, PREVIOUS}
_REL = itemgetter(1)
_ALIAS = re.compile(ALIAS)
_TYPE, _END = ',"type":"', f'","v":{VERSION}}}'


class _Form:
    """The one spelling of a type: its pattern, and the tests of what the pattern cannot know."""

    def __init__(self, name: str, kind: Kind) -> None:
        shapes = {**kind.optional, **kind.required}
        keys = [_key(key, shapes[key].plain, key in kind.required) for key in sorted(shapes)]
        self.tests = [shapes[key].holds for key in sorted(shapes) if not shapes[key].plain]
        self.refs = kind.refs
        self.good: set[tuple[str, ...]] = set()
        self.decides = "decision" in shapes
        self.match = re.compile(
            rf'\{{"actor":\{{"id":"({_LABEL})","kind":"({"|".join(ACTORS)})"\}},'
            rf'"body":(\{{{"".join(keys)}\}}),"id":"({UUID})","idem":"({_LABEL})",'
            rf'"node":"({_LABEL})"(?:,"refs":\[({_REF}(?:,{_REF})*+)\])?'
            rf"{_alias('study', kind.chain)}{_alias('subject', kind.chain)}"
            rf',"time":"({WHEN.plain[1:-1]})","type":"{re.escape(name)}","v":{VERSION}\}}'
        ).fullmatch

    def takes(self, rels: tuple[str, ...]) -> bool:
        """Whether references of these types are known ones, and those that the type needs."""
        holds = _RELS.issuperset(rels) and not any(map(frozenset(rels).isdisjoint, self.refs))
        if holds and len(self.good) < 64:
            self.good.add(rels)
        return holds


def _key(key: str, pattern: str, required: bool) -> str:
    """Give a key with its value and the comma after it; a comma too many is found as no JSON."""
    return rf'(?:"{key}":{pattern or _NESTED}(?:,|(?=\}})))' + ("" if required else "?")


def _alias(name: str, chain: str) -> str:
    if chain == NONE:
        return "()"
    return rf'(?:,"{name}":"([^"]++)")' + ("" if chain in (BOTH, name) else "?")


_FORMS: Mapping[str, _Form] = {name: _Form(name, kind) for name, kind in TYPES.items()}


def parse(data: bytes) -> dict[str, Any] | None:
    """Return the record in a leaf; None where `ledger.leaf` must judge."""
    if len(data) > MAX_ENTRY or not data.isascii() or b"\\" in data:
        return None
    text = data.decode()
    kind = text[text.rfind(_TYPE) + len(_TYPE) : -len(_END)]
    form = _FORMS.get(kind)
    found = None if form is None else form.match(text)
    if form is None or found is None:
        return None
    actor, role, said, *nested, name, idem, node, refs, study, subject, time = found.groups()
    pairs = () if refs is None else _PAIRS.findall(refs)
    if not _stand(pairs, form) or not (_is_alias(study) and _is_alias(subject)):
        return None
    for value, test in zip(nested, form.tests, strict=True):
        if value is not None and not _is_well(value, test):
            return None
    try:
        body, end = _READ(said, 0)
        datetime.fromisoformat(time)
    except (ValueError, StopIteration):
        return None
    if end != len(said) or (form.decides and is_unexplained(body)):
        return None
    record = {
        "actor": {"id": actor, "kind": role}, "body": body, "id": name, "idem": idem,
        "node": node, "time": time, "type": kind, "v": VERSION,
    }  # fmt: skip
    if pairs:
        record["refs"] = [{"leaf": leaf, "rel": rel} for leaf, rel in pairs]
    if study:
        record["study"] = study
    if subject:
        record["subject"] = subject
    return record


def _stand(pairs: Sequence[tuple[str, str]], form: _Form) -> bool:
    """Whether the references are of known types, each once, and those that the type needs."""
    if len(pairs) > 1 and len(set(pairs)) != len(pairs):
        return False
    rels = tuple(map(_REL, pairs))
    return rels in form.good or form.takes(rels)


@lru_cache(1 << 14)
def _is_alias(text: str | None) -> bool:
    """Whether a study or subject, if one is named, is an alias; the same stand in many leaves."""
    return not text or _ALIAS.fullmatch(text) is not None


def _is_well(text: str, test: Callable[[object], bool]) -> bool:
    """Whether a value that no pattern knows has its shape and is spelled canonically."""
    return _known(text, test) if len(text) <= 400 else _looked_at(text, test)


def _looked_at(text: str, test: Callable[[object], bool]) -> bool:
    try:
        value = DECODER.decode(text)
    except ValueError:
        return False
    return ENCODER.encode(value) == text and test(value)


_known = lru_cache(4096)(_looked_at)  # sites say the same counts and versions again and again
