"""Trace rules about use: R1 and R6 (consent), R7 (overrides), R2 (models), R3 (results). Pure.

`ledger.trace` says the rules in words; each function here judges one type of leaf. Whether
something came between two leaves is asked of their `order`, so that a leaf that was carried from
an earlier log is not judged by what this log said before it was carried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ledger.bodies import PREVIOUS
from ledger.trace_memory import Memory, Seen

__all__ = ["Blame", "Consent", "Models", "Results", "started_by"]

Blame = Callable[[Seen, str, str], None]
"""Say that a leaf breaks a rule: (leaf, rule, words)."""

Order = tuple[int, str, int]
_OUTCOMES = ("inference.completed", "inference.failed")
_DOCUMENTS = ("consent.granted", "consent.amended")


class Consent:
    """R1, R6 and R7."""

    def __init__(self, memory: Memory, blame: Blame) -> None:
        self._memory = memory
        self._blame = blame
        self._first: dict[str, str] = {}  # a newer version of a document -> its first one
        self._withdrawn: dict[str, tuple[Order, int]] = {}
        self._replaced: dict[str, tuple[Order, int]] = {}
        self._erased: dict[str, tuple[Order, int]] = {}
        self._denied: dict[str, list[tuple[Order, int, str, str | None]]] = {}
        self.overrides: dict[str, tuple[int, str]] = {}
        """Overrides that nobody has reviewed: leaf hash -> (index, time)."""

    def granted(self, one: Seen) -> None:
        """Take a document, and that it replaces another."""
        for before in self._memory.targets(one, PREVIOUS):
            self._replaced.setdefault(before.ref, (one.order, one.index))
            self._first[one.ref] = self._first.get(before.ref, before.ref)

    def withdrew(self, one: Seen) -> None:
        """Take a withdrawal: of a document in all its versions."""
        for target in self._memory.targets(one, *_DOCUMENTS, PREVIOUS):
            first = self._first.get(target.ref, target.ref)
            self._withdrawn.setdefault(first, (one.order, one.index))

    def erased(self, one: Seen) -> None:
        """Take an erasure."""
        if one.subject is not None:
            self._erased.setdefault(one.subject, (one.order, one.index))

    def checked(self, one: Seen) -> None:
        """Judge a decision."""
        if one.body["decision"] == "deny":
            said = (one.order, one.index, one.body["purpose"], one.body.get("destination"))
            for target in self._memory.targets(one, "input.sealed"):
                self._denied.setdefault(target.ref, []).append(said)
        else:
            self._not_erased(one, "a permit")
            if one.body["basis"] == "consent":
                self._not_withdrawn(one)
        if one.body["basis"] == "override" and not one.carried:
            self.overrides[one.ref] = (one.index, one.time)

    def reviewed(self, one: Seen) -> None:
        """Judge a review."""
        for target in self._memory.targets(one, "consent.checked"):
            if target.body["basis"] != "override":
                self._blame(one, "R7", f"it reviews leaf {target.index}, which is no override")
            self.overrides.pop(target.ref, None)

    def _not_withdrawn(self, check: Seen) -> None:
        for ref in map(self._memory.here, check.rests_on):
            order, index = self._withdrawn.get(self._first.get(ref, ref), (check.order, 0))
            if order < check.order:
                self._blame(check, "R1", f"it rests on a consent that leaf {index} had withdrawn")
                return

    def _not_erased(self, one: Seen, what: str) -> None:
        order, index = self._erased.get(one.subject or "", (one.order, 0))
        if order < one.order:
            self._blame(one, "R6", f"{what} after this subject's data was erased (leaf {index})")

    def used(self, one: Seen, inputs: set[str], destination: str | None) -> None:
        """Judge the permits of an inference.started (no destination) or a delivery.started."""
        self._not_erased(one, "a use")
        for check in self._memory.targets(one, "consent.checked"):
            words = self._fault(one, check, inputs, destination)
            if words is not None:
                self._blame(one, "R1", words)

    def _fault(
        self, one: Seen, check: Seen, inputs: set[str], destination: str | None
    ) -> str | None:
        if check.body["decision"] != "permit":
            return f"its consent.checked (leaf {check.index}) says deny"
        until = check.body.get("valid_until")
        if until is not None and one.time >= until:
            return f"its permit (leaf {check.index}) ended at {until}"
        asked = {ref for rel, ref in check.refs if rel == "input.sealed"}
        if (asked or destination is None) and not inputs & asked:
            return f"its permit (leaf {check.index}) is for another input"
        only = check.body.get("destination")
        if only is not None and only != destination:
            return f"its permit (leaf {check.index}) is for sending to {only}"
        return self._ended(one, check) or self._denial(one, check, inputs, destination)

    def _ended(self, one: Seen, check: Seen) -> str | None:
        for ref in map(self._memory.here, check.rests_on):
            for ends, did in (
                (self._withdrawn.get(self._first.get(ref, ref)), "withdrawn"),
                (self._replaced.get(ref), "replaced by a newer version"),
            ):
                if ends is not None and check.order < ends[0] < one.order:
                    return f"the consent that permitted it was {did} before (leaf {ends[1]})"
        return None

    def _denial(
        self, one: Seen, check: Seen, inputs: set[str], destination: str | None
    ) -> str | None:
        for order, index, purpose, scope in (
            d for ref in inputs for d in self._denied.get(ref, ())
        ):
            same = purpose == check.body["purpose"] and scope in (None, destination)
            if same and check.order < order < one.order:
                return f"a later check (leaf {index}) says deny"
        return None


class Models:
    """R2."""

    def __init__(self, memory: Memory, blame: Blame, approvals: int) -> None:
        self._memory = memory
        self._blame = blame
        self._approvals = approvals
        self._registrants: dict[str, set[str]] = {}
        self._approvers: dict[str, set[str]] = {}
        self._retired: dict[str, tuple[Order, int]] = {}

    def registered(self, one: Seen) -> None:
        """Take a registration."""
        if "by" in one.body:
            self._registrants.setdefault(one.body["model"], set()).add(one.body["by"])

    def approved(self, one: Seen) -> None:
        """Judge an approval: by somebody else than whoever registered the model."""
        self._same_model(one)
        by, model = one.body["by"], one.body["model"]
        if by in self._registrants.get(model, ()):
            self._blame(one, "R2", "approved by the person who registered the model")
        else:
            self._approvers.setdefault(model, set()).add(by)

    def activated(self, one: Seen) -> None:
        """Judge an activation: after as many approvals as the auditor asks for, or as a shadow."""
        self._same_model(one)
        approvers = len(self._approvers.get(one.body["model"], ()))
        if one.body.get("mode") == "shadow" or approvers >= self._approvals:
            return
        few = f"approved by {approvers} of {self._approvals} persons"
        self._blame(one, "R2", few if approvers else "the model was never approved")

    def retired(self, one: Seen) -> None:
        """Take a retirement."""
        self._same_model(one)
        self._retired[one.body["model"]] = (one.order, one.index)

    def started(self, one: Seen) -> None:
        """Judge a run: of a model that is active, on an input that was sealed for it."""
        model = one.body["model"]
        for activated in self._memory.targets(one, "model.activated"):
            if activated.body["model"] != model:
                self._blame(one, "R2", "its model.activated is of another model")
            order, index = self._retired.get(model, (activated.order, 0))
            if activated.order < order < one.order:
                self._blame(one, "R2", f"the model was retired before (leaf {index})")
        for sealed in self._memory.targets(one, "input.sealed"):
            if sealed.body["route"]["model"] != model:
                self._blame(one, "R2", "its input was sealed for another model")

    def _same_model(self, one: Seen) -> None:
        for target in self._memory.targets(
            one, "model.registered", "model.approved", "model.activated"
        ):
            if target.body["model"] != one.body["model"]:
                self._blame(one, "R2", f"its {target.type} is of another model")


class Results:
    """R3, and of R2 that what a shadow found is not sent."""

    def __init__(self, memory: Memory, blame: Blame) -> None:
        self._memory = memory
        self._blame = blame

    def ended(self, one: Seen) -> None:
        """Judge an outcome."""
        self._same(one, ("inference.started",), "model")

    def composed(self, one: Seen) -> None:
        """Judge an object: of its run's model, used objects of the same run, the same kind anew."""
        self._same(one, _OUTCOMES, "model")
        run = {target.ref for target in self._memory.targets(one, *_OUTCOMES)}
        for other in self._memory.targets(one, "result.composed"):
            if not run & {ref for rel, ref in other.refs if rel in _OUTCOMES}:
                self._blame(one, "R3", f"it uses an object of another run (leaf {other.index})")
        self._same(one, (PREVIOUS,), "kind")

    def sending(self, one: Seen) -> None:
        """Judge the start of a delivery: what is sent is what was composed."""
        self._same(one, ("result.composed",), "kind")
        for started in started_by(self._memory, one):
            for activated in self._memory.targets(started, "model.activated"):
                if activated.body.get("mode") == "shadow":
                    self._blame(one, "R2", "the result of a model that only runs as a shadow")

    def arrived(self, one: Seen) -> None:
        """Judge what is said of a delivery later."""
        what = ("destination", "kind", "payload", "object")
        self._same(one, ("delivery.started", "result.delivered"), *what)

    def _same(self, one: Seen, rels: Sequence[str], *keys: str) -> None:
        for target in self._memory.targets(one, *rels):
            for key in keys:
                if _differ(one.body, target.body, key):
                    self._blame(one, "R3", f"its {key} is not that of its {target.type}")


def _differ(mine: Mapping[str, object], others: Mapping[str, object], key: str) -> bool:
    return key in mine and key in others and mine[key] != others[key]


def started_by(memory: Memory, delivery: Seen) -> list[Seen]:
    """Give the inference.started that a delivery's object comes from."""
    return [
        started
        for composed in memory.targets(delivery, "result.composed")
        for outcome in memory.targets(composed, *_OUTCOMES)
        for started in memory.targets(outcome, "inference.started")
    ]
