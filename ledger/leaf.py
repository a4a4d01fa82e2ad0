"""One record of the log: canonical JSON, at most 65,535 bytes, no PHI.

    {"actor":{"id":…,"kind":…},"body":{…},"id":…,"idem":…,"node":…,"refs":[{"leaf":…,"rel":…}],
     "study":…,"subject":…,"time":"2026-01-02T03:04:05.678Z","type":…,"v":1}

Canonical means RFC 8785 restricted: ASCII keys in order, no spaces, UTF-8, whole numbers
below 2^53, no fractions. `refs` name earlier leaves by their Merkle leaf hash, so a leaf
can be written before it has an index. `subject` and `study` are keyed aliases and absent
where a type has none (`ledger.bodies`); `refs` is absent when empty. `carried` marks a fact
of an earlier log of this site (`ledger.carried`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ledger import bodies, merkle, plain
from ledger.errors import LeafError
from ledger.tiles import MAX_ENTRY

__all__ = ["VERSION", "leaf_hash", "parse", "record", "ref", "render", "stamp", "unref"]

VERSION = plain.VERSION
_REQUIRED = {"v", "id", "type", "time", "node", "actor", "idem", "body"}
_OPTIONAL = {"subject", "study", "refs", "carried"}
_UUID, _ALIAS = re.compile(plain.UUID), re.compile(plain.ALIAS)
_DEPTH = 16

leaf_hash = merkle.leaf_hash


def ref(value: bytes) -> str:
    """32 bytes (a leaf hash, a commitment, a root) as leaves spell them: standard base64."""
    if len(value) != merkle.HASH_SIZE:
        raise LeafError(f"a hash has 32 bytes, not {len(value)}")
    return binascii.b2a_base64(value, newline=False).decode()


def unref(text: str) -> bytes:
    """Return the 32 bytes behind `ref`; raises LeafError."""
    if not bodies.HASH.holds(text):
        raise LeafError("a hash is 32 bytes in base64")
    return base64.b64decode(text)


def stamp(time: datetime) -> str:
    """Return an aware time as leaves spell it: UTC, milliseconds, cut off and not rounded."""
    if time.tzinfo is None:
        raise LeafError("time must know its zone")
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def record(
    *,
    id: str,
    type: str,
    time: datetime | str,
    node: str,
    actor: Mapping[str, str],
    idem: str,
    body: Mapping[str, Any],
    subject: str | None = None,
    study: str | None = None,
    refs: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Return a checked record, ready for `render`; raises LeafError naming the field.

    `id` is a UUID (version 7 by convention); `time` an aware datetime or its stamp;
    `actor` {"kind": system|user|device|patient, "id": pseudonym or role}; `idem` the key
    under which a retry is the same leaf; `refs` [{"rel": type, "leaf": ref(hash)}].
    """
    made: dict[str, Any] = {
        "v": VERSION,
        "id": id,
        "type": type,
        "time": stamp(time) if isinstance(time, datetime) else time,
        "node": node,
        "actor": dict(actor),
        "idem": idem,
        "body": dict(body),
    }
    if subject is not None:
        made["subject"] = subject
    if study is not None:
        made["study"] = study
    if refs:
        made["refs"] = [dict(one) for one in refs]
    return parse(render(made))


def render(record: Mapping[str, Any]) -> bytes:
    """Canonical bytes of any JSON object in the subset; raises LeafError."""
    _check_subset(record, _DEPTH)
    return _dump(record)


def _dump(record: Mapping[str, Any]) -> bytes:
    try:
        data = plain.ENCODER.encode(record).encode()
    except UnicodeEncodeError:
        raise LeafError("a text holds half a character") from None
    if len(data) > MAX_ENTRY:
        raise LeafError(f"the leaf has {len(data)} bytes; at most {MAX_ENTRY} fit")
    return data


def parse(data: bytes) -> dict[str, Any]:
    """Return the record in a leaf. Reads leniently, renders, compares; raises LeafError."""
    return plain.parse(data) or _parse_any(data)


