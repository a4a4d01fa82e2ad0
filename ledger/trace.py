"""Whether the leaves tell a lawful story: rules over references and order. Pure.

    R0  the first leaf is log.opened and names the origin; references point to earlier
        leaves of the type they say, of equal subject and study
    R1  nothing is inferred or sent without an earlier permit for the same input, in force:
        not past valid_until, no consent it used withdrawn since, no later deny
    R2  a model that runs was registered, approved (or is a shadow), activated, not retired
    R3  an outcome is of the model that started; what is stored or confirmed is the delivery
        that was started
    R4  every study received is closed or quarantined (open ones are listed, not wrong)
    R6  no permit for a subject after its erasure

R5 (times within witness bounds) needs witnesses and R7 (a review after each override) a
type of leaf that does not exist yet; neither is judged here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ledger.bodies import PREVIOUS
from ledger.leaf import ref as _ref

__all__ = ["Trace", "Violation"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: which leaf, which rule, in words."""

    index: int
    type: str
    rule: str
    words: str

    def __str__(self) -> str:
        return f"leaf {self.index} ({self.type}): {self.rule}: {self.words}"


@dataclass(frozen=True, slots=True)
class _Seen:
    index: int
    ref: str
    record: Mapping[str, Any]

    @property
    def type(self) -> str:
        return str(self.record["type"])

    @property
    def body(self) -> Mapping[str, Any]:
        body: Mapping[str, Any] = self.record["body"]
        return body


