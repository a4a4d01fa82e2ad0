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
from bridge.vault import Vault
from ledger import leaf, merkle
from ledger.errors import NotCovered
from ledger.log import Log

__all__ = ["SYSTEM", "Chain", "Recorder", "input_root"]

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
    ) -> None:
        self.log = log
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
        """Append a leaf durably and return its hash in base64; the same `idem` is said once."""
        now = self.now()
        made = leaf.record(
            id=self._new_leaf_id(now), type=kind, time=now, node=self._node, actor=actor,
            idem=idem, body=body, subject=chain.subject if chain else subject,
            study=chain.study if chain else None,
            refs=[{"rel": rel, "leaf": ref} for rel, ref in refs],
        )  # fmt: skip
        return leaf.ref(self.log.append(idem, leaf.render(made)))

    def find(self, idem: str) -> str | None:
        """Give the leaf that was appended under this key, in base64; None if none was."""
        found = self.log.find(idem)
        return None if found is None else leaf.ref(found)

    def body(self, ref: str) -> Mapping[str, Any]:
        """Give what a leaf says."""
        said: Mapping[str, Any] = leaf.parse(self.log.leaf(leaf.unref(ref)))["body"]
        return said

    def covered(self, ref: str) -> int | None:
        """Give a leaf's index once a published checkpoint covers it."""
        return self.log.covered(leaf.unref(ref))

    def wait_covered(self, refs: Sequence[str], seconds: float) -> None:
        """Wait until published checkpoints cover all these leaves.

        Raises NotCovered when that did not happen in time: nothing may leave the house.
        """
        until = time.monotonic() + seconds
        while any(self.covered(ref) is None for ref in refs):
            if time.monotonic() > until:
                raise NotCovered("the ledger published no checkpoint in time; is its disk full?")
            time.sleep(0.02)

    def proof(self, ref: str) -> str:
        """Give the tlog-proof of a covered leaf, with the leaf's bytes in `extra`."""
        return self.log.proof(leaf.unref(ref))

    def commitment(self, chain: Chain, sop_instance_uid: str) -> keys.ArtifactKey:
        """Give K_a of an artifact."""
        return keys.artifact_key(chain.key, sop_instance_uid)

    def keyed(self, chain: Chain, what: str, digest: str) -> bytes:
        """Give HMAC(K_s, what/v1 with a NUL, digest): a digest that nobody can try against."""
        return hmac.digest(chain.key, f"{what}/v1\0".encode() + bytes.fromhex(digest), "sha256")

    def text(self, value: bytes) -> str:
        """Write 32 bytes as leaves do: base64."""
        return leaf.ref(value)
