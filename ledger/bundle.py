r"""An audit bundle: the leaves of one study with their proofs under one checkpoint, verified.

    MANIFEST                       `sha256sum -c` of every other member
    README.txt  ledger.vkey  policy            copies: a verifier brings its own
    checkpoint  [checkpoint.witnessed]         one signed text; all proofs stand under it
    index.json                     what each record is; without the leaf of this disclosure
    records/NNNNNNNN.tlog-proof    a leaf (its bytes in `extra`), named by its index
    disclosed/…                    what the hospital disclosed, if anything (bridge/audit)

For each study the newest `access.disclosed` is the leaf of this disclosure. Its `root` binds
the bundle: the RFC 6962 root over "object/v1\0" ‖ name ‖ \0 ‖ SHA-256 of every member but
MANIFEST, checkpoints and records, in order of name; where disclosed/study.key is among them,
HMAC(K_s, "disclosed/v1\0" ‖ that root), because a log holds no unkeyed digest of what is
disclosed. index.json binds the records. So nothing of it can be changed, taken out or put in.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import leaf, merkle, note
from ledger.archive import Archive
from ledger.errors import BadKey, LeafError, LedgerError, Malformed, ProofInvalid, VerifyError
from ledger.policy import Policy, Verdict
from ledger.proof import Proof
from ledger.trace import Bound, Trace, Violation

__all__ = [
    "FORMAT",
    "SHOWS_NOT",
    "Record",
    "Report",
    "index_json",
    "manifest",
    "objects_root",
    "verify",
]

FORMAT = "radseal-bundle/1"
SHOWS_NOT = (
    "this does not show that nothing else was recorded: a later withdrawal, retirement or recall "
    "that was left out of the bundle is not seen"
)
_REQUIRED = ("MANIFEST", "README.txt", "checkpoint", "index.json", "ledger.vkey", "policy")
_RECORD = re.compile(r"records/([0-9]{8,12})\.tlog-proof")
_OTHERS = re.compile(
    r"checkpoint\.witnessed|disclosed/study\.key|disclosed/instances\.json"
    r"|disclosed/consent/[0-9a-f]{64}\.json|disclosed/requests/[0-9]{8,12}\.json"
    r"|disclosed/artifacts/[0-9.]{1,64}\.dcm"
)
_ARTIFACTS = "disclosed/artifacts/"
_TEXT, _PROOF, _DISCLOSED, _WHOLE = 1 << 24, 1 << 21, 1 << 27, 1 << 29
_KEY = re.compile("[0-9a-f]{64}")
_MOST_KEYS = 16


@dataclass(frozen=True, slots=True)
class Record:
    """One leaf of a bundle, proven to be in the log at this index."""

    index: int
    leaf_hash: bytes
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its member."""
        return f"records/{self.index:08d}.tlog-proof"


@dataclass(frozen=True, slots=True)
class Report:
    """A bundle that verified: leaves in order of index, findings of the rules, what came along.

    `notes` are worth saying and break no rule. `disclosures` are the indexes of the leaves that
    say that this bundle was given away, `keys` the disclosed K_s by the study's alias,
    `disclosed` the members under disclosed/ but the artifacts (`artifacts` are their names).
    """

    verdict: Verdict
    records: tuple[Record, ...]
    violations: tuple[Violation, ...]
    open_studies: tuple[int, ...]
    notes: tuple[str, ...]
    disclosures: tuple[int, ...]
    keys: Mapping[str, bytes]
    disclosed: Mapping[str, bytes]
    artifacts: tuple[str, ...]


def manifest(digests: Mapping[str, bytes]) -> bytes:
    """Return the text of MANIFEST for these members, as sha256sum writes and checks it."""
    return "".join(f"{digests[name].hex()}  {name}\n" for name in sorted(digests)).encode("ascii")


def index_json(origin: str, entries: Sequence[tuple[Record, str]]) -> bytes:
    """Return index.json: of each record its member, leaf hash, type and time, and what it is."""
    rows = [
        {
            "file": one.name, "leaf": leaf.ref(one.leaf_hash), "type": one.record["type"],
            "time": one.record["time"], "words": words,
        }
        for one, words in sorted(entries, key=lambda entry: entry[0].index)
    ]  # fmt: skip
    made = {"format": FORMAT, "origin": origin, "records": rows}
    return (json.dumps(made, indent=1, sort_keys=True) + "\n").encode("ascii")


