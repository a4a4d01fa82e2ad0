"""A result verified from its file alone: by an auditor's keys, without the site.

Nothing in the file is trusted. It must be readable in one way only; its receipt block must be
whole; every proof in it must lead to one checkpoint that the policy accepts; the leaves must
tell one story; and content and attributes, committed to under K_a, must be those of the file.
"""

from __future__ import annotations

import base64
import hmac
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import SecondaryCaptureImageStorage, SegmentationStorage

from bridge import commitments
from bridge.audit.chain import Chain, Link, rebuild
from bridge.audit.part10 import frames_in_child, load, read_once
from bridge.commitments import ArtifactKey
from bridge.errors import Refused
from bridge.header import UNREADABLE, malformed
from bridge.report import fallback, receipt
from bridge.report.content import COERCIBLE, attribute_digests, content_digest
from bridge.report.identity import device_uid
from ledger import leaf, merkle
from ledger.errors import BadKey, LeafError, LedgerError
from ledger.policy import Policy, Verdict
from ledger.proof import Proof

__all__ = ["FileReport", "verify_file"]

_CLASSES = {
    **fallback.CLASSES,
    "seg": str(SegmentationStorage),
    "summary": str(SecondaryCaptureImageStorage),
}


@dataclass(frozen=True, slots=True)
class FileReport:
    """A result whose content is proven. `changed` names the attributes that were corrected since.

    `verdict` is what the policy says of the checkpoint; whether its quorum is reached is for
    the caller to judge, who may know of a later checkpoint.
    """

    sop_instance_uid: str
    sop_class_uid: str
    chain: Chain
    changed: tuple[str, ...]
    verdict: Verdict


def verify_file(path: Path, policy: Policy) -> FileReport:
    """Verify an SR, SEG or summary image of ours.

    Raises Refused (or a kind of it) with the reason, BadInstance for what is no DICOM file,
    and BadKey for a policy without keys. No text of these holds anything of the patient.
    """
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of a hostile file's values
        ds = read_once(load(path))
        try:
            return _judged(ds, policy)
        except UNREADABLE as error:  # values are decoded when they are looked at
            raise Refused(malformed(error)) from None


def _judged(ds: Dataset, policy: Policy) -> FileReport:
    block = receipt.read(ds)
    links, verdict = _proven(block.proofs, policy)
    chain = rebuild(links)
    _same_object(ds, chain)
    key = ArtifactKey(block.key)
    _same_content(ds, chain.composed, key)
    changed = _changed(ds, chain.composed, key)
    return FileReport(str(ds.SOPInstanceUID), str(ds.SOPClassUID), chain, changed, verdict)


def _proven(texts: Sequence[str], policy: Policy) -> tuple[list[Link], Verdict]:
    """Verify every proof under the one checkpoint; the leaves and what the policy says of it."""
    try:
        proofs = [Proof.parse(text) for text in texts]
        if len({proof.checkpoint for proof in proofs}) != 1:
            raise Refused("the proofs in the receipt are under different checkpoints")
        verdict = policy.judge(proofs[0].checkpoint)
        links = [_link(proof, verdict) for proof in proofs]
    except BadKey:
        raise
    except LeafError as error:
        raise Refused(f"a leaf in the receipt is none: {error}") from None
    except LedgerError as error:
        raise Refused(f"the receipt does not verify: {error}") from None
    return links, verdict


def _link(proof: Proof, verdict: Verdict) -> Link:
    if proof.extra is None:
        raise Refused("a proof in the receipt does not carry its leaf")
    point, value = verdict.checkpoint, merkle.leaf_hash(proof.extra)
    merkle.verify_inclusion(value, proof.index, point.size, proof.path, point.root)
    return Link(leaf.ref(value), proof.index, leaf.parse(proof.extra))


def _same_object(ds: Dataset, chain: Chain) -> None:
    """Compare what the leaves say in the clear with the file: kind, SOP Class, model."""
    said, sop_class = chain.composed.body, str(ds.SOPClassUID)
    if {_CLASSES.get(said["kind"]), said.get("sop_class", sop_class)} != {sop_class}:
        raise Refused(f"the receipt is of a {said['kind']}, the file is another kind of object")
    devices = {str(item.get("DeviceUID", "")) for item in ds.ContributingEquipmentSequence}
    if device_uid(chain.started.body["model"]) not in devices:
        raise Refused("the file names another model than the receipt")


def _same_content(ds: Dataset, composed: Link, key: ArtifactKey) -> None:
    found = commitments.content_commitment(key, content_digest(ds, frames_in_child))
    if not hmac.compare_digest(found, base64.b64decode(composed.body["content"])):
        raise Refused(
            f"the content is not what {composed} says: it was changed after it was composed, or "
            "the receipt belongs to another file"
        )


def _changed(ds: Dataset, composed: Link, key: ArtifactKey) -> tuple[str, ...]:
    """Name the coercible attributes that are not what they were when this was composed."""
    committed = composed.body.get("attributes", {})
    changed = []
    for tag, value in attribute_digests(ds).items():
        found = commitments.attribute_commitment(key, tag, value)
        said = base64.b64decode(committed.get(tag.lower(), ""))
        if not hmac.compare_digest(found, said):
            changed.append(COERCIBLE[Tag(tag)])
    return tuple(changed)
