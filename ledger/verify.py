"""Believe nothing but the keys you brought: a log or a proof, verified offline.

`audit` builds the whole tree again from the entry bundles with the function that the sequencer
grows it with, compares every file it makes with the file on disk, compares the root with the
signed one, reads every leaf strictly and judges the trace rules. Files that it did not make
must be earlier, shorter editions of ones it did; anything else under tile/ is refused.

What is forged or damaged raises VerifyError; broken trace rules are findings of the report.
`verify_log` raises for both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import leaf, merkle, note
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    BadKey,
    LeafError,
    Malformed,
    ProofInvalid,
    SignatureInvalid,
    VerifyError,
)
from ledger.policy import NO_QUORUM, Policy, Verdict, line_name, of_keys
from ledger.proof import Proof
from ledger.rebuild import Progress, Rebuilt
from ledger.source import CHECKPOINT_SIZE, Source, source_of
from ledger.trace import Bound, Terms, Trace, Violation
from ledger.trace_books import missing

__all__ = [
    "ProofReport",
    "Report",
    "Trust",
    "audit",
    "finding",
    "named_vkeys",
    "open_checkpoint",
    "policy_text",
    "read_vkeys",
    "verify_log",
    "verify_proof",
]

_SAVED, _WITNESSED = "saved checkpoint", "checkpoint.witnessed"

Trust = Policy | Sequence[str]
"""Whom the caller believes: a policy, or the log's vkeys (then no witness is asked for)."""


@dataclass(frozen=True, slots=True)
class Report:
    """A log whose files and signatures verified: what it is, and what stands in it.

    `open_studies` are indexes of study.received; `ahead` files that the checkpoint does not
    cover yet; `beside` names that are no part of a log and were not read. `not_checked` are
    signature lines whose key was not brought. `witnessed` is how many leaves the policy's
    quorum (or, without one, any listed witness) has cosigned, `cosigned` by whom and when.
    `violations` are at most a thousand of `broken`. `continued` is what log.continued says,
    `carried` names by origin the leaves of earlier logs that are repeated here, each with its
    index; `met` are those of the caller's `wanted` that are leaves of this log, `roots` the
    roots it had at the `sizes` that were asked for.
    """

    origin: str
    size: int
    root: bytes
    signed_by: tuple[str, ...]
    files: int
    counts: Mapping[str, int] = field(default_factory=dict)
    open_studies: tuple[int, ...] = ()
    ahead: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    witnessed: int = 0
    cosigned: Mapping[str, int] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    broken: int = 0
    notes: tuple[str, ...] = ()
    continued: Mapping[str, Any] | None = None
    carried: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    met: frozenset[str] = frozenset()
    roots: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProofReport:
    """A proof that verified: the leaf, its place, and the checkpoint it stands under."""

    record: Mapping[str, Any]
    leaf_hash: bytes
    index: int
    checkpoint: Checkpoint
    signed_by: tuple[str, ...]
    not_checked: tuple[str, ...] = ()
    cosigned: Mapping[str, int] = field(default_factory=dict)


def policy_text(vkeys: Sequence[str]) -> str:
    """Return a tlog-policy that trusts these log keys and asks for no witness."""
    return str(of_keys(vkeys))


