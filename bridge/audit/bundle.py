"""An audit bundle verified as a whole: proofs and rules, then everything that was disclosed.

`ledger.bundle` needs the standard library and `cryptography`; here is what needs the rest:
consent executed again, images and results compared with what the leaves commit to.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.audit import reexecute
from bridge.audit.part10 import frames_in_child, read_once
from bridge.audit.reexecute import Check
from bridge.commitments import StudyKey, artifact_key, content_commitment
from bridge.errors import BadInstance, Refused
from bridge.header import UNREADABLE, dataset_of, dataset_sha256
from bridge.report.content import content_digest
from ledger import bundle, leaf
from ledger.archive import Archive, is_archive
from ledger.policy import Policy, signature_lines

__all__ = ["Verified", "is_bundle", "verify"]

_MOST_OF_A_RESULT = 1 << 30


@dataclass(frozen=True, slots=True)
class Verified:
    """A bundle whose proofs hold, with the findings of the rules and of everything disclosed."""

    report: bundle.Report
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether no rule is broken and nothing disclosed differs from what the log says."""
        return not self.report.violations and all(c.verdict != "different" for c in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Give the report as plain JSON values."""
        report, point = self.report, self.report.verdict.checkpoint
        return {
            "verified": self.good, "kind": "bundle", "origin": point.origin, "size": point.size,
            "records": [
                {"index": one.index, "type": one.record["type"], "time": one.record["time"]}
                for one in self.report.records
            ],
            "disclosures": list(self.report.disclosures),
            "findings": [str(one) for one in self.report.violations],
            "open_studies": list(self.report.open_studies),
            "checks": [
                {"where": one.where, "verdict": one.verdict, "words": one.words}
                for one in self.checks
            ],
            "notes": [*report.notes, *self.notes], "cosigned": dict(self.report.verdict.cosigned),
        }  # fmt: skip

    def lines(self) -> Iterator[str]:
        """Say the report in lines for people, the verdict last."""
        report, point = self.report, self.report.verdict.checkpoint
        yield from (f"FINDING {one}" for one in report.violations)
        yield from (f"FINDING {one}" for one in self.checks if one.verdict == "different")
        yield from (str(one) for one in self.checks if one.verdict != "different")
        yield from (f"still open: study.received at leaf {index}" for index in report.open_studies)
        yield from (*report.notes, *self.notes)
        for index in report.disclosures:
            body = next(one.record["body"] for one in report.records if one.index == index)
            whom = f"{body['recipient']} for {body['purpose']} ({body['basis']})"
            yield f"disclosed to {whom}, as leaf {index} says"
        yield bundle.SHOWS_NOT
        yield from signature_lines(report.verdict.unchecked, report.verdict.cosigned)
        word = "verified" if self.good else "NOT verified"
        yield (
            f"{word}: {len(report.records)} records of {point.origin} under the checkpoint of "
            f"{point.size} leaves"
        )


def is_bundle(path: Path) -> bool:
    """Whether a file begins as a bundle does."""
    return is_archive(path)


def verify(path: Path, policy: Policy, images: Path | None = None) -> Verified:
    """Verify a bundle offline, by what you trust; `images` is a folder of files to compare.

    Raises ledger.errors.VerifyError naming the member where the bundle itself does not hold,
    BadKey for a policy without keys.
    """
    report = bundle.verify(path, policy)
    checks: list[Check] = []
    if report.keys:
        checks += reexecute.decisions(report)
        checks += reexecute.documents(report)
        checks += reexecute.inputs(report)
    with Archive(path) as archive:
        checks += [_result(archive, name, report) for name in report.artifacts]
    notes: list[str] = []
    if images is not None:
        compared, notes = _images(report, images)
        checks += compared
    return Verified(report, tuple(checks), tuple(notes))


def _result(archive: Archive, name: str, report: bundle.Report) -> Check:
    """Find the result.composed leaf whose content this file is."""
    data = archive.read(name, _MOST_OF_A_RESULT)
    try:
        ds = read_once(data)
        uid, digest = str(ds.SOPInstanceUID), content_digest(ds, frames_in_child)
    except (BadInstance, Refused) as error:
        return Check(name, "different", str(error))
    except UNREADABLE:
        return Check(name, "different", "is no DICOM object that can be read")
    if name != f"disclosed/artifacts/{uid}.dcm":
        return Check(name, "different", "holds another object than its name says")
    for one in report.records:
        key = report.keys.get(str(one.record.get("study")))
        if one.record["type"] == "result.composed" and key is not None:
            found = content_commitment(artifact_key(StudyKey(key), uid), digest)
            if hmac.compare_digest(leaf.ref(found), one.record["body"]["content"]):
                return Check(name, "same", f"is what leaf {one.index} says was composed")
    return Check(name, "different", "is no result that these records say was composed")


def _images(report: bundle.Report, folder: Path) -> tuple[list[Check], list[str]]:
    """Compare a folder's files with the images that the bundle lists; names of files are told."""
    digests, uids = reexecute.listed(report)
    if not digests:
        return [], ["no image was compared: the bundle does not disclose which were read"]
    brought: set[str] = set()
    found, others = [], 0
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try:
            digest = dataset_sha256(path)
            uid = str(dataset_of(path, ["SOPInstanceUID"]).get("SOPInstanceUID", ""))
        except BadInstance:
            others += 1
            continue
        if digest in digests:
            brought.add(digests[digest])
        elif uid in uids:
            words = "has the UID of an image that was read, and other content"
            found.append(Check(path.name, "different", words))
        else:
            others += 1
    missing = len(set(uids) - brought)
    notes = [f"{len(brought)} of the {len(set(uids))} images listed are among your files"]
    notes += [f"{others} of your files are not among the images listed"] if others else []
    if missing and not found and not brought:
        found.append(Check("images", "different", "none of your files is an image listed"))
    return found, notes
