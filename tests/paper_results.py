"""Results of nobody with their receipts inside, made without a site: fixed keys, fixed times."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite

from bridge import commitments
from bridge.commitments import StudyKey
from bridge.report import content, receipt, seg, sr, summary
from ledger import leaf


def _by_path(name: str) -> ModuleType:
    if name not in sys.modules:
        path = Path(__file__).parent / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


made = _by_path("reporting")
paper_log = _by_path("paper_log")

KEY = StudyKey(hashlib.sha256(b"the study's key").digest())
KINDS = ("seg", "sr", "summary")


def composed() -> dict[str, Dataset]:
    """A SEG, the SR that refers to it, and a summary image, as composed."""
    found, sources, mask = made.segmentation(), made.sources(), made.mask()
    given = (made.MODEL, made.GATEWAY)
    grey = np.arange(120, dtype=np.uint8).reshape(10, 12)
    segmented = seg.compose(found, mask, sources, *given, made.naming("seg"))
    return {
        "seg": segmented,
        "sr": sr.compose(found, sources, *given, made.naming("sr"), segmented),
        "summary": summary.compose(found, grey, mask[2], sources, *given, made.naming("sum")),
    }


def encoded(ds: Dataset) -> bytes:
    """The bytes of a file."""
    buffer = BytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def body(data: bytes, kind: str, **changes: Any) -> dict[str, Any]:
    """The body of result.composed for these bytes."""
    ds = dcmread(BytesIO(data))
    key = artifact_key(data)
    return {
        "kind": kind, "revision": 1, "partial": False, "sop_class": str(ds.SOPClassUID),
        "model": paper_log.MODEL,
        "content": leaf.ref(commitments.content_commitment(key, content.content_digest(ds))),
        "attributes": {
            tag.lower(): leaf.ref(commitments.attribute_commitment(key, tag, value))
            for tag, value in content.attribute_digests(ds).items()
        },
        **changes,
    }  # fmt: skip


def artifact_key(data: bytes) -> commitments.ArtifactKey:
    """K_a of a composed file."""
    uid = dcmread(BytesIO(data), stop_before_pixels=True).SOPInstanceUID
    return commitments.artifact_key(KEY, str(uid))


class PaperResults:
    """Three objects of one run: `plain` as composed, `stamped` with their receipts.

    `tell` and `aim` replace body keys and references of a type of leaf before it is said.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tell: Mapping[str, Mapping[str, Any]] | None = None,
        aim: Mapping[str, Any] | None = None,
        granted: bool = False,
    ) -> None:
        self.site = paper_log.Site(folder)
        self.story = paper_log.Story(self.site)
        self.plain = {kind: encoded(ds) for kind, ds in composed().items()}
        self.vkeys = paper_log.VKEYS
        for kind in paper_log.Story.ORDER[:8]:
            if kind == "consent.checked" and granted:
                self._grant()
            more = {"refs": aim[kind](self.story.refs)} if aim and kind in aim else {}
            self.story.tell(kind, (tell or {}).get(kind), **more)
        self.leaves = {kind: self._compose(kind, tell or {}) for kind in KINDS}
        self.site.publish()
        self.stamped = {kind: self.stamp(kind) for kind in KINDS}

    def _grant(self) -> None:
        self.site.say(
            "consent.granted", {"document": paper_log.value("d"), "status": "active",
                                "source": "fhir"}, subject=paper_log.SUBJECT,
        )  # fmt: skip

    def _compose(self, kind: str, tell: Mapping[str, Mapping[str, Any]]) -> str:
        stands_on = [("inference.completed", self.story.refs["inference.completed"])]
        if kind == "sr":
            stands_on.append(("result.composed", self.leaves_of_seg))
        said = self.story.site.say(
            "result.composed",
            {**body(self.plain[kind], kind), **tell.get("result.composed", {})},
            subject=paper_log.SUBJECT, study=paper_log.STUDY,
            refs=paper_log.refs(*stands_on), idem=f"composed/{kind}",
        )  # fmt: skip
        if kind == "seg":
            self.leaves_of_seg = said
        return said

    def refs(self, kind: str) -> list[str]:
        """The leaves that a receipt carries, in order."""
        found = [self.leaves[kind]]
        for one in found:
            record = leaf.parse(self.site.log.leaf(leaf.unref(one)))
            found += [
                ref["leaf"]
                for ref in record.get("refs", ())
                if ref["leaf"] not in found and ref["rel"] != "previous"
            ]
        return found

    def proofs(self, kind: str) -> list[str]:
        """Their proofs under the published checkpoint."""
        return self.site.log.proofs([leaf.unref(ref) for ref in self.refs(kind)])

    def stamp(self, kind: str, key: bytes | None = None, proofs: list[str] | None = None) -> bytes:
        """The composed bytes with a block of our making."""
        plain = self.plain[kind]
        return receipt.insert(
            plain, key if key is not None else artifact_key(plain), proofs or self.proofs(kind)
        )
