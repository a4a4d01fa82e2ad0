"""Whether the leaves tell a lawful story: rules over references and order. Pure.

    R0  the first leaf is log.opened or log.continued and names the origin, nothing follows
        log.closed, no leaf is there twice; references point to earlier leaves of the type they
        say, of equal subject and study; a carried leaf is word for word the one of an earlier
        log that it names, none of this log, and carried once
    R1  nothing is inferred or sent without an earlier permit for the same inputs, in force:
        not past valid_until, no consent it used withdrawn or replaced since, no later deny
        of the input, the study or the subject; a permit by consent names documents, none of
        them withdrawn and of each a version in force
    R2  a model that runs was registered, approved by others than who registered it (or is a
        shadow, and nothing of it is sent), activated, not retired, its activation not suspended;
        an act on a model that calls itself proven carries a statement of just what it says
    R3  an outcome is of the model that started, an object of a run's outcome; what is sent,
        stored, confirmed, superseded or recalled is the object that was composed
    R4  every study received is closed or quarantined; open ones are listed, and break the rule
        once they are older than `Terms.sla_seconds`
    R5  no leaf is later than a signature over it says, no node's time runs backwards, and
        nothing carried is later than the log's beginning, by more than `Terms.skew_seconds`
    R6  no permit and no use for a subject after its erasure
    R7  every override is reviewed, within `Terms.review_seconds`, by another than who overrode
    R8  the keys that sign are those that log.opened, log.continued or key.rotated announced
    R9  settings are recorded before the first input, and each change names the settings before

`Trace` reads leaves in order of index. `violations` break a rule; `notes` are worth saying and
break none, because a log that an earlier release wrote lawfully may lack what they miss. With
`whole` the leaves are a log's from its beginning; without, a selection (an audit bundle), where
what is absent proves nothing: then R9 and the ends of R4, R7 and R8 are not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ledger.bodies import PREVIOUS
from ledger.carried import is_word_for_word, unproven
from ledger.leaf import ref as _ref
from ledger.leaf import stamp
from ledger.note import Verifier
from ledger.policy import line_name
from ledger.statement import fault as _proof_fault
from ledger.trace_books import Keys, Settings
from ledger.trace_memory import Memory, Recall, Seen, seconds
from ledger.trace_use import Consent, Models, Results, started_by

__all__ = ["Bound", "Terms", "Trace", "Violation"]

_MOST = 1000
_ENDS = ("log.opened", "log.continued", "log.closed")
_LATEST = 253_402_300_799  # 9999-12-31: no time of a leaf is later


@dataclass(frozen=True, slots=True)
class Terms:
    """What an auditor asks for beyond the rules.

    Seconds until a study must be closed (None: open ones are only listed) and until an
    override must be reviewed, seconds by which clocks may differ, persons who approve a model.
    """

    sla_seconds: int | None = None
    review_seconds: int = 3 * 86_400
    skew_seconds: int = 300
    approvals: int = 1


@dataclass(frozen=True, slots=True)
class Bound:
    """`who` signed at `time` (POSIX seconds) a tree of `size` leaves: none of them is later."""

    size: int
    time: int
    who: str


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: which leaf, which rule, in words."""

    index: int
    type: str
    rule: str
    words: str

    @property
    def where(self) -> str:
        """The leaf, for people; its type where it has one."""
        return f"leaf {self.index} ({self.type})" if self.type else f"leaf {self.index}"

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.words}"


