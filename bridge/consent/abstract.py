"""What a leaf says of a consent document in the open: codes of known tables, never its own words.

A document is the patient's; whoever wrote it could have put a name where a code belongs. So only
codes that stand in the tables below leave it; the rest is in the commitment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bridge.consent.document import Document, Provision
from bridge.consent.moments import ALWAYS
from bridge.consent.purposes import known

__all__ = ["said_openly", "surely_older"]

_SCOPES = frozenset({"adr", "research", "patient-privacy", "treatment"})
_CATEGORIES = frozenset({
    *("acd", "dnr", "emrgonly", "hcd", "npp", "polst", "research", "rsdid", "rsreid"),
    *("ICOL", "IDSCL", "INFA", "INFAO", "INFASO", "IRDSCL", "RESEARCH", "RSDID", "RSREID"),
    *("57016-8", "57017-6", "59284-0", "64292-6"),
})  # fmt: skip
_POLICY = re.compile(
    r"https://profiles\.ihe\.net/ITI/PCF/Policy-(basic|intermediate|advanced)(-normal|-restricted)?"
)


def said_openly(data: bytes, document: Document) -> dict[str, Any]:
    """Give base decision, purposes, scope, category, policy and version, as far as known."""
    tree = json.loads(data)
    found = {
        "base": document.root.type,
        "purposes": sorted({c.code for p in _each(document.root) for c in p.purposes if known(c)}),
        "category": sorted(_CATEGORIES.intersection(_codes(tree.get("category")))),
        "scope": next(iter(sorted(_SCOPES.intersection(_codes(tree.get("scope"))))), None),
        "policy": _policy(tree.get("policy")),
        "version": None if (number := _version(tree)) is None else str(number),
    }
    return {key: value for key, value in found.items() if value}


def surely_older(data: bytes, document: Document, other: bytes, kept: Document) -> bool:
    """Whether a version is older than the one kept: by meta.versionId, else by its date."""
    mine, its = _version(json.loads(data)), _version(json.loads(other))
    if mine is not None and its is not None:
        return mine < its
    return (document.dated or ALWAYS).end <= (kept.dated or ALWAYS).start


def _each(provision: Provision) -> Iterator[Provision]:
    yield provision
    for one in provision.provisions:
        yield from _each(one)


def _codes(value: Any) -> set[str]:
    """Every code below a CodeableConcept or a list of them."""
    if isinstance(value, list):
        return {code for one in value for code in _codes(one)}
    if not isinstance(value, Mapping):
        return set()
    code = value.get("code")
    return ({code} if isinstance(code, str) else set()) | _codes(value.get("coding"))


def _policy(value: Any) -> str | None:
    uris = [one.get("uri") for one in value or () if isinstance(one, Mapping)]
    return next((u for u in uris if isinstance(u, str) and _POLICY.fullmatch(u)), None)


def _version(tree: Mapping[str, Any]) -> int | None:
    meta = tree.get("meta")
    found = meta.get("versionId") if isinstance(meta, Mapping) else None
    return int(found) if isinstance(found, str) and re.fullmatch(r"[0-9]{1,6}", found) else None
