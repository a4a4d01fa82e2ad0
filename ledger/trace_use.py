"""Trace rules about use: R1 and R6 (consent), R7 (overrides), R2 (models), R3 (results). Pure.

`ledger.trace` says the rules in words; each function here judges one type of leaf. Whether
something came between two leaves is asked of their `order`, so that a leaf that was carried from
an earlier log is not judged by what this log said before it was carried.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from ledger.bodies import PREVIOUS
from ledger.trace_memory import Memory, Moments, Seen, seconds

__all__ = ["Blame", "Consent", "Models", "Results", "started_by"]

Blame = Callable[[Seen, str, str], None]
"""Say that a leaf breaks a rule: (leaf, rule, words)."""
Remark = Callable[[str], None]
"""Say what is worth saying and breaks no rule."""

_OUTCOMES = ("inference.completed", "inference.failed")
_DOCUMENTS = ("consent.granted", "consent.amended")
_RELEASE = "release"  # the stage of a question about giving records away, not about their use


class Consent:
    """R1, R6 and R7."""

    def __init__(self, memory: Memory, blame: Blame, remark: Remark, review_seconds: int) -> None:
        self._memory = memory
        self._blame = blame
        self._remark = remark
        self._review_seconds = review_seconds
        self._first: dict[str, str] = {}  # a newer version of a document -> its first one
        self._withdrawn, self._replaced = Moments(), Moments()
        self._erased, self._denied = Moments(), Moments()
        self.overrides: dict[str, tuple[int, str]] = {}
        """Overrides that nobody has reviewed: leaf hash -> (index, time)."""

    def granted(self, one: Seen) -> None:
        """Take a document, and that it replaces another."""
        for before in self._memory.targets(one, PREVIOUS):
            self._replaced.add(before.ref, one)
            self._first[one.ref] = self._first.get(before.ref, before.ref)

    def withdrew(self, one: Seen) -> None:
        """Take a withdrawal: of a document in all its versions."""
        for target in self._memory.targets(one, *_DOCUMENTS, PREVIOUS):
            self._withdrawn.add(self._first.get(target.ref, target.ref), one)

    def erased(self, one: Seen) -> None:
        """Take an erasure."""
        if one.subject is not None:
            self._erased.add(one.subject, one)

    def checked(self, one: Seen) -> None:
        """Judge a decision."""
        if one.body["decision"] == "deny":
            self._denies(one)
        else:
            self._not_erased(one, "a permit")
            if one.body["basis"] == "consent":
                self._rests(one)
        if one.body["basis"] == "override" and not one.carried:
            self.overrides[one.ref] = (one.index, one.time)

    def reviewed(self, one: Seen) -> None:
        """Judge a review: in time, and by somebody else than who overrode."""
        for target in self._memory.targets(one, "consent.checked"):
            if target.body["basis"] != "override":
                self._blame(one, "R7", f"it reviews leaf {target.index}, which is no override")
            elif _persons(one.body["by"]) & _persons(target.body["override"]["by"]):
                self._blame(one, "R7", f"who overrode (leaf {target.index}) reviews that")
            else:
                waited = self.overrides.pop(target.ref, None) is not None
                late = seconds(target.time, one.time) > self._review_seconds
                words = f"the override at leaf {target.index} was reviewed too late"
                if late and waited:
                    self._blame(one, "R7", f"{words}, after more than {self._review_seconds} s")
                elif late and target.carried:
                    self._remark(f"R7: {words} at leaf {one.index}, or once more")

    def _denies(self, one: Seen) -> None:
        """Take a denial: of inputs; where it names none, of the study, or of all the subject's."""
        keys: list[object] = [t.ref for t in self._memory.targets(one, "input.sealed")]
        if not keys and one.body.get("stage") != _RELEASE:
            keys = [(one.subject, one.study)]
        for key in keys:
            self._denied.add((key, one.body["purpose"], one.body.get("destination")), one)

    def _rests(self, check: Seen) -> None:
        """Judge a permit by consent: it names documents, each in a version that is in force."""
        if not check.rests_on:
            self._blame(check, "R1", "it permits by a consent and names no document")
        newer: dict[str, int | None] = {}
        for ref in map(self._memory.here, check.rests_on):
            first = self._first.get(ref, ref)
            index = self._withdrawn.first(first, check.order)
            if index is not None:
                self._blame(check, "R1", f"it rests on a consent that leaf {index} had withdrawn")
                return
            if newer.get(first, 0) is not None:
                newer[first] = self._replaced.first(ref, check.order)
        for index in newer.values():
            if index is not None:
                words = f"it rests on a version of a consent that leaf {index} had replaced"
                self._blame(check, "R1", words)
                return

    def _not_erased(self, one: Seen, what: str) -> None:
        index = self._erased.first(one.subject, one.order) if self._erased else None
        if index is not None:
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
        if (asked or destination is None) and not (inputs and inputs <= asked):
            return f"its permit (leaf {check.index}) is for another input"
        only = check.body.get("destination")
        if only is not None and only != destination:
            return f"its permit (leaf {check.index}) is for sending to {only}"
        return self._ended(one, check) or self._denial(one, check, inputs, destination)

    def _ended(self, one: Seen, check: Seen) -> str | None:
        for ref in map(self._memory.here, check.rests_on):
            for ends, key, did in (
                (self._withdrawn, self._first.get(ref, ref), "withdrawn"),
                (self._replaced, ref, "replaced by a newer version"),
            ):
                index = ends.first(key, one.order, check.order)
                if index is not None:
                    return f"the consent that permitted it was {did} before (leaf {index})"
        return None

    def _denial(
        self, one: Seen, check: Seen, inputs: set[str], destination: str | None
    ) -> str | None:
        if not self._denied:
            return None
        purpose = check.body["purpose"]
        for key in (*inputs, (one.subject, one.study), (one.subject, None)):
            for scope in {None, destination}:
                index = self._denied.first((key, purpose, scope), one.order, check.order)
                if index is not None:
                    return f"a later check (leaf {index}) says deny"
        return None


