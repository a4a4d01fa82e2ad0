"""What a person signs who acts on a model: one line that stands for all that the leaf says. Pure.

    radseal-act/v1 SHA-256

over the canonical JSON of {origin, type, idem, body}, the body without `authn`, `key`,
`statement` and `signature`. The leaf repeats the line; `key` is the SHA-256 of the public key
(DER, SubjectPublicKeyInfo), `signature` is base64 over the line's ASCII: Ed25519, or ECDSA
P-256 with SHA-256. So whoever has the leaf and the person's public key can check it alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ledger import plain

__all__ = ["PROOF", "fault", "statement"]

PREFIX = "radseal-act/v1 "
PROOF = ("authn", "key", "statement", "signature")


def statement(origin: str, type: str, idem: str, body: Mapping[str, Any]) -> str:
    """Give the line to sign for a leaf of this log; what proves it is left out of the body."""
    said = {key: value for key, value in body.items() if key not in PROOF}
    whole = {"origin": origin, "type": type, "idem": idem, "body": said}
    return PREFIX + hashlib.sha256(plain.ENCODER.encode(whole).encode()).hexdigest()


def fault(origin: str, record: Mapping[str, Any]) -> str | None:
    """Say why a leaf that calls itself proven cannot be; None if nothing shows, or it does not.

    `origin` is the log's; a carried leaf was signed for the log that it was carried from. The
    signature itself needs the person's key, which no log holds.
    """
    body = record["body"]
    if body.get("authn") != "proven":
        return None
    missing = [key for key in PROOF if key not in body]
    if missing:
        return f"it calls itself proven and has no {missing[0]}"
    where = record["carried"]["origin"] if "carried" in record else origin
    if body["statement"] != statement(where, record["type"], record["idem"], body):
        return "what was signed is not what this leaf says"
    return None
