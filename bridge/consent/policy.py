"""What holds where no document of the patient speaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from bridge.consent.purposes import Coding, act_reason, ancestors

__all__ = ["POLICIES", "Answer", "Combine", "Policy"]

Answer = Literal["permit", "deny"]
Combine = Literal["newest", "deny-overrides"]


@dataclass(frozen=True)
class Policy:
    """A department's default: purpose code → answer, the nearest ancestor counts, else deny.

    ``documents``: whether a patient's documents go before the table. ``combine``: how several
    documents that speak are joined; purposes in ``strict`` (and below them) always join by
    deny-overrides.
    """

    id: str
    table: Mapping[str, Answer]
    documents: bool = True
    combine: Combine = "newest"
    strict: tuple[str, ...] = ("HRESCH", "MLTRAINING", "LABELTRAIN", "HMARKT")

    def answer(self, purpose: Coding) -> Answer:
        """Return this table's answer for a purpose."""
        for one in (purpose, *ancestors(purpose)):
            if one == act_reason(one.code) and one.code in self.table:
                return self.table[one.code]
        return "deny"

    def combining(self, purpose: Coding) -> Combine:
        """Return how documents are joined for this purpose."""
        if any(act_reason(code) in (purpose, *ancestors(purpose)) for code in self.strict):
            return "deny-overrides"
        return self.combine

    def digest(self) -> bytes:
        """Return the SHA-256 of this policy as JSON with sorted keys: its name in a leaf."""
        facts = {
            "id": self.id,
            "table": dict(self.table),
            "documents": self.documents,
            "combine": self.combine,
            "strict": list(self.strict),
        }
        return hashlib.sha256(
            json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
        ).digest()


_TREATMENT: dict[str, Answer] = {
    "TREAT": "permit",
    "HQUALIMP": "permit",
    "HRESCH": "deny",
    "MLTRAINING": "deny",
    "LABELTRAIN": "deny",
}

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        policy.id: policy
        for policy in (
            Policy("opt-out-treatment", MappingProxyType(_TREATMENT)),
            Policy("opt-in-all", MappingProxyType({})),
            Policy("break-glass-only", MappingProxyType({"BTG": "permit"})),
            Policy("deny-all", MappingProxyType({}), documents=False),
        )
    }
)
