"""Which studies a model is put to use for: by source, modality, department. Pure.

A scope is {key: values}; a study is within it when each key has one of its values. It is said
with each activation and stands in its leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from bridge.errors import WrongUse
from bridge.study import AETitle

__all__ = ["KEYS", "Scope", "outside", "read", "words"]

Scope = Mapping[str, Sequence[str]]

KEYS: Mapping[str, str] = {
    "source": "AE title of the sender",
    "modality": "Modality of any of its images",
    "department": "InstitutionalDepartmentName of any of its images",
}
_MOST = 50
_CS = re.compile(r"[A-Z0-9_ ]{1,16}")
_LO = re.compile(r"[^\\\x00-\x1f\x7f]{1,64}")


class Image(Protocol):
    """What a scope needs to know of a held image."""

    @property
    def attributes(self) -> Mapping[str, Any]:
        """JSON values of the keywords that were read."""


def read(said: Sequence[str]) -> dict[str, list[str]]:
    """Read KEY=VALUE[,VALUE...] words; a key said again adds values. Raises WrongUse."""
    found: dict[str, list[str]] = {}
    for word in said:
        key, sign, values = word.partition("=")
        if not sign or key not in KEYS:
            raise WrongUse(f"--scope: write KEY=VALUE with a key of {', '.join(KEYS)}")
        for value in values.split(","):
            found.setdefault(key, []).append(_value(key, value.strip()))
    for key, listed in found.items():
        found[key] = sorted(set(listed))
        if len(found[key]) > _MOST:
            raise WrongUse(f"--scope {key}: at most {_MOST} values")
    return found


def _value(key: str, value: str) -> str:
    if key == "source":
        try:
            return str(AETitle(value))
        except ValueError as error:
            raise WrongUse(f"--scope source: {error}") from None
    if key == "modality":
        if _CS.fullmatch(value.upper()) is None:
            raise WrongUse("--scope modality: write a code of DICOM, such as CT")
        return value.upper()
    if _LO.fullmatch(value) is None or not value.isprintable():
        raise WrongUse("--scope department: write the name as the images have it, at most 64 long")
    return value


def words(scope: Scope) -> str:
    """Say a scope for people; empty where it is all studies."""
    return "; ".join(f"{key} {' or '.join(values)}" for key, values in sorted(scope.items()))


def outside(scope: Scope, source: str, held: Iterable[Image]) -> str | None:
    """Say why a study is out of scope; None when it is within.

    The department is never quoted: it is free text of the images. Further images can bring a
    study into scope, none can take it out.
    """
    if not scope:
        return None
    images = [one.attributes for one in held]
    said = {
        "source": {source.strip()},
        "modality": _values(images, "Modality"),
        "department": _values(images, "InstitutionalDepartmentName"),
    }
    for key, wanted in sorted(scope.items()):
        have = said.get(key, set())
        if {_folded(one) for one in wanted} & {_folded(one) for one in have}:
            continue
        is_ = f"is {' and '.join(sorted(have)) or 'unknown'}"
        if key == "department":
            is_ = "is another one" if have else "is not in its images"
        return f"out of the model's scope: {key} {is_}, wanted {' or '.join(wanted)}"
    return None


def _values(images: Iterable[Mapping[str, Any]], keyword: str) -> set[str]:
    return {str(one[keyword]).strip()[:64] for one in images if one.get(keyword)}


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