@dataclass(slots=True)
class Trace:
    """Reads leaves in order of index; `violations`, `notes` and `open_studies` are its findings.

    At most 1,000 of each are kept; `broken` counts all violations.
    """

    origin: str
    whole: bool = False
    terms: Terms = field(default_factory=Terms)
    bounds: Sequence[Bound] = ()
    violations: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    keys: Keys = field(default_factory=Keys)
    continued: Mapping[str, Any] | None = None
    """What log.continued says, if the log begins with that."""
    carried: dict[str, dict[str, int]] = field(default_factory=dict)
    """Origin of an earlier log -> hash of a leaf there -> index of the leaf that repeats it."""
    _memory: Memory = field(init=False)
    _consent: Consent = field(init=False)
    _judges: Mapping[str, Sequence[Callable[[Seen], None]]] = field(init=False)
    _open: dict[str, tuple[int, str]] = field(default_factory=dict)
    _carried: dict[str, str] = field(default_factory=dict)
    _ends: int | None = None
    _began: str = ""
    _idems: dict[str, tuple[int, str]] = field(default_factory=dict)
    _limits: list[tuple[int, str, str]] = field(default_factory=list)
    _times: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._memory = Memory()
        review = self.terms.review_seconds
        self._consent = Consent(self._memory, self._blame, self._remark, review)
        self._judges = self._table()
        for bound in sorted(self.bounds, key=lambda one: one.size):
            limit = _at(bound.time + self.terms.skew_seconds)
            self._limits.append((bound.size, limit, bound.who))

    def recall_by(self, recall: Recall) -> None:
        """Forget old leaves from now on, and ask for them again (`ledger.trace_memory`)."""
        self._memory.recall = recall

    def see(self, index: int, leaf_hash: bytes, record: Mapping[str, Any]) -> None:
        """Judge the next leaf."""
        one = Seen.of(index, _ref(leaf_hash), record)
        self.counts[one.type] += 1
        if index == 0 or one.carried or self._ends is not None or one.type in _ENDS:
            self._opening(one, record)
        if self._carried:
            self._is_of_this_log(one)
        self._in_time(one)
        if one.type.startswith("model."):
            self._is_as_signed(one, record)
        if self._references(one):
            for judge in self._judges.get(one.type, ()):
                judge(one)
        if self._memory.recall is None:
            self._is_new(one, record["idem"])
        self._memory.keep(one)

    def finish(self, signed: Sequence[Verifier] = ()) -> None:
        """Judge what only the end shows (R4, R7, R8); `signed` are the keys on the checkpoint."""
        ends = max([*self._times.values(), *(_at(bound.time) for bound in self.bounds)], default="")
        sla = self.terms.sla_seconds
        for index, time in self._open.values():
            if sla is not None and seconds(time, ends) > sla:
                self.blame(index, "study.received", "R4", f"not closed within {sla} seconds")
        for index, time in self._consent.overrides.values():
            if seconds(time, ends) > self.terms.review_seconds:
                words = "consent was overridden and nobody has reviewed that"
                self.blame(index, "consent.checked", "R7", words)
            else:
                self._remark(f"R7: the override at leaf {index} waits for its review")
        last = sum(self.counts.values()) - 1
        for key in signed:
            if self.keys.stranger(key):
                words = f"the log is signed by {line_name(key.name, key.key_id)}, which it never"
                self.blame(last, "checkpoint", "R8", f"{words} announced, or put down")
            elif self.keys.must_sign(key) is None:
                name = line_name(key.name, key.key_id)
                self._remark(f"R8: the log does not say whether {name} is its key")

    def open_studies(self) -> list[int]:
        """Indexes of study.received without an end so far (R4)."""
        return sorted(index for index, _ in self._open.values())

    def borrowed(self) -> list[str]:
        """Say how much was carried from which earlier log: that alone proves nothing of it."""
        return [unproven(origin, len(some)) for origin, some in self.carried.items()]

    def blame(self, index: int, type: str, rule: str, words: str) -> None:
        """Record a violation."""
        self.broken += 1
        if len(self.violations) < _MOST:
            self.violations.append(Violation(index, type, rule, words))

    def _blame(self, one: Seen, rule: str, words: str) -> None:
        self.blame(one.index, one.type, rule, words)

    def _remark(self, words: str) -> None:
        if len(self.notes) < _MOST:
            self.notes.append(words)

    def _table(self) -> dict[str, Sequence[Callable[[Seen], None]]]:
        consent, results = self._consent, Results(self._memory, self._blame)
        models = Models(self._memory, self._blame, self._remark, self.terms.approvals)
        settings = Settings(self._blame, self._remark)
        return {
            "log.opened": (self.keys.announced,),
            "log.continued": (self.keys.announced,),
            "key.rotated": (self.keys.announced,),
            "config.changed": (settings.changed,) if self.whole else (),
            "study.received": (self._received,),
            "study.closed": (self._ended,),
            "study.quarantined": (self._ended,),
            "input.sealed": (settings.sealed,) if self.whole else (),
            "consent.granted": (consent.granted,),
            "consent.amended": (consent.granted,),
            "consent.withdrawn": (consent.withdrew,),
            "consent.checked": (consent.checked,),
            "override.reviewed": (consent.reviewed,),
            "subject.erased": (consent.erased,),
            "model.registered": (models.registered,),
            "model.approved": (models.approved,),
            "model.activated": (models.activated,),
            "model.suspended": (models.suspended,),
            "model.retired": (models.retired,),
            "inference.started": (models.started, self._reads),
            "inference.completed": (results.ended,),
            "inference.failed": (results.ended,),
            "result.composed": (results.composed,),
            "delivery.started": (results.sending, self._sends),
            **dict.fromkeys(
                ("result.delivered", "result.confirmed", "result.unconfirmed",
                 "result.superseded", "result.recalled"),
                (results.arrived,),
            ),
        }  # fmt: skip

    def _opening(self, one: Seen, record: Mapping[str, Any]) -> None:
        first = one.type in ("log.opened", "log.continued")
        if (one.index == 0) != first:
            self._blame(one, "R0", "log.opened or log.continued is the first leaf, and only that")
        elif first and one.body["origin"] != self.origin:
            self._blame(one, "R0", f"it opens {one.body['origin']}, not {self.origin}")
        if one.index == 0 and one.type == "log.continued":
            self.continued, self._began = one.body, one.time
        if self._ends is not None:
            self._blame(one, "R0", f"the log was closed before (leaf {self._ends})")
        elif one.type == "log.closed":
            self._ends = one.index
        if one.carried:
            self._carry(one, record)

    def _carry(self, one: Seen, record: Mapping[str, Any]) -> None:
        origin, there = record["carried"]["origin"], record["carried"]["leaf"]
        words = None
        if self.continued is None or origin == self.origin:
            words = "it is carried from an earlier log, and there is none"
        elif not is_word_for_word(record, self._carried):
            words = f"it is not the leaf of {origin} that it names"
        elif (mine := self._memory.find(there)) is not None:
            words = f"what it says was carried from {origin} is leaf {mine.index} of this log"
        elif self._memory.here(there) != there:
            words = "what it carries from an earlier log was carried before"
        else:
            self._memory.carry(one, there)
            self.carried.setdefault(origin, {})[there] = one.index
        if words is not None:
            self._blame(one, "R0", words)
        self._carried[one.ref] = there

    def _is_new(self, one: Seen, idem: str) -> None:
        index, ref = self._idems.setdefault(idem, (one.index, one.ref))
        if index != one.index:
            self.again(one.index, one.type, index, same=ref == one.ref)

    def again(self, index: int, type: str, first: int, *, same: bool) -> None:
        """Blame a leaf that says what an earlier one, `first`, says: the same bytes or fact."""
        words = f"it is leaf {first} once more" if same else f"its idem is that of leaf {first}"
        self.blame(index, type, "R0", f"{words}, and a fact is said once")

    def _is_of_this_log(self, one: Seen) -> None:
        copy = self._memory.disown(one.ref)
        if copy is not None:
            words = f"leaf {copy.index} says that this one is of an earlier log"
            self._blame(one, "R0", words)

    def _is_as_signed(self, one: Seen, record: Mapping[str, Any]) -> None:
        words = _proof_fault(self.origin, record)
        if words is not None:
            self._blame(one, "R2", words)

    def _in_time(self, one: Seen) -> None:
        time, skew = one.time, self.terms.skew_seconds
        latest = self._began if one.carried else self._times.get(one.node, "")
        if one.carried:
            if time > latest and seconds(latest, time) > skew:
                words = f"is after {latest}, when this log began: it is of no earlier one"
                self._blame(one, "R5", f"its time, {time}, {words}")
        elif time >= latest:
            self._times[one.node] = time
        elif seconds(time, latest) > skew:
            self._blame(one, "R5", f"its time, {time}, is before {latest}, said there earlier")
        while self._limits and self._limits[0][0] <= one.index:
            del self._limits[0]
        for _, limit, who in self._limits:
            if time > limit:
                self._blame(one, "R5", f"its time, {time}, is later than {who} signed for it")
                break

    def _references(self, one: Seen) -> bool:
        sound, find = True, self._memory.find
        found: dict[str, list[Seen]] = {}
        for rel, ref in one.refs:
            target = find(ref)
            words = self._reference_fault(one, rel, target)
            if words is not None:
                self._blame(one, "R0", words)
                sound = False
            elif target is not None:
                if rel in found:
                    found[rel].append(target)
                else:
                    found[rel] = [target]
        one.found = found
        if self.whole and not one.carried:
            for ref in one.rests_on:
                document = self._memory.find(self._memory.here(ref))
                if document is None or not document.type.startswith("consent."):
                    self._blame(one, "R0", "a document that it matched is no earlier consent leaf")
                    sound = False
        return sound

    def _reference_fault(self, one: Seen, rel: str, target: Seen | None) -> str | None:
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
        # Spelled out: this is asked of every reference in the log.
        if one.subject != target.subject and None not in (one.subject, target.subject):
            return f"its {rel} is of another subject"
        if one.study != target.study and None not in (one.study, target.study):
            return f"its {rel} is of another study"
        return None

    def _received(self, one: Seen) -> None:
        self._open[one.ref] = (one.index, one.time)

    def _ended(self, one: Seen) -> None:
        for target in self._memory.targets(one, "study.received"):
            self._open.pop(target.ref, None)

    def _reads(self, one: Seen) -> None:
        inputs = {target.ref for target in self._memory.targets(one, "input.sealed")}
        self._consent.used(one, inputs, None)

    def _sends(self, one: Seen) -> None:
        inputs = {
            sealed.ref
            for started in started_by(self._memory, one)
            for sealed in self._memory.targets(started, "input.sealed")
        }
        self._consent.used(one, inputs, one.body["destination"])


def _at(time: int) -> str:
    return stamp(datetime.fromtimestamp(min(time, _LATEST), UTC))
