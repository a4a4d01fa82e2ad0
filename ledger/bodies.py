"""What each type of leaf must say: required and optional keys, references, whose chain.

Unknown keys are refused everywhere. Objects whose inside is the writer's business
(`counts`, `evidence`, `runtime`, `what`, `scope`, `decoders`, `matched`, `findings`) may
hold whole numbers, truth values and short labels, nested up to four deep: no free text,
no number with a fraction. A later version may add optional keys and types, never remove
or tighten: bytes once written stay valid.

`rel` of a reference is the type of the leaf it points to; `previous` points to a leaf of
the same type (of the same family for consent.*) that this one replaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["PREVIOUS", "TYPES", "Kind", "Shape", "fault", "is_unexplained"]

PREVIOUS = "previous"


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of value: the words for it, and the test.

    `plain` is a pattern of its canonical JSON where that is ASCII without escapes; "" where no
    pattern can know it, which is so for objects (`ledger.plain`).
    """

    words: str
    holds: Callable[[object], bool]
    plain: str = ""


def _text(words: str, pattern: str) -> Shape:
    return Shape(words, _matches(pattern), f'"{pattern}"')


def _matches(pattern: str) -> Callable[[object], bool]:
    full = re.compile(pattern).fullmatch
    return lambda value: isinstance(value, str) and full(value) is not None


# 256 bits are 42 digits of base64, a last one that carries four bits, and the padding.
_HASH = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
_is_hash = _matches(_HASH)


def _is_label(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_fact(value: object, depth: int = 4) -> bool:
    if value.__class__ is str:
        return _is_label(value)
    if isinstance(value, Mapping):
        return depth > 0 and all(_is_label(k) and _is_fact(v, depth - 1) for k, v in value.items())
    if isinstance(value, list):
        return depth > 0 and all(_is_fact(v, depth - 1) for v in value)
    return value is None or isinstance(value, bool | int) or _is_label(value)


def _every(words: str, shape: Shape) -> Shape:
    return Shape(
        words,
        lambda value: isinstance(value, list) and all(map(shape.holds, value)),
        rf"\[(?:{shape.plain}(?:,{shape.plain})*)?\]",
    )


def _is_route(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"model", "roles"}
        and DIGEST.holds(value["model"])
        and LABELS.holds(value["roles"])
    )


def _is_attributes(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        TAG.holds(tag) and _is_hash(commitment) for tag, commitment in value.items()
    )


def _is_override(value: object) -> bool:
    return isinstance(value, Mapping) and set(value) == {"reason", "by"} and _is_fact(value)


def _one_of(*words: str) -> Shape:
    return Shape(" or ".join(words), lambda value: value in words, f'"(?:{"|".join(words)})"')