def read_vkeys(text: str) -> list[str]:
    """Return the vkeys of a file, one a line; empty lines and lines from # on are skipped."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def named_vkeys(text: str) -> list[str]:
    """Return the vkeys of what a person typed: a vkey, or the name of a file of them.

    Bytes that are no UTF-8 make no vkey; raises OSError where the file cannot be read.
    """
    path, is_file = Path(text), False
    with suppress(OSError):  # a vkey of ML-DSA is longer than a file's name can be
        is_file = path.is_file()
    return read_vkeys(path.read_bytes().decode("utf-8", "surrogateescape")) if is_file else [text]


def _policy(trust: Trust) -> Policy:
    return trust if isinstance(trust, Policy) else of_keys(trust)


def open_checkpoint(text: str, trust: Trust) -> tuple[Checkpoint, tuple[str, ...]]:
    """(checkpoint, the vkeys that signed it); of each algorithm that was brought one must have.

    So a post-quantum signature cannot be stripped from a log whose two keys you hold.
    Raises SignatureInvalid, Malformed.
    """
    verdict = _policy(trust).judge(text)
    return verdict.checkpoint, _vkeys(verdict)


def verify_proof(text: str, trust: Trust, origin: str | None = None) -> ProofReport:
    """Verify a tlog-proof that carries its leaf; raises VerifyError.

    A proof holds no history of keys: of each algorithm one of the keys brought must have
    signed. Where the policy asks for a quorum, the proof's checkpoint must bear it.
    """
    policy = _policy(trust)
    try:
        proof = Proof.parse(text)
        verdict = policy.judge(proof.checkpoint)
        point = verdict.checkpoint
        if origin is not None and point.origin != origin:
            raise SignatureInvalid(f"the proof is of {point.origin}, not of {origin}")
        if proof.extra is None:
            raise ProofInvalid("the proof does not carry its leaf")
        if not verdict.reached:
            raise SignatureInvalid(f"not witnessed yet: the policy asks for {policy.quorum}")
        value = merkle.leaf_hash(proof.extra)
        merkle.verify_inclusion(value, proof.index, point.size, proof.path, point.root)
        record = leaf.parse(proof.extra)
    except BadKey:
        raise
    except (Malformed, SignatureInvalid, ProofInvalid, LeafError) as error:
        raise VerifyError("proof", str(error)) from error
    return ProofReport(
        record, value, proof.index, point, _vkeys(verdict), verdict.unchecked, verdict.cosigned
    )


def verify_log(where: Path | str, trust: Trust) -> Report:
    """Verify everything in a log; raises VerifyError naming the file or the first unlawful leaf."""
    report = audit(where, trust)
    if report.violations:
        raise finding(report)
    return report


def finding(report: Report) -> VerifyError:
    """Give a report's first violation as an error that says how many more there are."""
    first, more = report.violations[0], report.broken - 1
    what = f"{first.rule}: {first.words}" + (f" (and {more} more)" if more else "")
    return VerifyError(first.where, what)


def audit(
    where: Path | str,
    trust: Trust,
    terms: Terms | None = None,
    *,
    saved: str | None = None,
    min_size: int = 0,
    wanted: Collection[str] = (),
    sizes: Collection[int] = (),
    progress: Progress | None = None,
) -> Report:
    """Verify a log folder or web address, and judge its story by `terms`.

    `saved` is the text of a checkpoint that was kept earlier: the log must continue it. It
    must have `min_size` leaves, witnessed ones where the policy has a quorum. `wanted` are
    leaf hashes and `sizes` sizes of the tree that the report shall say something of.
    Raises VerifyError naming the file for what is forged, damaged, shorter than `min_size`,
    rolled back, another history than `saved` or `checkpoint.witnessed` signs, or not
    witnessed as the policy asks; BadKey for what is no key.
    """
    source, policy = source_of(where), _policy(trust)
    # The newest last: a log that grows while it is read must not look as if it were rolled back.
    kept = [] if saved is None else [(_SAVED, _judged(saved, policy, _SAVED))]
    cosigned = _signed(source, policy, _WITNESSED)
    if cosigned is not None:
        kept.append((_WITNESSED, cosigned))
    newest = _signed(source, policy, "checkpoint")
    if newest is None:
        raise VerifyError("checkpoint", "is missing: this is no log, or it is empty")
    _ahead_of(newest.checkpoint, kept, min_size)
    verdicts = [newest, *(verdict for _, verdict in kept)]
    point, early = newest.checkpoint, {*sizes, *(one.checkpoint.size for _, one in kept)}
    trace = Trace(point.origin, whole=True, terms=terms or Terms(), bounds=_bounds(verdicts))
    walk = Rebuilt(source, point, trace, early, progress, wanted)
    walk.read()
    for name, verdict in kept:
        if walk.roots[verdict.checkpoint.size] != verdict.checkpoint.root:
            words = "another history than this log's was signed: keep both, its keys are misused"
            raise VerifyError(name, words)
    ahead = walk.others()
    trace.finish(newest.signed)
    for key in missing(trace.keys, newest.missing):
        name = line_name(key.name, key.key_id)
        raise VerifyError("checkpoint", f"your key {name} has not signed it")
    best = _witnessed(policy, newest, kept, min_size)
    return _report(walk, newest, kept, ahead, best)