def _parse_any(data: bytes) -> dict[str, Any]:
    try:
        found = plain.DECODER.decode(data.decode())
    except (ValueError, RecursionError):
        raise LeafError("the leaf is not JSON") from None
    if not isinstance(found, dict):
        raise LeafError("the leaf is not a JSON object")
    # Bytes this plain can only hold what the subset allows; others are walked through.
    if not data.isascii() or data.count(b"{") + data.count(b"[") > _DEPTH:
        _check_subset(found, _DEPTH)
    if _dump(found) != data:
        raise LeafError("the leaf is not in its canonical form")
    _check(found)
    return found


def _check_subset(value: object, depth: int) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int):
        if abs(value) >= 1 << 53:
            raise LeafError("a number has more than 53 bits")
    elif depth == 0:
        raise LeafError(f"the leaf is nested more than {_DEPTH} deep")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise LeafError(f"the key {key!r} is not ASCII text")
            _check_subset(inner, depth - 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_subset(inner, depth - 1)
    else:
        raise LeafError(f"a {type(value).__name__} has no canonical form; use whole numbers")


def _check(found: Mapping[str, Any]) -> None:
    for key in sorted(_REQUIRED - found.keys()):
        raise LeafError(f"{key} is missing")
    for key in sorted(found.keys() - _REQUIRED - _OPTIONAL):
        raise LeafError(f"{key} is not a key of a record")
    kind = bodies.TYPES.get(found["type"]) if isinstance(found["type"], str) else None
    if kind is None:
        raise LeafError(f"{found['type']!r} is not a type of leaf")
    wrong = _envelope_fault(found) or _refs_fault(found) or bodies.fault(kind, found)
    if wrong is not None:
        raise LeafError(f"{found['type']}: {wrong}")


def _envelope_fault(found: Mapping[str, Any]) -> str | None:
    checks = {
        f"v must be {VERSION}": found["v"] == VERSION and not isinstance(found["v"], bool),
        "id must be a lower-case UUID": _text(found["id"], _UUID),
        "time must be UTC with milliseconds": _is_time(found["time"]),
        "node must be a label": bodies.LABEL.holds(found["node"]),
        "idem must be a label": bodies.LABEL.holds(found["idem"]),
        "actor must be {kind, id}": isinstance(found["actor"], dict)
        and set(found["actor"]) == {"kind", "id"}
        and found["actor"]["kind"] in plain.ACTORS
        and bodies.LABEL.holds(found["actor"]["id"]),
        "subject must be an alias": _text(found.get("subject", "0" * 64), _ALIAS),
        "study must be an alias": _text(found.get("study", "0" * 64), _ALIAS),
        "carried must be {origin, leaf}": "carried" not in found or _is_carried(found["carried"]),
    }
    return next((words for words, holds in checks.items() if not holds), None)


def _refs_fault(found: Mapping[str, Any]) -> str | None:
    if "refs" not in found:
        return None
    refs = found["refs"]
    if not isinstance(refs, list) or not refs:
        return "refs must be a list that is not empty"
    for one in refs:
        if not isinstance(one, dict) or set(one) != {"rel", "leaf"}:
            return "each of refs must be {rel, leaf}"
        if not isinstance(one["rel"], str) or not bodies.HASH.holds(one["leaf"]):
            return "each of refs must be {rel, leaf: 32 bytes in base64}"
    if len(refs) > 1 and len({(one["rel"], one["leaf"]) for one in refs}) != len(refs):
        return "refs holds one reference twice"
    return None


def _is_carried(value: object) -> bool:
    if not isinstance(value, dict) or not {"origin", "leaf"} <= value.keys():
        return False
    if not value.keys() <= {"origin", "leaf", "before"}:
        return False
    known = bodies.LABEL.holds(value["origin"]) and bodies.HASH.holds(value["leaf"])
    return known and ("before" not in value or _is_carried(value["before"]))


def _text(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_time(value: object) -> bool:
    if not isinstance(value, str) or not bodies.WHEN.holds(value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True
