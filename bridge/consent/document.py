"""A FHIR Consent (R4 or R5) as one tree of provisions that can be evaluated.

Closed on purpose: an element that stands in neither version is refused with its path, because a
misspelt condition would widen what the patient allowed. What is well formed but cannot be
evaluated (a modifierExtension, a base decision that is not stated, an advance directive) is
kept with the reason in ``unusable`` and never permits anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge.consent.moments import ALWAYS, Span
from bridge.consent.policy import Answer
from bridge.consent.purposes import ACT_CODE, Coding
from bridge.consent.tree import (
    ConsentError,
    answer,
    closed,
    codings,
    concept,
    each,
    each_coding,
    listed,
    moment,
    obj,
    period,
    read,
    text,
)

__all__ = ["Actor", "ConsentError", "DataRule", "Document", "Provision", "parse"]

MAX_DEPTH = 8
Meaning = Literal["instance", "related", "dependents", "authoredby"]


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


_MEANINGS: Mapping[str, Meaning] = {
    "instance": "instance",
    "related": "related",
    "dependents": "dependents",
    "authoredby": "authoredby",
}
_SCOPE = "http://terminology.hl7.org/CodeSystem/consentscope"
_CATEGORY = "http://terminology.hl7.org/CodeSystem/consentcategorycodes"
_STATUS = {
    "R4": frozenset({"draft", "proposed", "active", "rejected", "inactive", "entered-in-error"}),
    "R5": frozenset({"draft", "active", "inactive", "not-done", "entered-in-error", "unknown"}),
}
_COMMON = _words(
    "resourceType id meta implicitRules language text contained extension modifierExtension"
    " identifier status category verification provision"
)
_ROOT = {
    "R4": _COMMON
    | _words(
        "scope patient dateTime performer organization sourceAttachment sourceReference policy"
        " policyRule"
    ),
    "R5": _COMMON
    | _words(
        "subject date period grantor grantee manager controller sourceAttachment sourceReference"
        " regulatoryBasis policyBasis policyText decision"
    ),
}
_RULE = _words(
    "id extension modifierExtension period actor action securityLabel purpose code dataPeriod"
    " data provision"
)
_PROVISION = {
    "R4": _RULE | {"type", "class"},
    "R5": _RULE | {"documentType", "resourceType", "expression"},
}


@dataclass(frozen=True)
class Actor:
    """Who a provision speaks of: names under which he is known; no names: cannot be told."""

    names: frozenset[str]
    receives: bool  # the role is IRCP (information recipient) or was not given


@dataclass(frozen=True)
class DataRule:
    """Data that a provision speaks of, by reference; an empty reference cannot be told."""

    meaning: Meaning
    reference: str


@dataclass(frozen=True)
class Provision:
    """One rule and its exceptions; an empty tuple is no condition."""

    path: str
    type: Answer
    period: Span = ALWAYS
    purposes: tuple[Coding, ...] = ()
    actors: tuple[Actor, ...] = ()
    labels: tuple[Coding, ...] = ()
    data: tuple[DataRule, ...] = ()
    data_period: Span | None = None
    classes: tuple[Coding, ...] = ()
    codes: tuple[tuple[Coding, ...], ...] = ()
    actions: tuple[tuple[Coding, ...], ...] = ()
    provisions: tuple[Provision, ...] = ()


@dataclass(frozen=True)
class Document:
    """A Consent that was read. ``unusable`` is a reason code, or None.

    ``dated`` is when it was given (R4 dateTime, R5 date), as a span because R5 knows only days;
    None where it does not say.
    """

    release: Literal["R4", "R5"]
    status: str
    dated: Span | None
    root: Provision
    unusable: str | None = None
    patient: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def identifier(self) -> tuple[str, str] | None:
        """Return (system, value) of the patient's identifier, or None."""
        found = self.patient.get("identifier")
        if not isinstance(found, dict):
            return None
        system, value = found.get("system"), found.get("value")
        if not (isinstance(system, str) and isinstance(value, str) and system and value):
            return None
        return system, value

    def reference(self) -> str | None:
        """Return the bare reference to the patient ("Patient/7"), or None."""
        found = self.patient.get("reference")
        return found if isinstance(found, str) and found else None


def parse(data: bytes) -> Document:
    """Read the JSON of one FHIR Consent, R4 or R5. Raises ConsentError with the FHIR path."""
    tree = read(data)
    if tree.get("resourceType") != "Consent":
        raise ConsentError("Consent.resourceType", "is not Consent")
    release = _release(tree)
    closed(tree, _ROOT[release], "Consent")
    status = text(tree, "status", "Consent")
    if status not in _STATUS[release]:
        raise ConsentError("Consent.status", f"is no status of {release}")
    base, unusable = _base(tree, release)
    root = _root(tree, release, base)
    dated = moment(tree, "dateTime" if release == "R4" else "date", "Consent")
    return Document(
        release=release,
        status=status,
        dated=dated,
        root=root,
        unusable=_hindrance(tree, release) or unusable,
        patient=obj(tree, "patient" if release == "R4" else "subject", "Consent"),
    )


def _release(tree: Mapping[str, Any]) -> Literal["R4", "R5"]:
    """R4 has one provision and a mandatory scope, R5 a list of provisions and a decision."""
    old = {"scope", "patient", "dateTime", "policyRule"} & tree.keys()
    new = {"decision", "subject", "date", "policyBasis"} & tree.keys()
    provision = tree.get("provision")
    if isinstance(provision, dict) or (old and not new and not isinstance(provision, list)):
        return "R4"
    if isinstance(provision, list) or new:
        return "R5"
    raise ConsentError("Consent", "is neither R4 nor R5")


