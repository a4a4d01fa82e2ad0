"""One condition of a selection rule against one attribute, as MONAI Deploy reads it. Pure.

text    equal without regard to case, else a regular expression found anywhere
number  equal; `[low, high]` between, both included; `[value, ">"]` compared
list    every listed word is among the values; "!X" means that X is not
ImageOrientationPatient   "Axial", "Coronal" or "Sagittal": where the normal mostly points

A condition on an attribute that is absent is not met, unless it only excludes.
An empty condition (null, "", []) asks nothing. Patterns come from vendors and
are searched with a time limit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import regex

from models.errors import PackageError

__all__ = ["as_number", "as_values", "matches", "plane", "search"]

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_PLANES: Final = ("Sagittal", "Coronal", "Axial")


def as_values(value: Any) -> list[Any]:
    """Give an attribute as a list: absent and empty values fall away."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if item is not None and str(item).strip() != ""]


def as_number(value: Any) -> float | None:
    """Read a finite number, also from text as DS and IS carry it; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plane(orientation: Any) -> str | None:
    """Name the plane of ImageOrientationPatient by the largest part of its normal (LPS)."""
    numbers = [as_number(v) for v in as_values(orientation)]
    if len(numbers) != 6:
        return None
    known = [n for n in numbers if n is not None]
    if len(known) != 6:
        return None
    (a, b, c), (d, e, f) = known[:3], known[3:]
    normal = [abs(b * f - c * e), abs(c * d - a * f), abs(a * e - b * d)]
    largest = max(normal)
    return _PLANES[normal.index(largest)] if largest > 0.5 else None


def search(pattern: str, text: str, timeout: float) -> bool:
    """Search a vendor's pattern, without regard to case, for at most `timeout` seconds.

    Raises PackageError for a pattern that does not compile or takes longer.
    """
    try:
        return regex.search(pattern, text, regex.IGNORECASE, timeout=timeout) is not None
    except regex.error as error:
        raise PackageError(
            "configs/metadata.json", "deployment.input", "a pattern is not valid", "Correct it."
        ) from error
    except TimeoutError as error:
        raise PackageError(
            "configs/metadata.json",
            "deployment.input",
            "a pattern takes too long on a short text",
            "Write it without nested repetition.",
        ) from error


def _text(wanted: str, values: Sequence[Any], timeout: float) -> bool:
    texts = [str(v).strip() for v in values]
    if any(t.casefold() == wanted.strip().casefold() for t in texts):
        return True
    return any(search(wanted, t, timeout) for t in texts)


def _numbers(wanted: list[Any], values: Sequence[float]) -> bool:
    """`[low, high]` or `[value, comparison]`; every value must satisfy it."""
    first, second = as_number(wanted[0]), wanted[1]
    if isinstance(second, str) and second in _COMPARE:
        return first is not None and all(_COMPARE[second](v, first) for v in values)
    last = as_number(second)
    if first is None or last is None:
        return False
    return all(first <= v <= last for v in values)


def _words(wanted: list[Any], values: Sequence[Any]) -> bool:
    present = {str(v).strip().casefold() for v in values}
    for item in wanted:
        word = str(item).strip().casefold()
        if word.startswith("!"):
            if word[1:] in present:
                return False
        elif word not in present:
            return False
    return True


def _is_range(wanted: list[Any]) -> bool:
    if len(wanted) != 2 or isinstance(wanted[0], str):
        return False
    return not isinstance(wanted[1], str) or wanted[1] in _COMPARE


def matches(keyword: str, wanted: Any, value: Any, timeout: float) -> bool:
    """Tell whether an attribute meets a condition; PackageError for an impossible pattern."""
    if wanted is None or wanted in ("", []):
        return True
    values = as_values(value)
    if keyword == "ImageOrientationPatient" and isinstance(wanted, str):
        found = plane(values)
        return found is not None and found.casefold() == wanted.strip().casefold()
    if isinstance(wanted, list) and all(str(w).startswith("!") for w in wanted):
        return _words(wanted, values)
    if not values:
        return False
    numbers = [as_number(v) for v in values]
    known = [n for n in numbers if n is not None]
    if isinstance(wanted, list):
        if _is_range(wanted) and len(known) == len(values):
            return _numbers(wanted, known)
        return _words(wanted, values)
    if isinstance(wanted, (int, float)):
        return any(n == float(wanted) for n in known)
    return _text(str(wanted), values, timeout)
