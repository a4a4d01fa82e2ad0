"""What is asked: who wants which data for which purpose, and when."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bridge.consent.moments import Span, span
from bridge.consent.purposes import NORMAL, Coding
from bridge.consent.tree import ConsentError, closed, each_coding, listed, obj, read, text

__all__ = ["Request"]

_REFERENCES = ("refs", "related", "dependents", "authors")
_CODINGS = ("classes", "codes", "actions")
_DATA = frozenset({"labels", "time", *_REFERENCES, *_CODINGS})


@dataclass(frozen=True)
class Request:
    """A question to the patient's documents.

    ``actors``: every reference ("Organization/x") or "system|value" under which the requester
    is known. ``at``: with a time zone. Of the data: ``refs`` names it, ``related`` what it
    belongs to (Encounter, …), ``authors`` who made it, ``time`` is when (a FHIR date), ``labels``
    its confidentiality and sensitivity, N where nothing is known.

    None is "not known" and is answered with care: an exception that might withhold this data
    withholds it, one that might release it does not. An empty set is "known: none".
    """

    purpose: Coding
    actors: frozenset[str]
    at: datetime
    labels: tuple[Coding, ...] = (NORMAL,)
    refs: frozenset[str] | None = None
    related: frozenset[str] | None = None
    dependents: frozenset[str] | None = None
    authors: frozenset[str] | None = None
    time: str | None = None
    classes: frozenset[Coding] | None = None
    codes: frozenset[Coding] | None = None
    actions: frozenset[Coding] | None = None

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ConsentError("Request.at", "needs a time zone")
        self.span()

    def span(self) -> Span | None:
        """Return the time of the data, None where it is not known."""
        try:
            return None if self.time is None else span(self.time)
        except ValueError as error:
            raise ConsentError("Request.data.time", "is no date") from error

    @classmethod
    def from_json(cls, source: bytes | str | Mapping[str, Any]) -> Request:
        """Read {"purpose", "actors", "at", "data"}; raises ConsentError with the path."""
        tree = source
        if isinstance(source, str):
            tree = read(source.encode(), "Request")
        elif isinstance(source, bytes):
            tree = read(source, "Request")
        if not isinstance(tree, Mapping):
            raise ConsentError("Request", "is no object")
        closed(tree, frozenset({"purpose", "actors", "at", "data"}), "Request")
        data = tree.get("data", {})
        if not isinstance(data, Mapping):
            raise ConsentError("Request.data", "is no object")
        closed(data, _DATA, "Request.data")
        return cls(
            purpose=_purpose(tree),
            actors=_texts(tree, "actors", "Request"),
            at=_at(tree),
            labels=_labels(data),
            time=text(data, "time", "Request.data") if "time" in data else None,
            **{key: _known(data, key, _texts) for key in _REFERENCES},
            **{key: _known(data, key, _coding_set) for key in _CODINGS},
        )

    def to_json(self) -> bytes:
        """Return the same as canonical JSON; equal requests give equal bytes."""
        data: dict[str, Any] = {"labels": [_plain(label) for label in sorted(self.labels)]}
        if self.time is not None:
            data["time"] = self.time
        for key in _REFERENCES:
            found: frozenset[str] | None = getattr(self, key)
            if found is not None:
                data[key] = sorted(found)
        for key in _CODINGS:
            codes: frozenset[Coding] | None = getattr(self, key)
            if codes is not None:
                data[key] = [_plain(code) for code in sorted(codes)]
        at = self.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        tree = {
            "purpose": _plain(self.purpose),
            "actors": sorted(self.actors),
            "at": at,
            "data": data,
        }
        return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode("ascii")


def _plain(coding: Coding) -> dict[str, str]:
    return {"system": coding.system, "code": coding.code}


def _purpose(tree: Mapping[str, Any]) -> Coding:
    purpose = obj(tree, "purpose", "Request")
    closed(purpose, frozenset({"system", "code", "display", "version"}), "Request.purpose")
    return Coding(
        text(purpose, "system", "Request.purpose"), text(purpose, "code", "Request.purpose")
    )


def _at(tree: Mapping[str, Any]) -> datetime:
    given = text(tree, "at", "Request")
    try:
        if "T" not in given:
            raise ValueError("a date is no moment")
        return span(given).start
    except ValueError as error:
        raise ConsentError("Request.at", "is no instant") from error


def _labels(data: Mapping[str, Any]) -> tuple[Coding, ...]:
    return each_coding(data, "labels", "Request.data") if data.get("labels") else (NORMAL,)


def _texts(tree: Mapping[str, Any], key: str, path: str) -> frozenset[str]:
    found = [] if tree.get(key) == [] else listed(tree, key, path)
    return frozenset(_only_texts(found, f"{path}.{key}"))


def _only_texts(found: Iterable[Any], path: str) -> Iterable[str]:
    for one in found:
        if not isinstance(one, str) or not one:
            raise ConsentError(path, "holds what is no text")
        yield one


def _coding_set(tree: Mapping[str, Any], key: str, path: str) -> frozenset[Coding]:
    return frozenset() if tree.get(key) == [] else frozenset(each_coding(tree, key, path))


def _known(data: Mapping[str, Any], key: str, how: Any) -> Any:
    return how(data, key, "Request.data") if key in data else None
