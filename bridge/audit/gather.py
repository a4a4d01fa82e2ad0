"""Which leaves belong into an audit bundle: a study's chain and all that it stands on.

Beside the study's own leaves and what they refer to, transitively: the documents of a second
patient that a decision names, every later word on a document that was used (amended,
withdrawn), erasures of these subjects, reviews, everything about the models that ran, and the
log's own story (opened, continued, keys, settings). What is left out is of other studies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bridge.record import Chain, Recorder
from ledger import leaf
from ledger.log import Log

__all__ = ["bring", "describe", "leaves_of"]

Leaves = dict[str, Mapping[str, Any]]
"""Records by leaf hash in base64."""

_LOGS_OWN = ("log.opened", "log.continued", "log.closed", "key.rotated", "config.changed")
_MODELS = (
    "model.registered", "model.approved", "model.activated", "model.suspended", "model.retired",
)  # fmt: skip
_LATER = ("consent.amended", "consent.withdrawn", "override.reviewed")


def leaves_of(log: Log, studies: Sequence[str]) -> Leaves:
    """Give the leaves for these study aliases, covered by a checkpoint or not yet."""
    found: Leaves = {}
    for study in studies:
        _take(log, found, _hashes(log, study=study))
    models = {model for record in found.values() for model in _models_of(record)}
    for kind in _MODELS:
        for ref in _hashes(log, type=kind):
            if _read(log, ref)["body"]["model"] in models:
                _take(log, found, [ref])
    while _later(log, found):
        pass
    for kind in _LOGS_OWN:
        _take(log, found, _hashes(log, type=kind))
    return found


def bring(record: Recorder, chains: Iterable[Chain]) -> None:
    """Carry what ended logs of this site hold of these chains into the open one."""
    for chain in chains:
        for log in reversed(record.lineage.ended):
            wanted = [*_hashes(log, study=chain.study)]
            wanted += _hashes(log, type="consent.withdrawn", subject=chain.subject)
            for ref in wanted:
                record.here(ref)


def _hashes(log: Log, **facts: str) -> list[str]:
    return [leaf.ref(value) for value, _ in log.select(**facts)]


def _read(log: Log, ref: str) -> Mapping[str, Any]:
    return leaf.parse(log.leaf(leaf.unref(ref)))


def _take(log: Log, found: Leaves, refs: Sequence[str]) -> None:
    """Add these leaves and all that they refer to."""
    waiting = list(refs)
    while waiting:
        ref = waiting.pop()
        if ref not in found:
            found[ref] = _read(log, ref)
            waiting += [one["leaf"] for one in found[ref].get("refs", ())]
            # A fact carried over from an earlier log may name a document as it stands there.
            waiting += [
                one for one in _documents(found[ref]) if log.store.find(leaf_hash=leaf.unref(one))
            ]


def _documents(record: Mapping[str, Any]) -> Iterator[str]:
    """Name the leaves of the documents, also of another patient, that a decision matched."""
    for one in record["body"].get("matched", ()):
        if isinstance(one, Mapping) and one.get("leaf"):
            yield str(one["leaf"])


def _stands_on(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (one["leaf"] for one in record.get("refs", ()))
    yield from _documents(record)


def _models_of(record: Mapping[str, Any]) -> Iterator[str]:
    body = record["body"]
    if "model" in body:
        yield str(body["model"])
    if "route" in body:
        yield str(body["route"]["model"])


def _later(log: Log, found: Leaves) -> bool:
    """Add what was said later of the documents, decisions and subjects here; whether any was."""
    before = len(found)
    subjects = {record["subject"] for record in found.values() if "subject" in record}
    for subject in sorted(subjects):
        for kind in _LATER:
            for ref in _hashes(log, type=kind, subject=subject):
                if any(below in found for below in _stands_on(_read(log, ref))):
                    _take(log, found, [ref])
        _take(log, found, _hashes(log, type="subject.erased", subject=subject))
    return len(found) > before


def describe(record: Mapping[str, Any]) -> str:
    """Say in words what a leaf is; it holds no patient data, so neither do these."""
    kind, body = str(record["type"]), record["body"]
    said = _WORDS.get(kind, kind)
    return said.format_map(_Body(body))


class _Body(dict[str, Any]):
    """A leaf's body whose absent keys read as a dash."""

    def __missing__(self, key: str) -> str:
        return "-"


_WORDS: Mapping[str, str] = {
    "log.opened": "the log {origin} was opened",
    "log.continued": "the log {origin} goes on where {previous} ended at {size} leaves",
    "log.closed": "the log ended",
    "key.rotated": "the log's keys changed",
    "config.changed": "the site's settings changed",
    "model.registered": "the model {id} {version} of {vendor} was registered by {by}",
    "model.approved": "the model {id} {version} was approved by {by}",
    "model.activated": "the model {id} {version} was put to use by {by}",
    "model.suspended": "the model {id} {version} was taken out of routing: {reason}",
    "model.assessed": "a report on what the model {id} {version} did was made for {by}",
    "model.retired": "the model {id} {version} was taken out of use by {by}",
    "study.received": "{instances} images came from {source}, generation {generation}",
    "study.quarantined": "images were set apart: {reason}",
    "study.closed": "the study was finished: {outcome}",
    "input.sealed": "the images that one model reads were fixed",
    "consent.granted": "a consent document was kept ({status})",
    "consent.amended": "a consent document was replaced by a newer one ({status})",
    "consent.withdrawn": "a consent document was withdrawn",
    "consent.checked": "consent was asked for {purpose}: {decision}, by {basis}",
    "override.reviewed": "an override was reviewed by {by}: {outcome}",
    "inference.started": "the model started to read",
    "inference.completed": "the model finished after {milliseconds} ms",
    "inference.failed": "the model did not finish: {reason}",
    "result.composed": "a result was composed: {kind}, revision {revision}",
    "delivery.started": "{kind} was sent to {destination}",
    "result.delivered": "{kind} was stored at {destination}",
    "result.confirmed": "{kind} was confirmed by {destination}",
    "result.unconfirmed": "{kind} was not confirmed by {destination}: {reason}",
    "result.superseded": "{kind} at {destination} was replaced by a newer one: {reason}",
    "result.recalled": "{kind} was called back from {destination}: {reason}",
    "subject.erased": "the patient's key was destroyed ({basis})",
    "access.disclosed": "disclosed to {recipient} for {purpose} ({basis})",
}
