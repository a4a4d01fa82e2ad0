"""Each fact becomes a leaf, once: what a leaf says, whom it names by alias, what it refers to.

`idem` is the fact's own key: said again after a crash it is the same leaf, the first
one stands. Nothing here may put a name, a UID or an unkeyed hash of them into a leaf
(design §4.6); commitments come from the vault's keys.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bridge import commitments as keys
from bridge.commitments import StudyKey
from bridge.origins.lineage import Lineage
from bridge.vault import Vault
from ledger import leaf, merkle
from ledger.bodies import PREVIOUS
from ledger.errors import NotCovered
from ledger.log import Log

__all__ = ["SYSTEM", "Chain", "Recorder", "Ref", "input_root"]

CONSENT_DOCUMENTS = frozenset({"consent.granted", "consent.amended"})
SYSTEM: Mapping[str, str] = {"kind": "system", "id": "radseal"}

Ref = tuple[str, str]
"""(rel, base64 leaf hash): the leaf that this one stands on."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Whose leaves these are: aliases for the leaf, K_s for commitments, never in a leaf."""

    subject: str
    study: str
    key: StudyKey


def input_root(key: StudyKey, instances: Sequence[tuple[str, str]]) -> bytes:
    """Give the RFC 6962 root of instance commitments, ordered by SOPInstanceUID.

    `instances` are (SOPInstanceUID, SHA-256 of the dataset's bytes in hex). One image can
    later be shown to be in the input without showing the others.
    """
    commitments = [
        keys.instance_commitment(key, bytes.fromhex(digest)) for _, digest in sorted(instances)
    ]
    return merkle.root([merkle.leaf_hash(one) for one in commitments])


class Recorder:
    """Appends leaves and waits until a published checkpoint covers them."""

    def __init__(
        self,
        log: Log,
        vault: Vault,
        node: str,
        now: Callable[[], datetime],
        new_leaf_id: Callable[[datetime], str],
        ended: Sequence[Log] = (),
    ) -> None:
        self.log = log
        self.lineage = Lineage(log, ended)
        self.now = now
        self._vault = vault
        self._node = node
        self._new_leaf_id = new_leaf_id

    def chain(self, subject_ref: str, study_instance_uid: str) -> Chain:
        """Give the chain of a study under a subject; raises SubjectErased."""
        key = self._vault.study(subject_ref, study_instance_uid)
        return Chain(self._vault.alias(subject_ref), keys.study_alias(key), key)

    def say(
        self,
        kind: str,
        idem: str,
        body: Mapping[str, Any],
        *,
        chain: Chain | None = None,
        subject: str | None = None,
        refs: Sequence[Ref] = (),
        actor: Mapping[str, str] = SYSTEM,
    ) -> str:
        """Append a leaf durably and return its hash in base64; the same `idem` is said once.

        What an earlier log of this site holds is carried over, not said anew: `origins/lineage.py`.
        """
        known = self.lineage.said(kind, idem)
        if known is not None:
            return leaf.ref(known)
        now = self.now()
        made = leaf.record(
            id=self._new_leaf_id(now), type=kind, time=now, node=self._node, actor=actor,
            idem=idem, body=body, subject=chain.subject if chain else subject,
            study=chain.study if chain else None,
            refs=[{"rel": rel, "leaf": self.here(ref)} for rel, ref in refs],
        )  # fmt: skip
        return leaf.ref(self.log.append(idem, leaf.render(made)))

    def find(self, idem: str) -> str | None:
        """Give the leaf that was appended under this key, in base64; None if none was."""
        found = self.lineage.find(idem)
        return None if found is None else leaf.ref(found)

    def body(self, ref: str) -> Mapping[str, Any]:
        """Give what a leaf says."""
        said: Mapping[str, Any] = leaf.parse(self._data(ref))["body"]
        return said

    def stands_on(self, ref: str, rel: str) -> str | None:
        """Give the first leaf of this type that a leaf refers to."""
        refs = leaf.parse(self._data(ref)).get("refs", ())
        return next((one["leaf"] for one in refs if one["rel"] == rel), None)

    def _data(self, ref: str) -> bytes:
        value = leaf.unref(ref)
        return self.lineage.holder(value).leaf(value)

    def here(self, ref: str) -> str:
        """Give a leaf as the open log holds it; one of an ended log is carried there first."""
        return leaf.ref(self.lineage.here(leaf.unref(ref)))

    def versions(self, ref: str) -> list[Ref]:
        """Name a consent document's leaf, and after an amendment also the first version's.

        As references: (its type, the leaf). So what is said of the first version, a withdrawal,
        is said of each that took its place.
        """
        found = leaf.parse(self._data(ref))
        first = [(found["type"], ref)]
        while found["type"] == "consent.amended":
            before = next(r["leaf"] for r in found["refs"] if r["rel"] == PREVIOUS)
            found = leaf.parse(self._data(before))
            first[1:] = [(found["type"], before)]
        return first

    def covered(self, ref: str) -> int | None:
        """Give a leaf's index in its log once a published checkpoint covers it."""
        log, value = self.lineage.standing(leaf.unref(ref))
        return log.covered(value)

    def wait_covered(self, refs: Sequence[str], seconds: float) -> None:
        """Wait until published checkpoints of the open log cover all these leaves.

        Raises NotCovered when that did not happen in time: nothing may leave the house.
        """
        until = time.monotonic() + seconds
        refs = [self.here(ref) for ref in refs]
        while any(self.covered(ref) is None for ref in refs):
            if time.monotonic() > until:
                raise NotCovered("the ledger published no checkpoint in time; is its disk full?")
            time.sleep(0.02)

    def proof(self, ref: str) -> str:
        """Give the tlog-proof of a covered leaf, with the leaf's bytes in `extra`."""
        log, value = self.lineage.standing(leaf.unref(ref))
        return log.proof(value)

    def proofs(self, refs: Sequence[str], under: str | None = None) -> list[str]:
        """Give the tlog-proof of each of these leaves, all under one published checkpoint."""
        return self.log.proofs([self.lineage.here(leaf.unref(ref)) for ref in refs], under)

    def foundations(self, ref: str) -> list[str]:
        """Give a leaf and all it stands on, transitively: itself first, consent documents last.

        What it replaces (`previous`) is named in the leaf and is a story of its own.
        """
        ref = self.here(ref)
        found, seen = [ref], {ref}
        documents: list[str] = []
        for one in found:
            for stands_on in leaf.parse(self._data(one)).get("refs", ()):
                rel, below = stands_on["rel"], stands_on["leaf"]
                if below in seen or rel == PREVIOUS:
                    continue
                seen.add(below)
                (documents if rel in CONSENT_DOCUMENTS else found).append(below)
        return found + documents

    def commitment(self, chain: Chain, sop_instance_uid: str) -> keys.ArtifactKey:
        """Give K_a of an artifact."""
        return keys.artifact_key(chain.key, sop_instance_uid)

    def keyed(self, chain: Chain, what: str, digest: str) -> bytes:
        """Give HMAC(K_s, what/v1 with a NUL, digest): a digest that nobody can try against."""
        return hmac.digest(chain.key, f"{what}/v1\0".encode() + bytes.fromhex(digest), "sha256")

    def text(self, value: bytes) -> str:
        """Write 32 bytes as leaves do: base64."""
        return leaf.ref(value)