def _witnessed(
    policy: Policy, newest: Verdict, kept: Sequence[tuple[str, Verdict]], min_size: int
) -> Verdict | None:
    """Give the largest tree with leaves in it that is witnessed as the policy asks."""
    agreed = [
        verdict
        for verdict in (newest, *(one for name, one in kept if name == _WITNESSED))
        if verdict.reached and verdict.cosigned and verdict.checkpoint.size
    ]
    best = max(agreed, key=lambda one: one.checkpoint.size, default=None)
    if policy.quorum != NO_QUORUM:
        if best is None:
            words = f"not witnessed yet: your policy asks for {policy.quorum}"
            raise VerifyError(_WITNESSED, words)
        if best.checkpoint.size < min_size:
            words = f"{best.checkpoint.size} leaves are witnessed; you asked for {min_size}"
            raise VerifyError(_WITNESSED, words)
    return best


def _report(
    walk: Rebuilt, newest: Verdict, kept: Sequence[tuple[str, Verdict]], ahead: Sequence[str],
    best: Verdict | None,
) -> Report:  # fmt: skip
    point, trace = newest.checkpoint, walk.trace
    unchecked = dict.fromkeys(
        (*newest.unchecked, *(name for _, one in kept for name in one.unchecked))
    )
    return Report(
        point.origin, point.size, point.root, _vkeys(newest), len(walk.made) + 1,
        dict(trace.counts), tuple(trace.open_studies()), tuple(ahead),
        tuple(walk.source.others()), tuple(unchecked),
        best.checkpoint.size if best else 0, dict(best.cosigned) if best else {},
        tuple(trace.violations), trace.broken, (*trace.notes, *trace.borrowed()),
        trace.continued, trace.carried, frozenset(map(leaf.ref, walk.met)), dict(walk.roots),
    )  # fmt: skip


def _vkeys(verdict: Verdict) -> tuple[str, ...]:
    return tuple(note.vkey(key) for key in verdict.signed)


def _signed(source: Source, policy: Policy, name: str) -> Verdict | None:
    try:
        text = source.read(name, CHECKPOINT_SIZE).decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise VerifyError(name, "is not UTF-8") from None
    return _judged(text, policy, name)


def _judged(text: str, policy: Policy, name: str) -> Verdict:
    try:
        return policy.judge(text)
    except BadKey:
        raise
    except (Malformed, SignatureInvalid) as error:
        raise VerifyError(name, str(error)) from error


def _ahead_of(point: Checkpoint, kept: Sequence[tuple[str, Verdict]], min_size: int) -> None:
    if point.size < min_size:
        raise VerifyError("checkpoint", f"has {point.size} leaves; you asked for {min_size}")
    for name, verdict in kept:
        older = verdict.checkpoint
        if older.origin != point.origin:
            raise VerifyError(name, f"is of {older.origin}, not of {point.origin}")
        if older.size > point.size:
            words = f"has {point.size} leaves and the {name} {older.size}: the log was rolled back"
            raise VerifyError("checkpoint", words)


def _bounds(verdicts: Sequence[Verdict]) -> list[Bound]:
    """Give what the signatures say of time: a leaf under one is not later than it."""
    found = []
    for verdict in verdicts:
        size = verdict.checkpoint.size
        if verdict.signed_at is not None:
            found.append(Bound(size, verdict.signed_at, "the log"))
        found += [Bound(size, at, f"witness {who}") for who, at in verdict.cosigned.items()]
    return found