CODE = _text("a code without spaces", r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,99}")
LABEL = Shape("a printable label of at most 200 characters", _is_label, r'"[ !#-\[\]-~]{1,200}"')
# As many digits as always fit into 53 bits.
COUNT = Shape("a whole number from 0", _is_count, "(?:0|[1-9][0-9]{0,14})")
DIGEST = _text("a SHA-256 in 64 lower-case hex digits", r"[0-9a-f]{64}")
HASH = _text("32 bytes in base64", _HASH)
TAG = _text("a DICOM tag in 8 lower-case hex digits", r"[0-9a-f]{8}")
UID = _text("a DICOM UID", r"[0-9]+(?:\.[0-9]+)+")
WHEN = _text("a UTC time with milliseconds", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
FLAG = Shape("true or false", lambda value: isinstance(value, bool), "(?:true|false)")
LABELS = _every("a list of labels", LABEL)
CODES = _every("a list of codes", CODE)
FACTS = Shape("an object of numbers and labels", lambda v: isinstance(v, Mapping) and _is_fact(v))
LIST = Shape("a list of numbers and labels", lambda v: isinstance(v, list) and _is_fact(v))
SAID = Shape("a code, or an object of numbers", lambda v: CODE.holds(v) or FACTS.holds(v))
MAYBE_WHEN = Shape(
    "a UTC time with milliseconds, or null", lambda v: v is None or WHEN.holds(v),
    f"(?:null|{WHEN.plain})",
)  # fmt: skip
ROUTE = Shape(
    "{model: digest, roles: labels}", _is_route,
    rf'\{{"model":{DIGEST.plain},"roles":{LABELS.plain}\}}',
)  # fmt: skip
ATTRIBUTES = Shape("an object of tag: 32 bytes in base64", _is_attributes)
OVERRIDE = Shape("{reason, by}", _is_override)

BOTH, SUBJECT, STUDY, EITHER, NONE = "both", "subject", "study", "either", "none"


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of leaf.

    `chain` says whose: BOTH subject and study required; SUBJECT or STUDY required and
    the other allowed; EITHER allowed; NONE forbidden. `refs` are groups of rels of which
    each group needs one.
    """

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)
    refs: tuple[frozenset[str], ...] = ()
    chain: str = NONE
    tests: Mapping[str, Callable[[object], bool]] = field(init=False, repr=False)
    needed: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {**self.optional, **self.required}
        object.__setattr__(self, "tests", {key: shape.holds for key, shape in shapes.items()})
        object.__setattr__(self, "needed", frozenset(self.required))


def _refs(*groups: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(group.split("|")) for group in groups)


_CONSENT = {
    "version": LABEL, "scope": LABEL, "category": LABELS, "policy": LABEL, "purposes": LABELS,
    "period": FACTS, "recorder": LABEL, "base": CODE, "reason": CODE, "purpose": CODE,
}  # fmt: skip
_RUN = {
    "run": CODE, "attempt": COUNT, "input": HASH, "preprocessing": DIGEST, "parameters": DIGEST,
    "host": DIGEST, "seed": COUNT, "package": DIGEST, "mode": CODE,
}  # fmt: skip
_RAN = {
    **_RUN, "milliseconds": COUNT, "runtime": FACTS, "decoders": FACTS, "output": HASH,
    "findings": LIST, "peak_mb": COUNT,
}  # fmt: skip
_SENT = {"destination": LABEL, "kind": CODE}
_HOW = {"attempt": COUNT, "ack": SAID, "object": UID, "protocol": CODE, "payload": HASH}
_MODEL = {
    "id": LABEL, "name": LABEL, "version": LABEL, "by": LABEL, "role": CODE, "reason": CODE,
    "report": DIGEST, "scope": FACTS, "thresholds": DIGEST, "regulatory": LABEL, "key": DIGEST,
    "statement": LABEL, "authn": CODE, "signature": LABEL, "mode": CODE, "package": DIGEST,
}  # fmt: skip

# fmt: off
TYPES: Mapping[str, Kind] = {
    "log.opened": Kind({"schema": COUNT, "origin": LABEL}, {"policy": DIGEST, "vkeys": LIST}),
    # The first leaf of a log that goes on where another ended: `size` and `root` of its end.
    "log.continued": Kind(
        {"schema": COUNT, "origin": LABEL, "previous": LABEL, "size": COUNT, "root": HASH},
        {"policy": DIGEST, "vkeys": LIST, "reason": CODE, "by": LABEL},
    ),
    "log.closed": Kind({"reason": CODE}, {"next": LABEL, "by": LABEL}),
    "key.rotated": Kind({"keys": CODES}, {"reason": CODE, "by": LABEL, "proof": LIST}),
    "config.changed": Kind({"digest": DIGEST}, {"previous": DIGEST, "keys": LABELS, "by": LABEL}),
    "model.registered": Kind(
        {"model": DIGEST, "id": LABEL, "version": LABEL, "vendor": LABEL},
        {
            **_MODEL, "size": COUNT, "opset": COUNT, "card": DIGEST, "io": DIGEST,
            "licence": LABEL, "intended_use": DIGEST, "training": DIGEST, "research_only": FLAG,
            "manifest": DIGEST, "trusted": FLAG, "bundled": FLAG,
        },
    ),
    "model.approved": Kind(
        {"model": DIGEST, "by": LABEL}, _MODEL, _refs("model.registered")
    ),
    "model.activated": Kind(
        {"model": DIGEST}, _MODEL, _refs("model.registered|model.approved")
    ),
    # An activation taken back: nothing starts on it any more. The model may be activated anew.
    "model.suspended": Kind(
        {"model": DIGEST, "reason": CODE}, _MODEL, _refs("model.activated")
    ),
    "model.retired": Kind(
        {"model": DIGEST}, _MODEL, _refs("model.registered|model.approved|model.activated")
    ),
    # A report on what the model did: `report` is its SHA-256, `against` the model beside it.
    "model.assessed": Kind(
        {"model": DIGEST, "report": DIGEST}, {**_MODEL, "against": DIGEST},
        _refs("model.registered"),
    ),
    "study.received": Kind(
        {"source": LABEL, "protocol": CODE, "generation": COUNT, "instances": COUNT},
        {"series": COUNT, "bytes": COUNT, "modalities": CODES, "root": HASH, "counts": FACTS},
        chain=BOTH,
    ),
    "input.sealed": Kind(
        {"route": ROUTE, "root": HASH, "counts": FACTS, "evidence": SAID},
        {"digest": HASH, "decoders": FACTS, "generation": COUNT},
        _refs("study.received"),
        BOTH,
    ),
    "study.quarantined": Kind({"reason": CODE}, {"instances": COUNT, "counts": FACTS}, chain=STUDY),
    "consent.granted": Kind(
        {"document": HASH, "status": CODE, "source": CODE}, _CONSENT, chain=SUBJECT
    ),
    "consent.withdrawn": Kind(
        {"document": HASH}, {**_CONSENT, "source": CODE, "status": CODE},
        _refs("consent.granted"), SUBJECT,
    ),
    "consent.amended": Kind(
        {"document": HASH, "status": CODE, "source": CODE}, _CONSENT,
        _refs("previous"), SUBJECT,
    ),
    "consent.checked": Kind(
        {
            "decision": _one_of("permit", "deny"),
            "basis": _one_of("consent", "policy", "override"),
            "purpose": CODE, "policy": LABEL, "engine": LABEL, "reason": CODE,
        },
        {
            "request": HASH, "matched": LIST, "valid_until": MAYBE_WHEN, "policy_digest": DIGEST,
            "override": OVERRIDE, "stage": CODE, "destination": LABEL, "reasons": CODES,
            "documents": LIST,
        },
        chain=SUBJECT,
    ),
    "override.reviewed": Kind(
        {"outcome": CODE, "by": LABEL}, {"reason": CODE, "authn": CODE},
        _refs("consent.checked"), SUBJECT,
    ),
    "inference.started": Kind(
        {"model": DIGEST}, _RUN, _refs("input.sealed", "consent.checked", "model.activated"), BOTH
    ),
    "inference.completed": Kind(
        {"model": DIGEST, "runtime": FACTS, "milliseconds": COUNT},
        _RAN, _refs("inference.started"), BOTH,
    ),
    "inference.failed": Kind(
        {"model": DIGEST, "reason": CODE}, _RAN, _refs("inference.started"), BOTH
    ),
    "result.composed": Kind(
        {"kind": CODE, "revision": COUNT, "content": HASH},
        {"sop_class": UID, "attributes": ATTRIBUTES, "signature": HASH, "model": DIGEST,
         "partial": FLAG, "fallback": CODE},
        _refs("inference.completed|inference.failed"), BOTH,
    ),
    "delivery.started": Kind(
        _SENT, _HOW, _refs("result.composed", "consent.checked"), BOTH
    ),
    "result.delivered": Kind({**_SENT, "ack": SAID}, _HOW, _refs("delivery.started"), BOTH),
    "result.confirmed": Kind({**_SENT, "ack": SAID}, _HOW, _refs("result.delivered"), BOTH),
    "result.unconfirmed": Kind(
        {**_SENT, "reason": CODE}, _HOW, _refs("result.delivered"), BOTH
    ),
    "result.superseded": Kind(
        {**_SENT, "reason": CODE}, {"by": LABEL}, _refs("result.delivered"), BOTH
    ),
    "result.recalled": Kind(
        {**_SENT, "reason": CODE}, {"by": LABEL}, _refs("result.delivered"), BOTH
    ),
    "study.closed": Kind(
        {"outcome": CODE, "counts": FACTS}, {"reason": CODE, "reasons": CODES, "generation": COUNT},
        _refs("study.received"), BOTH,
    ),
    "subject.erased": Kind(
        {"basis": LABEL}, {"expiry": MAYBE_WHEN, "by": LABELS, "authn": CODE, "reason": CODE},
        chain=SUBJECT,
    ),
    "witness.status": Kind(
        {"witness": LABEL, "state": CODE}, {"size": COUNT, "behind": COUNT, "reason": CODE}
    ),
    "access.disclosed": Kind(
        {"recipient": LABEL, "purpose": CODE, "what": FACTS, "basis": LABEL},
        {"format": CODE, "root": HASH, "by": LABEL, "authn": CODE}, chain=EITHER,
    ),
}
# fmt: on


def fault(kind: Kind, record: Mapping[str, object]) -> str | None:
    """Return what is wrong with a record's body, chain or references, in words; None if nothing."""
    body = record["body"]
    if not isinstance(body, Mapping):
        return "body must be an object"
    if not kind.needed <= body.keys():
        key = next(key for key in kind.required if key not in body)
        return f"body.{key} is missing: {kind.required[key].words}"
    tests = kind.tests
    for key, value in body.items():
        if key not in tests:
            return f"body.{key} is not a key of {record['type']}"
        if not tests[key](value):
            return f"body.{key} must be {(kind.required.get(key) or kind.optional[key]).words}"
    if is_unexplained(body):
        return "body.override is missing: an override names its reason and by whom"
    return _chain_fault(kind, record) or _ref_fault(kind, record)


def is_unexplained(body: Mapping[str, object]) -> bool:
    """Whether a decision overrides consent and does not say why."""
    return body.get("basis") == "override" and "decision" in body and "override" not in body


def _chain_fault(kind: Kind, record: Mapping[str, object]) -> str | None:
    chain = kind.chain
    for name in ("subject", "study"):
        if name in record:
            if chain == NONE:
                return f"{name} does not belong into {record['type']}"
        elif chain in (BOTH, name):
            return f"{name} is missing"
    return None


def _ref_fault(kind: Kind, record: Mapping[str, object]) -> str | None:
    refs = record.get("refs", [])
    rels = [ref["rel"] for ref in refs] if isinstance(refs, list) else []
    for rel in rels:
        if rel not in TYPES and rel != PREVIOUS:
            return f"refs: {rel!r} is neither a type of leaf nor {PREVIOUS!r}"
    for group in kind.refs:
        if group.isdisjoint(rels):
            return f"refs: one to {' or '.join(sorted(group))} is missing"
    return None
