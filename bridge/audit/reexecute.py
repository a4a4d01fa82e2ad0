"""A study's decisions executed again from what a bundle discloses, its inputs computed again.

Pure. Each check ends as *same*, *different*, or *not checkable* with the reason; nothing that
could not be checked is told as good. The engine is the one installed here, so only decisions
that name it are executed; the policy is the installed one of the digest that the leaf names.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bridge.commitments import (
    StudyKey,
    document_commitment,
    instance_commitment,
    request_commitment,
)
from bridge.consent import ENGINE
from bridge.consent.document import parse
from bridge.consent.evaluate import Decision, decide, strictest
from bridge.consent.policy import POLICIES, Policy
from bridge.consent.request import Request
from bridge.consent.tree import ConsentError
from bridge.record import input_root
from ledger import leaf, merkle
from ledger.bundle import Record, Report
from ledger.errors import ProofInvalid

__all__ = ["Check", "decisions", "documents", "inputs", "listed"]

_SITES_OWN = ("unidentified", "erased")


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. `where` is a leaf ("leaf 12 (consent.checked)") or a member."""

    where: str
    verdict: Literal["same", "different", "not checkable"]
    words: str

    def __str__(self) -> str:
        return f"{self.where}: {self.verdict}: {self.words}"


class _Odd(Exception):
    """What was disclosed is not what the leaf says."""


class _Unknown(Exception):
    """What was disclosed does not suffice to check it."""


def decisions(report: Report) -> list[Check]:
    """Execute every consent.checked again."""
    texts = {
        hashlib.sha256(text).hexdigest(): text
        for name, text in report.disclosed.items()
        if name.startswith("disclosed/consent/")
    }
    return [
        _checked(one, lambda one=one: _decision(report, one, list(texts.values())))
        for one in _of_type(report, "consent.checked")
    ]


def _of_type(report: Report, kind: str) -> Iterator[Record]:
    return (one for one in report.records if one.record["type"] == kind)


def _where(one: Record) -> str:
    return f"leaf {one.index} ({one.record['type']})"


def _checked(one: Record, act: Any) -> Check:
    try:
        return Check(_where(one), "same", act())
    except _Odd as odd:
        return Check(_where(one), "different", str(odd))
    except _Unknown as unknown:
        return Check(_where(one), "not checkable", str(unknown))


def _key(report: Report, one: Record) -> StudyKey:
    key = report.keys.get(str(one.record.get("study")))
    if key is None:
        raise _Unknown("the study's key was not disclosed")
    return StudyKey(key)


def _decision(report: Report, one: Record, texts: Sequence[bytes]) -> str:
    key, body = _key(report, one), one.record["body"]
    request = report.disclosed.get(f"disclosed/requests/{one.index:08d}.json")
    if request is None:
        raise _Unknown("its request was not disclosed")
    if not _is(body.get("request"), request_commitment(key, request)):
        raise _Odd("the disclosed request is not the one that was asked")
    if body["basis"] == "override":
        raise _Unknown("a person overrode consent; there is nothing to execute")
    if body["reason"] in _SITES_OWN:
        raise _Unknown(f"the site's own rule decided ({body['reason']}); no document was asked")
    if body["engine"] != ENGINE:
        raise _Unknown(f"engine {body['engine']} is not installed; this is {ENGINE}")
    groups = _documents(body, key, texts)
    try:
        question = Request.from_json(request)
        policy = _policy(body)
        answers = [decide(question, [parse(t) for t in group], policy) for group in groups]
    except ConsentError as error:
        raise _Odd(f"what was disclosed cannot be read: {error}") from None
    if not answers:
        raise _Odd("it names no patient's documents, not even none")
    _, found = strictest(answers)
    _compare(body, question, found)
    return f"{found.decision}, by {found.basis} ({found.reason})"


def _policy(body: Mapping[str, Any]) -> Policy:
    policy = POLICIES.get(body["policy"])
    if policy is None or policy.digest().hex() != body.get("policy_digest"):
        raise _Unknown(f"the policy {body['policy']} as it was then is not installed")
    return policy


def _documents(body: Mapping[str, Any], key: StudyKey, texts: Sequence[bytes]) -> list[list[bytes]]:
    """Give the texts of each patient's documents, in the order in which they were asked."""
    groups = body.get("documents")
    if groups is None:
        raise _Unknown("this log did not commit to documents under the study's key yet")
    known = {leaf.ref(document_commitment(key, text)): text for text in texts}
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise _Odd("its list of documents is no list of lists")
    wanted = [str(text) for group in groups for text in group]
    missing = sum(text not in known for text in wanted)
    if missing:
        raise _Unknown(
            f"{missing} of the {len(wanted)} documents that it was made from were not disclosed as "
            "they were then"
        )
    return [[known[str(text)] for text in group] for group in groups]