@dataclass(slots=True)
class Trace:
    """Reads leaves in order of index; `violations` and `open_studies` are its findings."""

    origin: str
    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _seen: dict[str, _Seen] = field(default_factory=dict)
    _open: dict[str, int] = field(default_factory=dict)
    _approved: set[str] = field(default_factory=set)
    _retired: dict[str, int] = field(default_factory=dict)
    _withdrawn: dict[str, int] = field(default_factory=dict)
    _erased: dict[str, int] = field(default_factory=dict)
    _denied: dict[str, list[_Seen]] = field(default_factory=dict)

    def see(self, index: int, leaf_hash: bytes, record: Mapping[str, Any]) -> None:
        """Judge the next leaf."""
        one = _Seen(index, _ref(leaf_hash), record)
        self.counts[one.type] += 1
        self._opening(one)
        if self._references(one):
            judge = self._JUDGES.get(one.type)
            if judge is not None:
                judge(self, one)
        self._seen[one.ref] = one

    def open_studies(self) -> list[int]:
        """Indexes of study.received without an end so far (R4)."""
        return sorted(self._open.values())

    def _blame(self, one: _Seen, rule: str, words: str) -> None:
        self.violations.append(Violation(one.index, one.type, rule, words))

    def _opening(self, one: _Seen) -> None:
        if (one.index == 0) != (one.type == "log.opened"):
            self._blame(one, "R0", "log.opened is the first leaf, and only that")
        elif one.index == 0 and one.body["origin"] != self.origin:
            self._blame(one, "R0", f"it opens {one.body['origin']}, not {self.origin}")

    def _references(self, one: _Seen) -> bool:
        sound = True
        for ref in one.record.get("refs", ()):
            words = self._reference_fault(one, ref["rel"], self._seen.get(ref["leaf"]))
            if words is not None:
                self._blame(one, "R0", words)
                sound = False
        return sound

    def _reference_fault(self, one: _Seen, rel: str, target: _Seen | None) -> str | None:
        if target is None:
            return f"its {rel} is not an earlier leaf"
        if rel == PREVIOUS:
            same = target.type == one.type or (
                target.type.startswith("consent.") and one.type.startswith("consent.")
            )
            if not same:
                return f"it replaces a {target.type}"
        elif rel != target.type:
            return f"its {rel} is a {target.type}"
        for name in ("subject", "study"):
            mine, other = one.record.get(name), target.record.get(name)
            if mine is not None and other is not None and mine != other:
                return f"its {rel} is of another {name}"
        return None

    def _targets(self, one: _Seen, *types: str) -> list[_Seen]:
        refs = one.record.get("refs", ())
        return [self._seen[r["leaf"]] for r in refs if r["rel"] in types]

    def _same(self, one: _Seen, rel: str, *keys: str) -> None:
        for target in self._targets(one, rel):
            for key in keys:
                if one.body[key] != target.body[key]:
                    self._blame(one, "R3", f"its {key} is not that of its {rel}")

    def _received(self, one: _Seen) -> None:
        self._open[one.ref] = one.index

    def _ended(self, one: _Seen) -> None:
        for target in self._targets(one, "study.received"):
            self._open.pop(target.ref, None)

    def _withdrew(self, one: _Seen) -> None:
        for target in self._targets(one, "consent.granted"):
            self._withdrawn.setdefault(target.ref, one.index)

    def _erasing(self, one: _Seen) -> None:
        self._erased.setdefault(one.record["subject"], one.index)

    def _outcome(self, one: _Seen) -> None:
        self._same(one, "inference.started", "model")

    def _arrived(self, one: _Seen) -> None:
        self._same(one, "delivery.started", "destination", "kind")
        self._same(one, "result.delivered", "destination", "kind")

    def _model(self, one: _Seen) -> None:
        model = one.body["model"]
        for target in self._targets(one, "model.registered", "model.approved", "model.activated"):
            if target.body["model"] != model:
                self._blame(one, "R2", f"its {target.type} is of another model")
        if one.type == "model.approved":
            self._approved.add(model)
        elif one.type == "model.retired":
            self._retired[model] = one.index
        elif model not in self._approved and one.body.get("mode") != "shadow":
            self._blame(one, "R2", "the model was never approved")

    def _checked(self, one: _Seen) -> None:
        if one.body["decision"] == "deny":
            for target in self._targets(one, "input.sealed"):
                self._denied.setdefault(target.ref, []).append(one)
        elif one.record["subject"] in self._erased:
            self._blame(one, "R6", "a permit after the subject's erasure")

    def _started(self, one: _Seen) -> None:
        model = one.body["model"]
        for activated in self._targets(one, "model.activated"):
            if activated.body["model"] != model:
                self._blame(one, "R2", "its model.activated is of another model")
            if self._retired.get(model, -1) > activated.index:
                self._blame(one, "R2", "the model was retired before")
        sealed = self._targets(one, "input.sealed")
        for target in sealed:
            if target.body["route"]["model"] != model:
                self._blame(one, "R2", "its input was sealed for another model")
        self._in_force(one, {target.ref for target in sealed}, None)

    def _sending(self, one: _Seen) -> None:
        inputs: set[str] = set()
        for composed in self._targets(one, "result.composed"):
            for outcome in self._targets(composed, "inference.completed", "inference.failed"):
                for started in self._targets(outcome, "inference.started"):
                    inputs.update(t.ref for t in self._targets(started, "input.sealed"))
        self._in_force(one, inputs, one.body["destination"])

    def _in_force(self, one: _Seen, inputs: set[str], destination: str | None) -> None:
        for check in self._targets(one, "consent.checked"):
            words = self._force_fault(one, check, inputs, destination)
            if words is not None:
                self._blame(one, "R1", words)

    def _force_fault(
        self, one: _Seen, check: _Seen, inputs: set[str], destination: str | None
    ) -> str | None:
        if check.body["decision"] != "permit":
            return f"its consent.checked (leaf {check.index}) says deny"
        until = check.body.get("valid_until")
        if until is not None and one.record["time"] >= until:
            return f"its permit (leaf {check.index}) ended at {until}"
        asked = {target.ref for target in self._targets(check, "input.sealed")}
        if (asked or destination is None) and not inputs & asked:
            return f"its permit (leaf {check.index}) is for another input"
        for granted in self._targets(check, "consent.granted"):
            if self._withdrawn.get(granted.ref, -1) > check.index:
                return f"the consent it rests on (leaf {granted.index}) was withdrawn before"
        for denial in (d for key in inputs for d in self._denied.get(key, ())):
            scope = denial.body.get("destination")
            same = denial.body["purpose"] == check.body["purpose"] and scope in (None, destination)
            if same and denial.index > check.index:
                return f"a later check (leaf {denial.index}) says deny"
        return None

    _JUDGES: ClassVar[Mapping[str, Callable[[Trace, _Seen], None]]] = {
        "study.received": _received,
        "study.closed": _ended,
        "study.quarantined": _ended,
        "consent.withdrawn": _withdrew,
        "consent.checked": _checked,
        "subject.erased": _erasing,
        "model.approved": _model,
        "model.activated": _model,
        "model.retired": _model,
        "inference.started": _started,
        "inference.completed": _outcome,
        "inference.failed": _outcome,
        "delivery.started": _sending,
        "result.delivered": _arrived,
        "result.confirmed": _arrived,
    }