def is_object(name: str) -> bool:
    """Whether the leaf of the disclosure binds this member by its digest."""
    return not (name in ("MANIFEST", "checkpoint", "checkpoint.witnessed") or _RECORD.match(name))


def objects_root(digests: Mapping[str, bytes], key: bytes | None) -> bytes:
    """Return the `root` of access.disclosed over these members; `key` is K_s or None."""
    root = merkle.root([
        merkle.leaf_hash(b"object/v1\0" + name.encode("ascii") + b"\0" + digests[name])
        for name in sorted(digests)
        if is_object(name)
    ])  # fmt: skip
    return root if key is None else hmac.digest(key, b"disclosed/v1\0" + root, "sha256")


def verify(path: Path, policy: Policy) -> Report:
    """Verify a bundle by what you trust; raises VerifyError naming the member or leaf.

    Findings of the trace rules do not raise: they are `violations` of the report.
    """
    with Archive(path) as archive:
        _names(path.name, archive)
        digests = _manifest(archive)
        text, verdict = _checkpoint(archive, policy)
        records = tuple(
            _record(archive, name, text, verdict)
            for name in sorted(archive.members)
            if _RECORD.fullmatch(name)
        )
        artifacts = tuple(name for name in archive.members if name.startswith(_ARTIFACTS))
        names = [n for n in archive.members if n.startswith("disclosed/") and n not in artifacts]
        if sum(archive.members[name].size for name in names) > _WHOLE:
            raise VerifyError("disclosed", "has more than 512 MB beside its images")
        disclosed = {name: archive.read(name, _DISCLOSED) for name in names}
        records = tuple(sorted(records, key=lambda one: one.index))
        keys = _keys(disclosed.get("disclosed/study.key"), records)
        disclosures = _disclosures(records, digests, keys)
        _index(archive.read("index.json", _TEXT), verdict, records, disclosures)
    trace = _trace(verdict, records)
    return Report(
        verdict, records, tuple(trace.violations), tuple(trace.open_studies()),
        (*trace.notes, *trace.borrowed()), disclosures, keys, disclosed, artifacts,
    )  # fmt: skip


def _names(whole: str, archive: Archive) -> None:
    for name in _REQUIRED:
        if name not in archive.members:
            raise VerifyError(name, "is missing from the bundle")
    for name in archive.members:
        if name not in _REQUIRED and not _RECORD.fullmatch(name) and not _OTHERS.fullmatch(name):
            raise VerifyError(name, "does not belong into a bundle")
    if not any(map(_RECORD.fullmatch, archive.members)):
        raise VerifyError(whole, "holds no record")


def _manifest(archive: Archive) -> dict[str, bytes]:
    said = archive.read("MANIFEST", _TEXT)
    digests = {name: archive.sha256(name) for name in archive.members if name != "MANIFEST"}
    lines = said.decode("ascii", "replace").splitlines()
    told = {line[66:]: line[:64] for line in lines}
    for name, digest in digests.items():
        if name not in told:
            raise VerifyError(name, "is not in MANIFEST: it was put in later")
        if told[name] != digest.hex():
            raise VerifyError(name, "was changed: it is not what MANIFEST says")
    for name in told:
        if name not in digests:
            raise VerifyError(name[:200], "is in MANIFEST and missing from the bundle")
    if said != manifest(digests):
        raise VerifyError("MANIFEST", "is not spelled as its values are")
    return digests


def _checkpoint(archive: Archive, policy: Policy) -> tuple[str, Verdict]:
    """Judge the signed text, with its cosignatures where they came along."""
    where = "checkpoint"
    try:
        text = archive.read(where, _PROOF).decode()
        judged = text
        if "checkpoint.witnessed" in archive.members:
            where = "checkpoint.witnessed"
            judged = archive.read(where, _PROOF).decode()
            if note.parse(judged)[0] != note.parse(text)[0]:
                raise VerifyError(where, "is about another tree than checkpoint")
        verdict = policy.judge(judged)
    except UnicodeDecodeError:
        raise VerifyError(where, "is not UTF-8") from None
    except (BadKey, VerifyError):
        raise
    except LedgerError as error:
        raise VerifyError(where, str(error)) from error
    if not verdict.reached:
        raise VerifyError(where, "is not witnessed as your policy asks")
    return text, verdict