def _compare(body: Mapping[str, Any], question: Request, found: Decision) -> None:
    order = sorted({index for index, _ in found.matched})
    matched = [{"document": order.index(index), "path": path} for index, path in found.matched]
    told = [
        {"document": one.get("document"), "path": one.get("path")}
        for one in body.get("matched", ())
        if isinstance(one, Mapping)
    ]
    executed = {
        "decision": found.decision, "basis": found.basis, "reason": found.reason,
        "purpose": question.purpose.code, "valid_until": found.valid_until, "matched": matched,
    }  # fmt: skip
    said = {**{name: body.get(name) for name in executed}, "matched": told}
    wrong = [name for name, value in executed.items() if value != said[name]]
    if wrong:
        words = ", ".join(f"{n} {_short(said[n])}, executed {_short(executed[n])}" for n in wrong)
        raise _Odd(f"the log says {words}")


def _short(value: object) -> str:
    return json.dumps(value)[:120]


def _is(said: object, found: bytes) -> bool:
    return isinstance(said, str) and hmac.compare_digest(said, leaf.ref(found))


def documents(report: Report) -> list[Check]:
    """Tie each disclosed document to a decision that was made from it."""
    checks = [one.record["body"] for one in _of_type(report, "consent.checked")]
    tied = {str(t) for body in checks for group in body.get("documents", ()) for t in group}
    older = any("documents" not in body for body in checks)
    found = []
    for name, text in sorted(report.disclosed.items()):
        if not name.startswith("disclosed/consent/"):
            continue
        mine = {leaf.ref(document_commitment(StudyKey(key), text)) for key in report.keys.values()}
        if name != f"disclosed/consent/{hashlib.sha256(text).hexdigest()}.json":
            found.append(Check(name, "different", "its name is not the digest of its text"))
        elif mine & tied:
            found.append(Check(name, "same", "decisions in these records were made from it"))
        elif older:
            words = "this log did not commit to documents under the study's key yet"
            found.append(Check(name, "not checkable", words))
        else:
            found.append(Check(name, "different", "no decision in these records was made from it"))
    return found


def listed(report: Report) -> tuple[dict[str, str], list[str]]:
    """Give the images that instances.json shows: {SHA-256: SOPInstanceUID}, and their UIDs."""
    try:
        rows = [
            row
            for one in _told(report).values()
            for row in (*one.get("instances", ()), *one.get("shown", ()))
        ]
        return {str(r["sha256"]): str(r["uid"]) for r in rows}, [str(r["uid"]) for r in rows]
    except (_Odd, _Unknown, TypeError, KeyError):
        return {}, []


def inputs(report: Report) -> list[Check]:
    """Compute the root of every sealed input again, or follow the paths of the images shown."""
    return [
        _checked(one, lambda one=one: _input(report, one))
        for one in _of_type(report, "input.sealed")
    ]


def _told(report: Report) -> dict[int, Mapping[str, Any]]:
    data = report.disclosed.get("disclosed/instances.json")
    if data is None:
        raise _Unknown("the images of its input were not disclosed")
    try:
        return {int(one["leaf"]): dict(one) for one in json.loads(data)["inputs"]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _Odd("disclosed/instances.json is not as radseal writes it") from None


def _input(report: Report, one: Record) -> str:
    key, told = _key(report, one), _told(report).get(one.index)
    if told is None or told.get("missing"):
        raise _Unknown("the images of its input were not disclosed")
    root = leaf.unref(one.record["body"]["root"])
    try:
        if "instances" in told:
            return _whole(key, [(r["uid"], r["sha256"]) for r in told["instances"]], root)
        return _shown(key, told, root)
    except (ValueError, TypeError, KeyError):
        raise _Odd("disclosed/instances.json is not as radseal writes it") from None


def _whole(key: StudyKey, pairs: Sequence[tuple[str, str]], root: bytes) -> str:
    if not hmac.compare_digest(input_root(key, pairs), root):
        raise _Odd("the images listed are not those that were read")
    return f"the {len(pairs)} images listed are all that was read, and no others"


def _shown(key: StudyKey, told: Mapping[str, Any], root: bytes) -> str:
    for row in told["shown"]:
        value = merkle.leaf_hash(instance_commitment(key, bytes.fromhex(row["sha256"])))
        path = [bytes.fromhex(step) for step in row["path"]]
        try:
            merkle.verify_inclusion(value, row["place"], told["size"], path, root)
        except ProofInvalid:
            raise _Odd("an image that is shown is not among those that were read") from None
    return f"{len(told['shown'])} of the {told['size']} images that were read are shown"
