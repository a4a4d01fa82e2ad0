"""Reading a JSON tree strictly, so that every refusal names its FHIR path and holds no value."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bridge.consent.moments import ALWAYS, Span, span
from bridge.consent.policy import Answer
from bridge.consent.purposes import Coding

MAX_BYTES = 1 << 20


class ConsentError(ValueError):
    """A document is no usable FHIR Consent; ``path`` says where. Holds no value of it."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path


def read(data: bytes, path: str = "Consent") -> dict[str, Any]:
    """Read one JSON object of at most 1 MiB, no key twice. Raises ConsentError."""
    if len(data) > MAX_BYTES:
        raise ConsentError(path, "more than 1 MiB")
    try:
        tree = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_never)
    except RecursionError as error:
        raise ConsentError(path, "nested too deeply") from error
    except ValueError as error:
        raise ConsentError(path, "no JSON that FHIR allows") from error
    if not isinstance(tree, dict):
        raise ConsentError(path, "is no object")
    return tree


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _never(_constant: str) -> None:
    raise ValueError("not a number of JSON")


def period(tree: Mapping[str, Any], key: str, path: str) -> Span:
    """Read a Period, both ends included; an absent one is always."""
    if key not in tree:
        return ALWAYS
    found, path = obj(tree, key, path), f"{path}.{key}"
    closed(found, frozenset({"id", "extension", "start", "end"}), path)
    start, end = moment(found, "start", path), moment(found, "end", path)
    whole = Span(start.start if start else ALWAYS.start, end.end if end else ALWAYS.end)
    if whole.start >= whole.end:
        raise ConsentError(path, "ends before it starts")
    return whole


def moment(tree: Mapping[str, Any], key: str, path: str) -> Span | None:
    """Read a date as a span, or None where it is absent."""
    if key not in tree:
        return None
    given = text(tree, key, path)
    try:
        return span(given)
    except ValueError as error:
        raise ConsentError(f"{path}.{key}", "is no date") from error


def answer(tree: Mapping[str, Any], key: str, path: str) -> Answer:
    """Read permit or deny."""
    found = tree.get(key)
    if found == "permit":
        return "permit"
    if found == "deny":
        return "deny"
    raise ConsentError(f"{path}.{key}", "is neither permit nor deny")


def closed(tree: Mapping[str, Any], names: frozenset[str], path: str) -> None:
    """Refuse elements that FHIR does not know here, and values that only an extension holds."""
    for key in tree:
        if key.removeprefix("_") not in names:
            raise ConsentError(path, "has an element that FHIR does not know there")
        if key.startswith("_") and key[1:] not in tree:
            raise ConsentError(f"{path}.{key[1:]}", "has an extension but no value")


def text(tree: Mapping[str, Any], key: str, path: str) -> str:
    """Read a text that must be there."""
    found = tree.get(key)
    if not isinstance(found, str) or not found:
        raise ConsentError(f"{path}.{key}", "is missing or no text")
    return found


def obj(tree: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    """Read an object; an absent one is empty."""
    found = tree.get(key, {})
    if not isinstance(found, dict) or (key in tree and not found):
        raise ConsentError(f"{path}.{key}", "is no object")
    return found


def listed(tree: Mapping[str, Any], key: str, path: str) -> Sequence[Any]:
    """Read a list; an absent one is empty."""
    found = tree.get(key, [])
    if not isinstance(found, list) or (key in tree and not found):
        raise ConsentError(f"{path}.{key}", "is no list, or an empty one")
    return found


def each(tree: Mapping[str, Any], key: str, path: str) -> list[tuple[Any, str]]:
    """Read a list with the path of each element."""
    return [(one, f"{path}.{key}[{i}]") for i, one in enumerate(listed(tree, key, path))]


def concept(tree: Mapping[str, Any], key: str, path: str) -> tuple[Coding, ...]:
    """Read the codings of a CodeableConcept that may be absent."""
    return codings(tree[key], f"{path}.{key}") if key in tree else ()


def codings(tree: Any, path: str) -> tuple[Coding, ...]:
    """Read the codings of a CodeableConcept; one that is only text has none."""
    if not isinstance(tree, dict):
        raise ConsentError(path, "is no CodeableConcept")
    return each_coding(tree, "coding", path)


def each_coding(tree: Mapping[str, Any], key: str, path: str) -> tuple[Coding, ...]:
    """Read a list of Codings; a system or code that is not given is empty, and equals nothing."""
    found = []
    for one, where in each(tree, key, path):
        if not isinstance(one, dict):
            raise ConsentError(where, "is no Coding")
        system, code = one.get("system", ""), one.get("code", "")
        if not (isinstance(system, str) and isinstance(code, str)):
            raise ConsentError(where, "has a system or code that is no text")
        found.append(Coding(system, code))
    return tuple(found)