class Models:
    """R2."""

    def __init__(self, memory: Memory, blame: Blame, remark: Remark, approvals: int) -> None:
        self._memory = memory
        self._blame = blame
        self._remark = remark
        self._approvals = approvals
        self._registrants: dict[str, set[str]] = {}
        self._approvers: dict[str, set[str]] = {}
        self._retired, self._suspended = Moments(), Moments()

    def registered(self, one: Seen) -> None:
        """Take a registration."""
        if "by" in one.body:
            self._registrants.setdefault(one.body["model"], set()).update(_persons(one.body["by"]))
        else:
            self._remark(f"R2: leaf {one.index} registers a model and does not say by whom")

    def approved(self, one: Seen) -> None:
        """Judge an approval: by somebody else than whoever registered the model."""
        self._same_model(one)
        by, model = _persons(one.body["by"]), one.body["model"]
        if by & self._registrants.get(model, set()):
            self._blame(one, "R2", "approved by the person who registered the model")
        else:
            self._approvers.setdefault(model, set()).update(by)

    def activated(self, one: Seen) -> None:
        """Judge an activation: after as many approvals as the auditor asks for, or as a shadow.

        Whoever registered the model, before or after approving it, does not count.
        """
        self._same_model(one)
        model = one.body["model"]
        said = self._approvers.get(model, set())
        approvers = len(said - self._registrants.get(model, set()))
        if one.body.get("mode") == "shadow" or approvers >= self._approvals:
            return
        few = f"approved by {approvers} of {self._approvals} persons who did not register it"
        self._blame(one, "R2", few if said else "the model was never approved")

    def suspended(self, one: Seen) -> None:
        """Take that an activation was taken back; a later one of the same model stands."""
        self._same_model(one)
        for activated in self._memory.targets(one, "model.activated"):
            self._suspended.add(activated.ref, one)

    def retired(self, one: Seen) -> None:
        """Take a retirement."""
        self._same_model(one)
        self._retired.add(one.body["model"], one)

    def started(self, one: Seen) -> None:
        """Judge a run: of a model that is active, on an input that was sealed for it."""
        model = one.body["model"]
        for activated in self._memory.targets(one, "model.activated"):
            if activated.body["model"] != model:
                self._blame(one, "R2", "its model.activated is of another model")
            index = self._retired.first(model, one.order, activated.order)
            if index is not None:
                self._blame(one, "R2", f"the model was retired before (leaf {index})")
            index = self._suspended.first(activated.ref, one.order)
            if index is not None:
                self._blame(one, "R2", f"its activation was suspended before (leaf {index})")
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


def _persons(by: object) -> frozenset[str]:
    """Give the persons whom a leaf names, so that no other spelling makes one of them two."""
    names = by if isinstance(by, list) else [by]
    # NFKC: a full-width A is an A.
    folded = (unicodedata.normalize("NFKC", str(name)).casefold() for name in names)
    return frozenset(" ".join(name.split()) for name in folded)


def started_by(memory: Memory, delivery: Seen) -> list[Seen]:
    """Give the inference.started that a delivery's object comes from."""
    return [
        started
        for composed in memory.targets(delivery, "result.composed")
        for outcome in memory.targets(composed, *_OUTCOMES)
        for started in memory.targets(outcome, "inference.started")
    ]
