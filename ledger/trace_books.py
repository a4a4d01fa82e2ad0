"""Trace rules about the log itself: R8 (the keys that sign it), R9 (the settings). Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from ledger import note
from ledger.trace_memory import Seen

__all__ = ["Keys", "Settings", "fingerprint"]

Note = Callable[[str], None]


def fingerprint(key: note.Verifier) -> str:
    """Name a key as key.rotated does: SHA-256 of its vkey in hex."""
    return hashlib.sha256(note.vkey(key).encode()).hexdigest()


class Keys:
    """The sets of keys that the log announced: each leaf names all that sign from it on."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str]] = []

    def announced(self, one: Seen) -> None:
        """Take log.opened, log.continued or key.rotated."""
        said = one.body.get("keys" if one.type == "key.rotated" else "vkeys", ())
        names = frozenset(name for name in said if isinstance(name, str))
        if names:
            self._sets.append(names)

    def must_sign(self, key: note.Verifier) -> bool | None:
        """Whether this key must sign the newest checkpoint; None where the log does not say.

        A key must sign if the last announcement names it and so does the one before: between
        two announcements lies the moment when a sequencer takes up or puts down a key. A log of
        radseal 0.1 names its Ed25519 key only; it does not say whether an ML-DSA key signs.
        """
        if not self._sets:
            return None
        last, before = self._sets[-1], self._sets[-2] if len(self._sets) > 1 else self._sets[-1]
        if self._names(last, key):
            return self._names(before, key)
        if key.algorithm != note.ED25519 and not _complete(last):
            return None
        return False

    def stranger(self, key: note.Verifier) -> bool:
        """Whether a key signed that no announcement in force names (the last two count)."""
        recent = self._sets[-2:]
        known = any(self._names(names, key) for names in recent)
        says_all = key.algorithm == note.ED25519 or any(map(_complete, recent))
        return bool(recent) and not known and says_all

    def ever(self, key: note.Verifier) -> bool:
        """Whether the log has named this key at any time."""
        return any(self._names(names, key) for names in self._sets)

    @staticmethod
    def _names(names: frozenset[str], key: note.Verifier) -> bool:
        return note.vkey(key) in names or fingerprint(key) in names


def _complete(names: frozenset[str]) -> bool:
    """Whether an announcement names ML-DSA keys too: these only fit in as their SHA-256."""
    return any("+" not in name for name in names)


class Settings:
    """R9."""

    def __init__(self, blame: Callable[[Seen, str, str], None], remark: Note) -> None:
        self._blame = blame
        self._remark = remark
        self._digest: str | None = None
        self._told: set[str] = set()

    def changed(self, one: Seen) -> None:
        """Judge config.changed: it names the settings before it, which are those said last."""
        before = one.body.get("previous")
        if before is not None and before != self._digest:
            last = "none were recorded" if self._digest is None else "not those recorded last"
            self._blame(one, "R9", f"the settings it says it replaces are {last}")
        elif before is None and self._digest not in (None, one.body["digest"]):
            self._once("gap", f"R9: leaf {one.index} does not say which settings it replaces")
        self._digest = one.body["digest"]

    def sealed(self, one: Seen) -> None:
        """Judge the first input: the settings in force should be recorded by then."""
        if self._digest is None:
            words = f"R9: no settings were recorded before the first input (leaf {one.index})"
            self._once("late", words)

    def _once(self, kind: str, words: str) -> None:
        """Say the first of its kind."""
        if kind not in self._told:
            self._told.add(kind)
            self._remark(words)


def missing(keys: Keys, asked: Sequence[note.Verifier]) -> list[note.Verifier]:
    """Give those of the auditor's keys that did not sign and should have."""
    return [key for key in asked if keys.must_sign(key) is not False or not keys.ever(key)]
