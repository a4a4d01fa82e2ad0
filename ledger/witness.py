r"""A witness and those who ask it: tlog-witness (C2SP), both sides of add-checkpoint. Pure.

    POST <submission prefix>/add-checkpoint
        old <size that the witness last cosigned>\n
        <base64 hash>\n                              the consistency proof, at most 63 lines
        \n
        <checkpoint, a signed note>

    200  one or more cosignature lines          404  the witness does not know this log
    400  unreadable, or old above the size      403  no trusted key of the log has signed it
    409  old is not what is recorded: the body is the recorded size (text/x.tlog.size)
    422  the proof does not hold, the same size has another root, a proof from nothing, or an
         empty log with a root

    GET <monitoring prefix>/<hex SHA-256 of the origin>/checkpoint     what was last cosigned

A cosignature means: at that time, this was the largest tree that I saw for this origin, and
each one I saw before is its beginning. Checkpoints with extension lines are refused (400): an
ML-DSA cosignature would not cover them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ledger import merkle, note
from ledger.checkpoint import Checkpoint
from ledger.errors import (
    Malformed,
    MalformedNote,
    MalformedRequest,
    ProofInvalid,
    SignatureInvalid,
)

__all__ = [
    "MAX_PROOF",
    "SIZE_TYPE",
    "TEXT_TYPE",
    "Reply",
    "Request",
    "Seen",
    "address",
    "authentic",
    "conflict",
    "cosignatures",
    "judge",
    "readable",
]

MAX_PROOF = 63
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_SIZE = re.compile(r"(0|[1-9][0-9]{0,18})\n")
_BOUND = 1 << 63


@dataclass(frozen=True, slots=True)
class Request:
    """One add-checkpoint: the old size, the proof from it, the signed checkpoint verbatim."""

    old: int
    proof: tuple[bytes, ...]
    note: str

    def __str__(self) -> str:
        lines = [f"old {self.old}", *(base64.b64encode(one).decode() for one in self.proof)]
        return "".join(f"{line}\n" for line in lines) + "\n" + self.note

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Read a body; only the one spelling is accepted. Raises MalformedRequest."""
        try:
            head, _, signed = data.decode().partition("\n\n")
        except UnicodeDecodeError:
            raise MalformedRequest("the request is not UTF-8") from None
        first, *lines = head.split("\n")
        old = _OLD.fullmatch(first)
        if old is None or int(old[1]) >= _BOUND:
            raise MalformedRequest("the first line is: old, one space, a decimal size")
        if len(lines) > MAX_PROOF:
            raise MalformedRequest(f"a consistency proof has at most {MAX_PROOF} lines")
        found = cls(int(old[1]), tuple(map(_hash, lines)), signed)
        if not signed or str(found).encode() != data:
            raise MalformedRequest("the request is not spelled as its values are")
        return found


@dataclass(frozen=True, slots=True)
class Reply:
    """What a witness answers."""

    status: int
    body: str
    media_type: str = TEXT_TYPE


@dataclass(frozen=True, slots=True)
class Seen:
    """What a witness last cosigned of a log; nothing yet is size 0."""

    size: int = 0
    root: bytes = merkle.EMPTY


def address(origin: str) -> str:
    """Return the name under which a witness shows what it cosigned of this log."""
    return hashlib.sha256(origin.encode()).hexdigest()


def authentic(signed: str, trusted: Sequence[note.Verifier]) -> str:
    """Return the checkpoint's note with nothing but the log's own, verified signatures.

    Of each signature algorithm that is trusted for the log, one must be there, so that whoever
    breaks one of a log's two algorithms cannot move its record. Raises SignatureInvalid.
    """
    text, lines = note.parse(signed)
    opened = note.open_note(signed, trusted)
    kinds = {key.algorithm for key, _ in opened.signed}
    if missing := {key.algorithm for key in trusted} - kinds:
        raise SignatureInvalid(f"no signature by a trusted key of type {min(missing):02x}")
    known = {(key.name, key.key_id) for key in trusted}
    return text + "\n" + "".join(str(li) for li in lines if (li.name, li.key_id) in known)


def judge(request: Request, point: Checkpoint, seen: Seen) -> Reply | None:
    """Say why this checkpoint of an authentic log is not cosigned; None if it is."""
    if request.old > point.size:
        return Reply(400, "the old size is above the size of the checkpoint\n")
    if request.old != seen.size:
        return Reply(409, f"{seen.size}\n", SIZE_TYPE)
    try:
        merkle.verify_consistency(seen.size, point.size, seen.root, point.root, request.proof)
    except ProofInvalid as error:
        return Reply(422, f"{error}\n")
    return None


def cosignatures(
    signed: str, body: bytes, known: Sequence[note.Verifier]
) -> tuple[tuple[note.Line, note.Verifier, int], ...]:
    """Read a 200: (line, key, POSIX time) of each cosignature by a known key on `signed`.

    Lines of unknown keys are ignored. Raises SignatureInvalid where a known key's line fails or
    none is there, MalformedNote where the body is something else.
    """
    text, _ = note.parse(signed)
    try:
        _, lines = note.parse(text + "\n" + body.decode())
    except UnicodeDecodeError:
        raise MalformedNote("the cosignature is not UTF-8") from None
    keys = {(key.name, key.key_id): key for key in known}
    found = {}
    for line in lines:
        key = keys.get((line.name, line.key_id))
        time = None if key is None else key.verify(text, line.payload)
        if key is not None and time is not None:
            found[key] = (line, key, time)
    if not found:
        raise SignatureInvalid("the witness answered without a cosignature by its key")
    return tuple(found.values())


def conflict(media_type: str, body: bytes) -> int | None:
    """Read a 409: the size that the witness has recorded, None where it does not say one."""
    found = _SIZE.fullmatch(body.decode("utf-8", "replace"))
    if media_type != SIZE_TYPE or found is None or int(found[1]) >= _BOUND:
        return None
    return int(found[1])


def readable(text: str) -> Checkpoint | Reply:
    """Return the checkpoint of a note's text, or the reply to one that cannot be read."""
    try:
        return Checkpoint.parse(text)
    except Malformed as error:
        # An empty log with a root is well spelled and false: 422. All else is spelled wrong.
        lines = text.split("\n")
        empty = len(lines) == 4 and lines[1] == "0" and _is_hash(lines[2])
        return Reply(422 if empty else 400, f"{error}\n")


def _hash(line: str) -> bytes:
    if not _is_hash(line):
        raise MalformedRequest("a line of the consistency proof is not 32 bytes in base64")
    return base64.b64decode(line)


def _is_hash(line: str) -> bool:
    try:
        raw = base64.b64decode(line)
    except (ValueError, binascii.Error):
        return False
    return len(raw) == merkle.HASH_SIZE and base64.b64encode(raw).decode() == line