def _base(tree: Mapping[str, Any], release: str) -> tuple[Answer, str | None]:
    """Find the base decision, and why there is none that can be relied on.

    R5 decision; R4 root type (as PCF asks); R4 policyRule OPTIN or OPTOUT, but only if the root
    provision has no condition of its own: HL7's examples disagree on what one would mean.
    """
    if release == "R5":
        if "decision" not in tree:
            return "deny", "no-base-decision"
        return answer(tree, "decision", "Consent"), None
    provision = obj(tree, "provision", "Consent")
    if "type" in provision:
        return answer(provision, "type", "Consent.provision"), None
    rules = {c.code for c in concept(tree, "policyRule", "Consent") if c.system == ACT_CODE}
    conditions = provision.keys() & (_PROVISION["R4"] - {"id", "extension", "provision"})
    if len(rules & {"OPTIN", "OPTOUT"}) != 1 or conditions:
        return "deny", "no-base-decision"
    return ("permit" if "OPTIN" in rules else "deny"), None


def _hindrance(tree: Mapping[str, Any], release: str) -> str | None:
    if tree.get("implicitRules"):
        return "implicit-rules"
    if _has(tree, "modifierExtension"):
        return "modifier-extension"
    if release == "R5" and _has(tree.get("provision"), "expression"):
        return "expression"
    categories = {
        coding
        for index, one in enumerate(listed(tree, "category", "Consent"))
        for coding in codings(one, f"Consent.category[{index}]")
    }
    scope = set(concept(tree, "scope", "Consent"))
    privacy = {Coding(_SCOPE, "patient-privacy"), Coding(_SCOPE, "research")}
    if release == "R4" and not scope & privacy:
        return "scope-not-privacy"
    directives = {Coding(_CATEGORY, code) for code in ("acd", "dnr", "polst")}
    directives |= {Coding(_SCOPE, "adr"), Coding(_SCOPE, "treatment")}
    if categories & directives and not categories & privacy:
        return "not-about-privacy"
    return None


def _has(tree: Any, key: str) -> bool:
    """Whether the key stands anywhere below; contained resources speak for themselves."""
    if isinstance(tree, list):
        return any(_has(one, key) for one in tree)
    if not isinstance(tree, dict):
        return False
    return key in tree or any(_has(v, key) for k, v in tree.items() if k != "contained")


def _root(tree: Mapping[str, Any], release: str, base: Answer) -> Provision:
    if release == "R4":
        return _provision(obj(tree, "provision", "Consent"), "Consent.provision", "R4", base, 1)
    nested = tuple(
        _provision(one, f"Consent.provision[{index}]", "R5", _flip(base), 1)
        for index, one in enumerate(listed(tree, "provision", "Consent"))
    )
    return Provision("Consent", base, period(tree, "period", "Consent"), provisions=nested)


def _provision(tree: Any, path: str, release: str, type_: Answer, depth: int) -> Provision:
    if not isinstance(tree, dict):
        raise ConsentError(path, "is no object")
    if depth > MAX_DEPTH:
        raise ConsentError(path, f"is nested deeper than {MAX_DEPTH} levels")
    closed(tree, _PROVISION[release], path)
    own = answer(tree, "type", path) if "type" in tree else type_
    has_data_period = "dataPeriod" in tree
    return Provision(
        path=path,
        type=own,
        period=period(tree, "period", path),
        purposes=each_coding(tree, "purpose", path),
        actors=tuple(_actor(a, p) for a, p in each(tree, "actor", path)),
        labels=each_coding(tree, "securityLabel", path),
        data=tuple(_data(d, p) for d, p in each(tree, "data", path)),
        data_period=period(tree, "dataPeriod", path) if has_data_period else None,
        classes=tuple(
            c
            for key in ("class", "documentType", "resourceType")
            for c in each_coding(tree, key, path)
        ),
        codes=tuple(codings(c, p) for c, p in each(tree, "code", path)),
        actions=tuple(codings(c, p) for c, p in each(tree, "action", path)),
        provisions=tuple(
            _provision(one, p, release, _flip(own), depth + 1)
            for one, p in each(tree, "provision", path)
        ),
    )


def _flip(base: Answer) -> Answer:
    return "deny" if base == "permit" else "permit"


def _actor(tree: Any, path: str) -> Actor:
    if not isinstance(tree, dict):
        raise ConsentError(path, "is no object")
    names = _names(obj(tree, "reference", path))
    roles = concept(tree, "role", path)
    return Actor(names, receives=not roles or any(role.code == "IRCP" for role in roles))


def _data(tree: Any, path: str) -> DataRule:
    if not isinstance(tree, dict):
        raise ConsentError(path, "is no object")
    meaning = _MEANINGS.get(text(tree, "meaning", path))
    if meaning is None:
        raise ConsentError(f"{path}.meaning", "is no meaning")
    reference = obj(tree, "reference", path).get("reference")
    return DataRule(meaning, reference if isinstance(reference, str) else "")


def _names(reference: Mapping[str, Any]) -> frozenset[str]:
    found = set()
    if isinstance(reference.get("reference"), str):
        found.add(reference["reference"])
    identifier = reference.get("identifier")
    if isinstance(identifier, dict) and isinstance(identifier.get("value"), str):
        found.add(f"{identifier.get('system', '')}|{identifier['value']}")
    return frozenset(found)
