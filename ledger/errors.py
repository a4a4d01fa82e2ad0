"""Everything that can go wrong with a log, one small tree.

    LedgerError
    ├── LeafError             a record that may not become a leaf
    ├── Malformed             bytes that are not what their specification draws
    │   ├── MalformedTile  MalformedNote  MalformedCheckpoint  MalformedProof  MalformedPolicy
    │   └── MalformedRequest  BadKey
    ├── SignatureInvalid      a known key did not sign this
    ├── ProofInvalid          the hashes do not lead to the root
    ├── VerifyError           a verifier's refusal: where, and what is wrong there
    └── LogError              a log that cannot go on
        ├── SecondSequencer   WrongOrigin   RolledBack   Damaged   Gap
        ├── LostRace          somebody else advanced the checkpoint
        ├── StorageFailed     a write or fsync failed: stop, restart, never sign after it
        └── UnknownLeaf       NotCovered

The docstring of a class is its default message and ends with what to do.
"""

from __future__ import annotations

import inspect

__all__ = [
    "BadKey",
    "Damaged",
    "Gap",
    "LeafError",
    "LedgerError",
    "LogError",
    "LostRace",
    "Malformed",
    "MalformedCheckpoint",
    "MalformedNote",
    "MalformedPolicy",
    "MalformedProof",
    "MalformedRequest",
    "MalformedTile",
    "NotCovered",
    "ProofInvalid",
    "RolledBack",
    "SecondSequencer",
    "SignatureInvalid",
    "StorageFailed",
    "UnknownLeaf",
    "VerifyError",
    "WrongOrigin",
    "printable",
]


def printable(text: str) -> str:
    """Give text on one line that a terminal shows as it is: what is not printable is escaped.

    Names of files and keys come from whoever is verified; a line break, an escape sequence or a
    mark that turns the direction of text must not look like words of the verifier.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


class LedgerError(Exception):
    """The ledger refused; the message says why, on one line."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(printable(message or inspect.getdoc(type(self)) or ""))


class LeafError(LedgerError):
    """A record that may not become a leaf: correct the field that is named."""


class Malformed(LedgerError):
    """These bytes are not what their specification draws: get them again from their source."""


class MalformedTile(Malformed):
    """Not a tile or entry bundle of tlog-tiles: restore the file from a copy."""


class MalformedNote(Malformed):
    """Not a signed note: get it again from its source."""


class MalformedCheckpoint(Malformed):
    """Not a checkpoint of tlog-checkpoint: get it again from its source."""


class MalformedProof(Malformed):
    """Not a tlog-proof: ask the site for the receipt again."""


class MalformedPolicy(Malformed):
    """Not a tlog-policy: correct the line that is named."""


class MalformedRequest(Malformed):
    """Not an add-checkpoint request of tlog-witness: send old size, proof and checkpoint."""


class BadKey(Malformed):
    """Not a key of signed-note: copy the whole line of ledger.vkey."""


class SignatureInvalid(LedgerError):
    """A key that should have signed this did not: do not trust the text."""


class ProofInvalid(LedgerError):
    """The hashes do not lead to the signed root: do not trust the leaf."""


class VerifyError(LedgerError):
    """The log does not verify: keep a copy of it and ask its operator."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.where = where
        self.what = what


class LogError(LedgerError):
    """The log cannot go on; the message says why."""


class SecondSequencer(LogError):
    """Another process is sequencing this log: let it, or stop it first."""


class WrongOrigin(LogError):
    """The log belongs to another origin: restore `origin` in the settings."""


class RolledBack(LogError):
    """The published files are ahead of the database: restore it, or `radseal ledger continue`."""


class Damaged(LogError):
    """The log's files do not lead to the root that was signed: restore them from a copy."""


class Gap(LogError):
    """The database lacks entries between two indexes: restore ledger.db from a copy."""


class LostRace(LogError):
    """The checkpoint in the database was advanced by another sequencer: restart this one."""


class StorageFailed(LogError):
    """A write did not become durable: free or repair the disk, then restart."""


class UnknownLeaf(LogError):
    """No such leaf was ever appended to this log."""


class NotCovered(LogError):
    """No published checkpoint covers this leaf yet: try again after the next checkpoint."""
