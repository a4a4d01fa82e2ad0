"""A site's log for tests: fixed keys, fixed time, lawful stories in one call."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ledger import leaf, note
from ledger.log import Log, SqliteStore, open_log
from ledger.sequencer import Sequencer, sequence

ORIGIN = "ledger.example.org/radiology"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
MODEL = "ab" * 32
SUBJECT = "urn:radseal:subject:" + "1" * 64
STUDY = "urn:radseal:study:" + "2" * 64


def seed(name: str) -> Any:
    """Entropy that is always the same for a name."""
    return lambda count: hashlib.sha256(name.encode()).digest()[:count]


def signers(origin: str = ORIGIN, name: str = "log") -> list[note.Signer]:
    """An Ed25519 and an ML-DSA-44 key for an origin."""
    return [
        note.Ed25519Signer.generate(origin, seed(name)),
        note.MLDSA44Signer.generate(origin, seed(name)),
    ]


VKEYS = [note.vkey(signer) for signer in signers()]


def value(text: str) -> str:
    """32 bytes as leaves spell them."""
    return leaf.ref(hashlib.sha256(text.encode()).digest())


def made(number: int, type: str, body: Mapping[str, Any], **rest: Any) -> bytes:
    """The bytes of a leaf with number in its id and key."""
    rest.setdefault("time", NOW)
    rest.setdefault("idem", f"key/{number}")
    return leaf.render(
        leaf.record(
            id=f"00000000-0000-7000-8000-{number:012x}",
            type=type,
            node="node-1",
            actor={"kind": "system", "id": "radseal"},
            body=body,
            **rest,
        )
    )


class Site:
    """A log in a folder, opened with its first leaf."""

    def __init__(self, folder: Path, *, opened: bool = True) -> None:
        self.folder = folder / "ledger"
        self.database = folder / "ledger.db"
        self.number = 0
        self.store = SqliteStore(self.database)
        self.log: Log = open_log(self.folder, self.store, ORIGIN, signers())
        if opened:
            self.say("log.opened", {"schema": 1, "origin": ORIGIN, "vkeys": VKEYS[:1]})

    def say(self, type: str, body: Mapping[str, Any], **rest: Any) -> str:
        """Append a leaf; its hash in base64."""
        data = made(self.number, type, body, **rest)
        self.number += 1
        return leaf.ref(self.log.append(leaf.parse(data)["idem"], data))

    def fill(self, count: int) -> list[str]:
        """Append `count` leaves that nobody refers to."""
        return [self.say("config.changed", {"digest": f"{n:064x}"}) for n in range(count)]

    def publish(self, later: float = 0.0) -> int:
        """Sequence what is pending."""
        return sequence(self.log, NOW + timedelta(seconds=later))

    def reopen(self) -> Site:
        """The same site after a restart."""
        self.store.close()
        again = Site(self.folder.parent, opened=False)
        again.number = self.number
        return again

    def sequencer(self) -> Sequencer:
        """A sequencer, not entered."""
        return Sequencer(self.log)


def refs(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """References as records take them."""
    return [{"rel": rel, "leaf": ref} for rel, ref in pairs]


def permit(**changes: Any) -> dict[str, Any]:
    """The body of a consent.checked that permits."""
    return {
        "decision": "permit", "basis": "policy", "purpose": "TREATDS", "policy": "opt-out",
        "engine": "radseal-consent/1", "reason": "policy-permits", **changes,
    }  # fmt: skip


class Story:
    """One study's leaves, appended step by step; each step's hash is kept under its type.

    `change` replaces body keys of a type, `aim` replaces the references of a type.
    """

    ORDER: Sequence[str] = (
        "model.registered", "model.approved", "model.activated", "study.received", "input.sealed",
        "consent.checked", "inference.started", "inference.completed", "result.composed",
        "delivery.started", "result.delivered", "result.confirmed", "study.closed",
    )  # fmt: skip
    BODIES: Mapping[str, Mapping[str, Any]] = {
        "model.registered": {"model": MODEL, "id": "m", "version": "1", "vendor": "v"},
        "model.approved": {"model": MODEL, "by": "head"},
        "model.activated": {"model": MODEL},
        "study.received": {
            "source": "ct1", "protocol": "C-STORE", "generation": 1, "instances": 30,
        },
        "input.sealed": {
            "route": {"model": MODEL, "roles": ["ct"]}, "root": value("input"),
            "counts": {"held": 30}, "evidence": "quiet",
        },
        "consent.checked": permit(),
        "inference.started": {"model": MODEL},
        "inference.completed": {
            "model": MODEL, "runtime": {"name": "onnxruntime"}, "milliseconds": 7,
        },
        "result.composed": {"kind": "sr", "revision": 1, "content": value("content")},
        "delivery.started": {"destination": "pacs", "kind": "sr"},
        "result.delivered": {"destination": "pacs", "kind": "sr", "ack": "0x0000"},
        "result.confirmed": {"destination": "pacs", "kind": "sr", "ack": "committed"},
        "study.closed": {"outcome": "completed", "counts": {"runs": 1}},
    }  # fmt: skip
    RELS: Mapping[str, Sequence[str]] = {
        "model.approved": ["model.registered"],
        "model.activated": ["model.approved"],
        "input.sealed": ["study.received"],
        "consent.checked": ["input.sealed"],
        "inference.started": ["input.sealed", "consent.checked", "model.activated"],
        "inference.completed": ["inference.started"],
        "result.composed": ["inference.completed"],
        "delivery.started": ["result.composed", "consent.checked"],
        "result.delivered": ["delivery.started"],
        "result.confirmed": ["result.delivered"],
        "study.closed": ["study.received"],
    }

    def __init__(self, site: Site) -> None:
        self.site = site
        self.refs: dict[str, str] = {}

    def tell(self, type: str, change: Mapping[str, Any] | None = None, **rest: Any) -> str:
        """Append one step."""
        if not type.startswith("model."):
            rest.setdefault("subject", SUBJECT)
            rest.setdefault("study", STUDY)
        if "refs" not in rest:
            rest["refs"] = refs(*((rel, self.refs[rel]) for rel in self.RELS.get(type, ())))
        body = {**self.BODIES.get(type, {}), **(change or {})}
        self.refs[type] = self.site.say(type, body, **rest)
        return self.refs[type]

    def until(self, last: str) -> Story:
        """Append the steps up to and with `last` that have not been told."""
        for type in self.ORDER[: self.ORDER.index(last) + 1]:
            if type not in self.refs:
                self.tell(type)
        return self