def _record(archive: Archive, name: str, text: str, verdict: Verdict) -> Record:
    point = verdict.checkpoint
    try:
        proof = Proof.parse(archive.read(name, _PROOF).decode())
        if proof.checkpoint != text:
            raise VerifyError(name, "stands under another checkpoint than the bundle's")
        if proof.extra is None:
            raise VerifyError(name, "does not carry its leaf")
        if name != f"records/{proof.index:08d}.tlog-proof":
            raise VerifyError(name, f"is the proof of leaf {proof.index}")
        value = merkle.leaf_hash(proof.extra)
        merkle.verify_inclusion(value, proof.index, point.size, proof.path, point.root)
        return Record(proof.index, value, leaf.parse(proof.extra))
    except UnicodeDecodeError:
        raise VerifyError(name, "is not UTF-8") from None
    except (Malformed, ProofInvalid, LeafError) as error:
        raise VerifyError(name, str(error)) from error


def _keys(text: bytes | None, records: Sequence[Record]) -> dict[str, bytes]:
    """Give K_s by the study's alias; each must be the key of a study of this bundle."""
    if text is None:
        return {}
    where = "disclosed/study.key"
    lines = text.decode("ascii", "replace").split("\n")
    if lines.pop() != "" or not 0 < len(lines) <= _MOST_KEYS or not all(map(_KEY.fullmatch, lines)):
        raise VerifyError(where, "holds other things than keys: 64 hex digits a line")
    found = {study_alias(bytes.fromhex(line)): bytes.fromhex(line) for line in lines}
    if not set(found) <= {one.record.get("study") for one in records}:
        raise VerifyError(where, "is not the key of the study in these records")
    return found


def study_alias(key: bytes) -> str:
    """Return a study's name in leaves: HMAC(K_s, "alias/v1")."""
    return "urn:radseal:study:" + hmac.digest(key, b"alias/v1", hashlib.sha256).hex()


def _disclosures(
    records: Sequence[Record], digests: Mapping[str, bytes], keys: Mapping[str, bytes]
) -> tuple[int, ...]:
    """Find, for each study, the leaf that says what was disclosed, and compare its root."""
    newest: dict[str, Record] = {}
    for one in records:
        study = one.record.get("study")
        if study is not None:
            newest.setdefault(study, one)
            if one.record["type"] == "access.disclosed":
                newest[study] = one
    if not newest:
        raise VerifyError("records", "none is about a study")
    for study, one in newest.items():
        body = one.record["body"]
        if one.record["type"] != "access.disclosed" or body.get("format") != FORMAT:
            raise VerifyError("records", "the leaf that says what was disclosed is missing")
        if keys and study not in keys:
            raise VerifyError("disclosed/study.key", "lacks the key of a study in these records")
        if body.get("root") != leaf.ref(objects_root(digests, keys.get(study))):
            words = "something beside the records was changed, taken out or put in"
            raise VerifyError("MANIFEST", f"is not of what leaf {one.index} disclosed: {words}")
    return tuple(sorted(one.index for one in newest.values()))


def _index(
    data: bytes, verdict: Verdict, records: Sequence[Record], disclosures: Sequence[int]
) -> None:
    """Compare index.json, which the leaf of the disclosure binds, with the records."""
    try:
        rows = json.loads(data)["records"]
        words = {row["file"]: row["words"] for row in rows}
        entries = [(one, words[one.name]) for one in records if one.index not in disclosures]
        same = data == index_json(verdict.checkpoint.origin, entries)
    except KeyError as error:
        raise VerifyError(str(error.args[0])[:60], "is not in index.json: put in later") from None
    except (ValueError, TypeError, RecursionError):
        raise VerifyError("index.json", "is not as radseal writes it") from None
    if not same:
        there = {one.name for one in records}
        gone = [name for name in words if name not in there]
        raise VerifyError(gone[0] if gone else "index.json", "is missing, or not what it was")


def _trace(verdict: Verdict, records: Sequence[Record]) -> Trace:
    """Judge the rules over these leaves; what one stands on must have come along."""
    point, there = verdict.checkpoint, {leaf.ref(one.leaf_hash) for one in records}
    times = {f"the witness {name}": time for name, time in verdict.cosigned.items()}
    if verdict.signed_at is not None:
        times["the log's own key"] = verdict.signed_at
    bounds = [Bound(point.size, time, who) for who, time in times.items()]
    trace = Trace(point.origin, bounds=bounds)
    for one in records:
        trace.see(one.index, one.leaf_hash, one.record)
        for ref in one.record.get("refs", ()):
            if ref["leaf"] not in there:
                words = f"its {ref['rel']} is not carried by this bundle"
                trace.blame(one.index, one.record["type"], "R0", words)
    return trace
