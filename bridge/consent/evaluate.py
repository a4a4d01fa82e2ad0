"""The decision: the patient's documents first, the department's policy where they are silent.

One document answers in this order (notes on PCF, LEAP and FHIR R5 are in the README's list):

1. not active, not usable, outside its period: it says nothing;
2. its exceptions, all of them, at any depth: one that denies wins over one that permits;
3. its root: other purposes or actors → it says nothing; its purposes and actors, its data → its
   type; a permit for other data → deny ("nothing but"); a denial of other data → nothing.

Several documents that speak: the newest wins, the same moment or an unknown one → deny wins;
for purposes that a policy names strict, any denial wins.

No words of a decision name a person: they hold codes, positions and policy names only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from bridge.consent import ENGINE
from bridge.consent.document import Document, Provision
from bridge.consent.match import Match, covers_data, speaks_to
from bridge.consent.moments import ALWAYS, Span
from bridge.consent.policy import Answer, Combine, Policy
from bridge.consent.purposes import Coding, known
from bridge.consent.request import Request

__all__ = ["Decision", "Request", "Verdict", "decide", "evaluate", "strictest"]


@dataclass(frozen=True)
class Verdict:
    """What one document says: the answer, the reason's code, the provision that decided."""

    answer: Literal["permit", "deny", "not-applicable"]
    reason: str
    path: str


@dataclass(frozen=True)
class Decision:
    """The answer to a request, with everything needed to find it again.

    ``decision`` is "not-applicable" only where documents were asked without a policy.
    ``matched`` are the (document index, FHIR path) that decided. ``valid_until`` is the first
    moment at which the same documents may answer otherwise, in UTC, None if there is none.
    """

    decision: Literal["permit", "deny", "not-applicable"]
    basis: Literal["consent", "policy"]
    reason: str
    words: str
    matched: tuple[tuple[int, str], ...]
    valid_until: str | None
    policy_id: str | None
    engine: str = ENGINE

    def to_json(self) -> dict[str, Any]:
        """Return the decision as plain JSON values."""
        return {
            "decision": self.decision,
            "basis": self.basis,
            "reason": self.reason,
            "words": self.words,
            "matched": [{"document": index, "path": path} for index, path in self.matched],
            "valid_until": self.valid_until,
            "policy": self.policy_id,
            "engine": self.engine,
        }


def decide(request: Request, documents: Sequence[Document], policy: Policy | None) -> Decision:
    """Answer a request. Without a policy the documents alone decide and may say nothing."""
    policy_id = policy.id if policy else None
    if policy is not None and not policy.documents:
        words = f"the policy {policy.id} denies {_name(request.purpose)} whatever documents say"
        return Decision("deny", "policy", "policy-denies-all", words, (), None, policy_id)
    verdicts = [evaluate(document, request) for document in documents]
    until = _valid_until(documents, request.at)
    speaking = [i for i, verdict in enumerate(verdicts) if verdict.answer != "not-applicable"]
    if speaking:
        combine: Combine = policy.combining(request.purpose) if policy else "newest"
        answer, deciding = _combine(documents, verdicts, speaking, combine)
        reason = verdicts[deciding[0]].reason
        matched = tuple((index, verdicts[index].path) for index in deciding)
        words = _words(answer, reason, request.purpose, matched)
        return Decision(answer, "consent", reason, words, matched, until, policy_id)
    silent = _silence(verdicts)
    if policy is None:
        words = f"no document speaks of {_name(request.purpose)}: {_SILENCE[silent]}"
        return Decision("not-applicable", "consent", silent, words, (), until, None)
    default = policy.answer(request.purpose)
    verb = "permits" if default == "permit" else "denies"
    words = f"the policy {policy.id} {verb} {_name(request.purpose)}: {_SILENCE[silent]}"
    return Decision(default, "policy", silent, words, (), until, policy_id)


def strictest(answers: Sequence[Decision]) -> tuple[int, Decision]:
    """Join the answers for each patient that a study is of: (whose it is, the answer).

    The first that does not permit holds for all. A permit of all is the first one's, and holds
    until the first of them may end.
    """
    for index, one in enumerate(answers):
        if one.decision != "permit":
            return index, one
    ends = [one.valid_until for one in answers if one.valid_until]
    return 0, replace(answers[0], valid_until=min(ends, default=None))


