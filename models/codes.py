"""Hold a manifest's codes against the dictionary of the standard (PS3.16, as pydicom has it)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, cast

from pydicom.sr._concepts_dict import concepts

from models.fault import Fault

__all__ = ["check", "is_ucum"]

_CODE: Final = frozenset({"value", "scheme", "meaning"})
_ALSO: Final = frozenset({"SRT", "RFC5646", "ICD10", "ICD11", "99RADSEAL"})
_SCT: Final = re.compile(r"[1-9][0-9]{5,17}")
_ATOM: Final = r"(?:10[*^]|(?:[A-Za-z%'\"_]|\[[^\[\]\s]+\])+)[+-]?[0-9]*"
_PART: Final = re.compile(rf"(?:{_ATOM}|[1-9][0-9]*(?:[+-][0-9]+)?)?(?:\{{[!-z|~]*\}})?")
_DIHEDRAL: Final = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_TURNS: Final = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901",
    "2793806415", "7046913258",
)  # fmt: skip


@cache
def _known() -> Mapping[tuple[str, str], tuple[str, ...]]:
    """(value, scheme) → the meanings that the standard's context groups give it."""
    found: dict[tuple[str, str], set[str]] = {}
    for scheme, words in concepts.items():
        named = cast("dict[str, dict[str, tuple[str, list[int]]]]", words)
        for entries in named.values():
            for value, (meaning, _) in entries.items():
                found.setdefault((value, scheme), set()).add(meaning)
    return {key: tuple(sorted(meanings)) for key, meanings in found.items()}


def _has_check_digit(value: str) -> bool:
    """Whether the last digit of a SNOMED CT identifier fits the others (Verhoeff)."""
    sum_ = 0
    for place, digit in enumerate(reversed(value)):
        sum_ = int(_DIHEDRAL[sum_][int(_TURNS[place % 8][int(digit)])])
    return sum_ == 0


def is_ucum(unit: str) -> bool:
    """Whether a unit is spelled as UCUM's grammar has it; its atoms are not looked up."""
    depth, rest, first = 0, unit, True
    while rest or not first:
        while first and rest.startswith("/"):
            rest, first = rest[1:], False
        while rest.startswith("("):
            depth, rest = depth + 1, rest[1:]
        part = _PART.match(rest)
        if part is None or not part.group():
            return False
        rest, first = rest[part.end() :], False
        while rest.startswith(")"):
            depth, rest = depth - 1, rest[1:]
            if depth < 0:
                return False
        if not rest:
            return depth == 0
        if rest[0] not in "./":
            return False
        rest = rest[1:]
    return False


def _codes(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Every code in a part of the manifest, with its key."""
    if isinstance(value, Mapping):
        if value.keys() == _CODE:
            yield where, cast("Mapping[str, str]", value)
            return
        for key, inner in value.items():
            yield from _codes(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _codes(inner, f"{where}[{place}]")


def _one(manifest: str, where: str, code: Mapping[str, str]) -> Iterator[Fault]:
    value, scheme, meaning = code["value"], code["scheme"], code["meaning"]
    spelled = f"{value} {scheme}"
    unit = where.rsplit(".", 1)[-1] == "unit"
    if unit and scheme != "UCUM":
        yield Fault(manifest, f"{where}.scheme", "is not UCUM, and units are", "Write UCUM.")
        return
    meanings = _known().get((value, scheme))
    if scheme == "UCUM":
        if meanings is None and not is_ucum(value):
            yield Fault(
                manifest, f"{where}.value", f"{value!r} is not spelled as a UCUM unit",
                "Look it up at ucum.org; milliliters are mL, no unit is 1.",
            )  # fmt: skip
        return
    if meanings is not None:
        if meaning.casefold() not in {m.casefold() for m in meanings}:
            yield Fault(
                manifest, f"{where}.meaning",
                f"the code {spelled} is called {meanings[0]!r}, not {meaning!r}",
                f'Write "{meanings[0]}", or the code of what you mean.',
            )  # fmt: skip
    elif scheme == "SCT" and not (_SCT.fullmatch(value) and _has_check_digit(value)):
        yield Fault(
            manifest, f"{where}.value", f"{value} is no SNOMED CT identifier (its digits say so)",
            "Look the concept up; codes like T-28000 are of the retired scheme SRT.",
        )  # fmt: skip
    elif scheme in ("SCT", "DCM"):
        yield Fault(
            manifest, where, f"the code {spelled} is not among those that DICOM names",
            "Have somebody look it up; nothing else checks it.", warning=True,
        )  # fmt: skip
    elif scheme not in {s for _, s in _known()} | _ALSO and not scheme.startswith("99"):
        yield Fault(
            manifest, f"{where}.scheme", f"{scheme} is not a coding scheme that DICOM names",
            "PS3.16 chapter 8 lists them; a scheme of your own begins with 99.", warning=True,
        )  # fmt: skip


def check(deployment: Mapping[str, Any], manifest: str) -> list[Fault]:
    """Everything wrong with the codes of a `deployment` object; notes are warnings.

    A known code with another meaning, a malformed SNOMED CT identifier and a unit
    outside UCUM's grammar are faults: a reader would be told something else.
    """
    found: list[Fault] = []
    for where, code in _codes(deployment, "deployment"):
        found.extend(_one(manifest, where, code))
    return found