def evaluate(document: Document, request: Request) -> Verdict:
    """Ask one document. Never raises: what cannot be evaluated says nothing, with the reason."""
    root = document.root
    if document.status != "active":
        return Verdict("not-applicable", "not-active", "Consent.status")
    if document.unusable is not None:
        return Verdict("not-applicable", f"not-usable-{document.unusable}", "Consent")
    if not root.period.contains(request.at):
        return Verdict("not-applicable", "outside-its-period", f"{root.path}.period")
    exceptions = [found for one in root.provisions for found in _exceptions(one, request)]
    for answer in ("deny", "permit"):
        for path, found in exceptions:
            if found == answer:
                return Verdict(found, f"consent-{found}", path)
    return _at_root(root, request)


def _at_root(root: Provision, request: Request) -> Verdict:
    needed = Match.YES if root.type == "permit" else Match.UNKNOWN
    if speaks_to(root, request) < needed:
        return Verdict("not-applicable", "other-purpose-or-actor", root.path)
    if covers_data(root, request) >= needed:
        return Verdict(root.type, f"consent-{root.type}", root.path)
    if root.type == "permit":
        return Verdict("deny", "outside-the-permitted-data", root.path)
    return Verdict("not-applicable", "other-data", root.path)


def _exceptions(
    provision: Provision, request: Request, so_far: Match = Match.YES
) -> list[tuple[str, Answer]]:
    """Find the deepest answers below and at a provision that speaks of the request.

    A denial needs only that nothing on its way says no; a permit, that everything says yes.
    """
    if not provision.period.contains(request.at):
        return []
    certain = min(so_far, speaks_to(provision, request), covers_data(provision, request))
    if certain is Match.NO:
        return []
    deeper = [found for one in provision.provisions for found in _exceptions(one, request, certain)]
    enough = certain is Match.YES or provision.type == "deny"
    return deeper or ([(provision.path, provision.type)] if enough else [])


def _combine(
    documents: Sequence[Document],
    verdicts: Sequence[Verdict],
    speaking: Sequence[int],
    combine: Combine,
) -> tuple[Answer, list[int]]:
    newest = [i for i in speaking if not any(_newer(documents[k], documents[i]) for k in speaking)]
    counting = list(speaking) if combine == "deny-overrides" else newest
    denying = [i for i in counting if verdicts[i].answer == "deny"]
    return ("deny", denying) if denying else ("permit", counting)


def _newer(one: Document, other: Document) -> bool:
    """Whether one was surely given after the other; days that overlap are the same moment."""
    mine, its = one.dated or ALWAYS, other.dated or ALWAYS
    return mine.start >= its.end


def _spans(provision: Provision) -> Iterator[Span]:
    yield provision.period
    for one in provision.provisions:
        yield from _spans(one)


def _valid_until(documents: Sequence[Document], at: datetime) -> str | None:
    edges = {
        edge
        for document in documents
        if document.status == "active" and document.unusable is None
        for period in _spans(document.root)
        for edge in period
        if at < edge < ALWAYS.end
    }
    if not edges:
        return None
    text = min(edges).astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


_SILENCE = {
    "no-document": "there is no document",
    "no-document-applies": "the documents speak of other purposes, actors, data or times",
    "documents-not-active": "no document is active",
    "document-not-usable": "a document cannot be evaluated and permits nothing",
}


def _silence(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "no-document"
    if any(verdict.reason.startswith("not-usable-") for verdict in verdicts):
        return "document-not-usable"
    if all(verdict.reason == "not-active" for verdict in verdicts):
        return "documents-not-active"
    return "no-document-applies"


def _words(
    answer: Answer, reason: str, purpose: Coding, matched: tuple[tuple[int, str], ...]
) -> str:
    where = ", ".join(f"{path} of document {index + 1}" for index, path in matched)
    if reason == "outside-the-permitted-data":
        return f"consent permits {_name(purpose)} for other data only ({where})"
    return f"consent {'permits' if answer == 'permit' else 'denies'} {_name(purpose)} ({where})"


def _name(purpose: Coding) -> str:
    """Give a purpose's code, if it is one of the tables': a request may hold any text."""
    return purpose.code if known(purpose) else "this purpose"
