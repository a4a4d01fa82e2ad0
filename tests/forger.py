"""A log written with nothing of ours: canonical JSON, tree, tiles, signatures, all made here.

The verifier is judged by logs of this module, so it shares no code with it: standard library
and `cryptography` only. What a lawful log looks like is said by `Forger.study`; what breaks
each rule, by the functions at the end, each named for its rule.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

ORIGIN = "forged.example.org/log"
START = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
Refs = Sequence[tuple[str, str]]


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def value(name: str) -> str:
    """Thirty-two bytes that nobody can read, in base64."""
    return text(sha(name.encode()))


class Key:
    """A log's key of type 01 or 06, or a witness's of type 04 or 06."""

    def __init__(self, name: str, kind: int, seed: str) -> None:
        self.name, self.kind = name, kind
        entropy = sha(b"seed", seed.encode())
        self._ed = Ed25519PrivateKey.from_private_bytes(entropy)
        self._ml = MLDSA44PrivateKey.from_seed_bytes(entropy)
        public = (self._ml if kind == 6 else self._ed).public_key().public_bytes_raw()
        self._body = bytes((kind,)) + public
        self.key_id = sha(name.encode(), b"\n", self._body)[:4]

    @property
    def vkey(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{text(self._body)}"

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.vkey.encode()).hexdigest()

    def line(self, note: str, time: int) -> str:
        """Sign a checkpoint's text; the whole signature line."""
        stamp = struct.pack(">Q", time)
        if self.kind == 1:
            raw = self._ed.sign(note.encode())
        elif self.kind == 4:
            raw = stamp + self._ed.sign(f"cosignature/v1\ntime {time}\n{note}".encode())
        else:
            origin, size, root, _ = note.split("\n")
            message = b"subtree/v1\n\0" + bytes((len(self.name),)) + self.name.encode() + stamp
            message += bytes((len(origin),)) + origin.encode() + struct.pack(">QQ", 0, int(size))
            raw = stamp + self._ml.sign(message + base64.b64decode(root))
        return f"\u2014 {self.name} {text(self.key_id + raw)}\n"


ED, ML = Key(ORIGIN, 1, "log"), Key(ORIGIN, 6, "log")
VKEYS = [ED.vkey, ML.vkey]


def mth(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962's MTH, as it is written there."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha()
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return sha(b"\x01", mth(hashes[:k]), mth(hashes[k:]))


def place(index: int) -> str:
    digits = f"{index:03d}"
    groups = [digits[max(0, end - 3) : end] for end in range(len(digits), 0, -3)][::-1]
    groups = [group.zfill(3) for group in groups]
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


class Forger:
    """Leaves in order, and the folder that a log of them has."""

    def __init__(self, origin: str = ORIGIN) -> None:
        self.origin = origin
        self.leaves: list[bytes] = []
        self.now = START
        self.model = hashlib.sha256(b"a model").hexdigest()
        self.last: dict[str, str] = {}
        self.written = 0
        self.here: dict[str, str] = {}

    def say(
        self, kind: str, body: Mapping[str, Any], refs: Refs = (), *, time: datetime | None = None,
        subject: str | None = None, study: str | None = None, node: str = "node1",
    ) -> str:  # fmt: skip
        """Append a leaf; its hash in base64."""
        self.now += timedelta(milliseconds=40)
        at, number = time or self.now, self.written
        record: dict[str, Any] = {
            "v": 1, "type": kind, "id": f"01890000-0000-7000-8000-{number:012x}", "body": body,
            "time": at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z",
            "node": node, "actor": {"kind": "system", "id": "radseal"}, "idem": f"key/{number}",
        }  # fmt: skip
        if refs:
            record["refs"] = [{"rel": rel, "leaf": leaf} for rel, leaf in refs]
        if subject:
            record["subject"] = subject
        if study:
            record["study"] = study
        data = json.dumps(
            record, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        self.leaves.append(data)
        self.written += 1
        self.last[kind] = text(sha(b"\x00", data))
        return self.last[kind]

    def open(self, keys: Sequence[Key] = (ED, ML)) -> Forger:
        """Say the log's beginning: keys, settings, one model with its approval."""
        vkeys = [key.vkey if key.kind == 1 else key.fingerprint for key in keys]
        self.say("log.opened", {"schema": 1, "origin": self.origin, "vkeys": vkeys})
        self.say("config.changed", {"digest": "1" * 64})
        self.admit()
        return self

    def go_on(self, before: Forger, keys: Sequence[Key] = (ED, ML)) -> Forger:
        """Say that this log continues another, its settings, and admit the model anew."""
        self.now, self.written, self.model = before.now, 10_000 + before.written, before.model
        vkeys = [key.vkey if key.kind == 1 else key.fingerprint for key in keys]
        root = text(mth([sha(b"\x00", data) for data in before.leaves]))
        body = {"schema": 1, "origin": self.origin, "vkeys": vkeys, "reason": "size"}
        ended = {"previous": before.origin, "size": len(before.leaves), "root": root}
        self.say("log.continued", {**body, **ended})
        self.say("config.changed", {"digest": "1" * 64})
        self.admit()
        return self

    def carry(self, data: bytes, origin: str) -> str:
        """Repeat a leaf of an earlier log; its hash here."""
        record = json.loads(data)
        record["carried"] = {"origin": origin, "leaf": text(sha(b"\x00", data))}
        if "refs" in record:
            record["refs"] = [{**one, "leaf": self.here[one["leaf"]]} for one in record["refs"]]
        made = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        self.leaves.append(made)
        self.here[text(sha(b"\x00", data))] = self.last[record["type"]] = text(sha(b"\x00", made))
        return self.last[record["type"]]

    def admit(self, by: str = "vendor", approver: str = "head") -> None:
        """Register, approve and activate the model."""
        model = {"model": self.model}
        named = {**model, "id": "chest", "version": "1", "vendor": "v", "by": by}
        registered = self.say("model.registered", named)
        approval = {**model, "by": approver}
        approved = self.say("model.approved", approval, [("model.registered", registered)])
        self.say("model.activated", model, [("model.approved", approved)])

    def received(self, name: str) -> dict[str, str]:
        """Say that a study came and its input was sealed; whose it is, for `say`."""
        whose = {
            "subject": f"urn:radseal:subject:{hashlib.sha256(name.encode()).hexdigest()}",
            "study": f"urn:radseal:study:{hashlib.sha256(b's' + name.encode()).hexdigest()}",
        }
        body = {"source": "ct1", "protocol": "C-STORE", "generation": 1, "instances": 90}
        received = self.say("study.received", {**body, "root": value(name)}, **whose)
        self.say(
            "input.sealed",
            {
                "route": {"model": self.model, "roles": ["ct"]}, "root": value(name),
                "counts": {"ct": 90}, "evidence": {"kind": "quiet", "held": 90, "seconds": 30},
                "digest": value("d" + name), "generation": 1,
            },
            [("study.received", received)], **whose,
        )  # fmt: skip
        return whose

    def check(
        self, whose: Mapping[str, str], refs: Refs = (), matched: Sequence[Any] = (), **change: Any
    ) -> str:
        """Say a decision about the last input."""
        body = {
            "decision": "permit", "basis": "policy", "purpose": "TREATDS", "reason": "no-document",
            "policy": "opt-out-treatment", "policy_digest": "a" * 64, "engine": "radseal-consent/1",
            "request": value("q"), "matched": list(matched), "stage": "inference",
            "valid_until": None, **change,
        }  # fmt: skip
        return self.say("consent.checked", body, [*self.on("input.sealed"), *refs], **whose)

    def deny(self, whose: Mapping[str, str], **change: Any) -> str:
        """Say a denial that names no input."""
        body = {
            "decision": "deny", "basis": "policy", "purpose": "TREATDS", "reason": "objection",
            "policy": "opt-out-treatment", "engine": "radseal-consent/1", **change,
        }  # fmt: skip
        return self.say("consent.checked", body, **whose)

    def on(self, *kinds: str) -> list[tuple[str, str]]:
        """Give references to the last leaves of these types."""
        return [(kind, self.last[kind]) for kind in kinds]

    def run(self, whose: Mapping[str, str]) -> None:
        """Say that the model ran on the last input and what was composed."""
        model = {"model": self.model}
        started = self.on("input.sealed", "consent.checked", "model.activated")
        run = {**model, "run": "r1", "attempt": 1, "package": "b" * 64}
        self.say("inference.started", run, started, **whose)
        done = {
            **model, "run": "r1", "milliseconds": 40, "peak_mb": 120, "output": value("o"),
            "runtime": {"name": "onnxruntime", "providers": ["CPUExecutionProvider"]},
        }  # fmt: skip
        self.say("inference.completed", done, self.on("inference.started"), **whose)
        attributes = {tag: value(tag) for tag in ("00080050", "00100010", "00100020", "00100030")}
        composed = {
            **model, "kind": "sr", "revision": 1, "content": value("c"), "partial": False,
            "sop_class": "1.2.840.10008.5.1.4.1.1.88.34", "attributes": attributes,
        }  # fmt: skip
        self.say("result.composed", composed, self.on("inference.completed"), **whose)

    def deliver(self, whose: Mapping[str, str], **arrived: str) -> None:
        """Say that the last result was sent and stored."""
        sent = {"destination": "pacs", "kind": "sr", "attempt": 1}
        on = self.on("result.composed", "consent.checked")
        self.say("delivery.started", {**sent, "protocol": "C-STORE"}, on, **whose)
        stored = {**sent, "ack": {"status": "0x0000"}, **arrived}
        self.say("result.delivered", stored, self.on("delivery.started"), **whose)

    def close(self, whose: Mapping[str, str]) -> None:
        """Say that nothing of the study is left to do."""
        body = {"outcome": "delivered", "counts": {"routes": 1, "delivered": 1}, "generation": 1}
        self.say("study.closed", body, self.on("study.received"), **whose)

    def study(self, name: str) -> dict[str, str]:
        """Tell one study lawfully from its first image to its end."""
        whose = self.received(name)
        self.check(whose)
        self.run(whose)
        self.deliver(whose)
        self.close(whose)
        return whose

    def grant(self, whose: Mapping[str, str]) -> str:
        """Say that the patient consents."""
        body = {"document": value("doc"), "status": "active", "source": "fhir"}
        return self.say("consent.granted", body, subject=whose["subject"])

    def withdraw(self, whose: Mapping[str, str], granted: str) -> str:
        """Say that the patient's consent ends."""
        on = [("consent.granted", granted)]
        return self.say(
            "consent.withdrawn", {"document": value("doc")}, on, subject=whose["subject"]
        )

    def note(self, keys: Sequence[Key] = (ED, ML), at: datetime | None = None) -> str:
        """Sign all leaves said so far."""
        root = mth([sha(b"\x00", data) for data in self.leaves])
        body = f"{self.origin}\n{len(self.leaves)}\n{text(root)}\n"
        time = int((at or self.now).timestamp()) + 1
        return body + "\n" + "".join(key.line(body, time) for key in keys)

    def write(self, folder: Path, keys: Sequence[Key] = (ED, ML)) -> Path:
        """Write the log's folder."""
        for name, data in files(self.leaves):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (folder / "checkpoint").write_text(self.note(keys))
        return folder


def files(leaves: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
    """Give every file of tlog-tiles for these leaves."""
    row = [sha(b"\x00", data) for data in leaves]
    for first in range(0, len(leaves), 256):
        some = leaves[first : first + 256]
        bundle = b"".join(struct.pack(">H", len(data)) + data for data in some)
        yield path_of("entries", first // 256, len(some)), bundle
    level = 0
    while row:
        above = []
        for first in range(0, len(row), 256):
            some = row[first : first + 256]
            yield path_of(str(level), first // 256, len(some)), b"".join(some)
            if len(some) == 256:
                above.append(mth(some))
        row, level = above, level + 1


def path_of(level: str, index: int, width: int) -> str:
    """Name a tile."""
    return f"tile/{level}/{place(index)}" + ("" if width == 256 else f".p/{width}")


# --- what breaks each rule ----------------------------------------------------------------------


def r0(log: Forger) -> None:
    """A leaf stands on one that is not there."""
    whose = log.received("a")
    log.say(
        "study.closed", {"outcome": "x", "counts": {}}, [("study.received", value("no"))], **whose
    )


def r0_doubled(log: Forger) -> None:
    """A leaf is there twice, byte for byte."""
    log.leaves.append(log.leaves[-1])


def r0_said_again(log: Forger) -> None:
    """A fact is said again in other words: two leaves have one key."""
    record = json.loads(log.leaves[-1])
    record["body"]["outcome"] = "denied"
    log.leaves.append(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def r0_no_hash(log: Forger) -> None:
    """What a decision says it matched is no leaf, nor could it be one."""
    whose = log.received("a")
    log.check(whose, matched=[{"leaf": "x"}], basis="consent")
    log.close(whose)


def r1(log: Forger) -> None:
    """A withdrawal comes between the permit and the delivery."""
    whose = log.received("a")
    granted = log.grant(whose)
    log.check(whose, [("consent.granted", granted)], basis="consent")
    log.run(whose)
    log.withdraw(whose, granted)
    log.deliver(whose)
    log.close(whose)


def r1_second_patient(log: Forger) -> None:
    """The consent of the other patient on the images, named in `matched` only, was withdrawn."""
    other = {"subject": "urn:radseal:subject:" + "9" * 64}
    granted = log.grant(other)
    whose = log.received("a")
    matched = [{"document": 0, "path": "Consent.provision", "leaf": granted}]
    log.check(whose, matched=matched, basis="consent")
    log.withdraw(other, granted)
    log.run(whose)
    log.close(whose)


def r1_amended(log: Forger) -> None:
    """A newer version of the document came between permit and run."""
    whose = log.received("a")
    granted = log.grant(whose)
    log.check(whose, [("consent.granted", granted)], basis="consent")
    body = {"document": value("doc2"), "status": "active", "source": "fhir"}
    log.say("consent.amended", body, [("previous", granted)], subject=whose["subject"])
    log.run(whose)
    log.close(whose)


def r1_all_versions(log: Forger) -> None:
    """The first version of the document is withdrawn; the permit rests on a newer one."""
    other = {"subject": "urn:radseal:subject:" + "9" * 64}
    granted = log.grant(other)
    body = {"document": value("doc2"), "status": "active", "source": "fhir"}
    amended = log.say("consent.amended", body, [("previous", granted)], subject=other["subject"])
    whose = log.received("a")
    matched = [{"document": 0, "path": "Consent.provision", "leaf": amended}]
    log.check(whose, matched=matched, basis="consent")
    log.withdraw(other, granted)
    log.run(whose)
    log.close(whose)


def r1_no_document(log: Forger) -> None:
    """A permit says that it goes by a consent and names none: no withdrawal could end it."""
    whose = log.received("a")
    log.grant(whose)
    log.check(whose, basis="consent")
    log.close(whose)


def r1_old_version(log: Forger) -> None:
    """A permit rests on a version of the document that a newer one had replaced."""
    whose = log.received("a")
    granted = log.grant(whose)
    body = {"document": value("doc2"), "status": "active", "source": "fhir"}
    log.say("consent.amended", body, [("previous", granted)], subject=whose["subject"])
    log.check(whose, [("consent.granted", granted)], basis="consent")
    log.close(whose)


def r1_second_input(log: Forger) -> None:
    """A run reads two inputs and one of them was permitted."""
    whose = log.received("a")
    log.check(whose)
    permitted = log.on("input.sealed", "consent.checked", "model.activated")
    seal = {"route": {"model": log.model, "roles": ["ct"]}, "root": value("second")}
    counts = {"counts": {"ct": 9}, "evidence": {"kind": "quiet"}}
    second = log.say("input.sealed", {**seal, **counts}, log.on("study.received"), **whose)
    on = [*permitted, ("input.sealed", second)]
    log.say("inference.started", {"model": log.model, "run": "r1"}, on, **whose)
    log.close(whose)


def r1_denied_study(log: Forger) -> None:
    """A later check denies the study and names no input."""
    whose = log.received("a")
    log.check(whose)
    permit = log.last["consent.checked"]
    log.deny(whose)
    log.last["consent.checked"] = permit
    log.run(whose)
    log.close(whose)


def r1_denied_subject(log: Forger) -> None:
    """A later check denies what is sent of this patient, and names neither input nor study."""
    whose = log.received("a")
    log.check(whose)
    log.run(whose)
    permit = log.last["consent.checked"]
    log.deny({"subject": whose["subject"]})
    log.last["consent.checked"] = permit
    log.deliver(whose)
    log.close(whose)


def r1_resting(log: Forger) -> None:
    """A permit rests on a consent that had been withdrawn."""
    whose = log.received("a")
    granted = log.grant(whose)
    log.withdraw(whose, granted)
    log.check(whose, [("consent.granted", granted)], basis="consent")
    log.close(whose)


def r2(log: Forger) -> None:
    """Who registered the model approved it."""
    log.model = hashlib.sha256(b"another model").hexdigest()
    log.admit("vendor", "vendor")


def r2_registered_later(log: Forger) -> None:
    """Who approved the model registers it as well, afterwards."""
    log.model = hashlib.sha256(b"another model").hexdigest()
    named = {"model": log.model, "id": "chest", "version": "2", "vendor": "v"}
    registered = log.say("model.registered", {**named, "by": "vendor"})
    approved = log.say(
        "model.approved", {"model": log.model, "by": "eve"}, [("model.registered", registered)]
    )
    log.say("model.registered", {**named, "by": "Eve"})
    log.say("model.activated", {"model": log.model}, [("model.approved", approved)])


def r2_same_person(log: Forger) -> None:
    """Who registered the model approved it, with a capital letter and a space."""
    log.model = hashlib.sha256(b"another model").hexdigest()
    log.admit("eve", "Eve ")


def r2_same_person_wide(log: Forger) -> None:
    """Who registered the model approved it, with a full-width letter and a space more."""
    log.model = hashlib.sha256(b"another model").hexdigest()
    log.admit("eve b", "\N{FULLWIDTH LATIN CAPITAL LETTER E}ve  b")


def r2_shadow(log: Forger) -> None:
    """What a shadow found is sent."""
    on = log.on("model.registered")
    log.say("model.activated", {"model": log.model, "mode": "shadow"}, on)
    log.study("a")


def r2_suspended(log: Forger) -> None:
    """A run starts on an activation that was taken back."""
    log.say(
        "model.suspended", {"model": log.model, "reason": "rollback"}, log.on("model.activated")
    )
    log.study("a")


def r2_forged(log: Forger) -> None:
    """An activation calls itself proven and its statement is another act's."""
    body = {"model": log.model, "by": "head", "authn": "proven", "key": "ab" * 32}
    body |= {"statement": "radseal-act/v1 " + "0" * 64, "signature": "AA=="}
    log.say("model.activated", body, log.on("model.approved"))


def r3(log: Forger) -> None:
    """What arrived is another kind of object than what was sent."""
    whose = log.received("a")
    log.check(whose)
    log.run(whose)
    log.deliver(whose, kind="seg")
    log.close(whose)


def r4(log: Forger) -> None:
    """A study is lost: nothing ends it, an hour later others are still read."""
    log.received("lost")
    log.now += timedelta(hours=1)
    log.study("a")


def r5(log: Forger) -> None:
    """A leaf says a time that is after the log signed it."""
    whose = log.received("a")
    log.check(whose)
    body = {"recipient": "r", "purpose": "HQUALIMP", "what": {"n": 1}, "basis": "law"}
    log.say("access.disclosed", body, time=log.now + timedelta(hours=2), **whose)
    log.close(whose)


def r5_backwards(log: Forger) -> None:
    """A node's time runs back by an hour."""
    whose = log.received("a")
    log.check(whose)
    log.now -= timedelta(hours=1)
    log.close(whose)
    log.now += timedelta(hours=1)


def r6(log: Forger) -> None:
    """A permit for a patient whose data was erased."""
    whose = log.received("a")
    log.say("subject.erased", {"basis": "Art. 17"}, subject=whose["subject"])
    log.check(whose)
    log.close(whose)


def r6_use(log: Forger) -> None:
    """A result is sent after the patient's data was erased, on a permit from before."""
    whose = log.received("a")
    log.check(whose)
    log.run(whose)
    log.say("subject.erased", {"basis": "Art. 17"}, subject=whose["subject"])
    log.deliver(whose)
    log.close(whose)


def r7(log: Forger) -> None:
    """Somebody broke the glass and nobody looked at it for a week."""
    whose = log.received("a")
    said = {"reason": "emergency", "by": "u7"}
    log.check(whose, basis="override", override=said, reason="btg")
    log.close(whose)
    log.now += timedelta(days=7)
    log.study("b")


def r7_late(log: Forger) -> None:
    """Somebody looked at it after three hundred days."""
    r7_reviewed(log, "u9", timedelta(days=300))


def r7_own(log: Forger) -> None:
    """Who broke the glass says that it was right."""
    r7_reviewed(log, "U7 ", timedelta(hours=1))


def r7_reviewed(log: Forger, by: str, after: timedelta) -> None:
    whose = log.received("a")
    said = {"reason": "emergency", "by": "u7"}
    checked = log.check(whose, basis="override", override=said, reason="btg")
    log.close(whose)
    log.now += after
    on = [("consent.checked", checked)]
    log.say("override.reviewed", {"outcome": "ok", "by": by}, on, subject=whose["subject"])


def r8(log: Forger) -> None:
    """The log says that other keys sign it from here on; the old ones go on."""
    new = [Key(ORIGIN, kind, "new").fingerprint for kind in (1, 6)]
    log.say("key.rotated", {"keys": new, "by": "u7"})
    log.say("key.rotated", {"keys": new, "by": "u7", "reason": "overlap-ended"})
    log.study("a")


def r9(log: Forger) -> None:
    """Settings are said to replace others than those that were recorded."""
    log.say("config.changed", {"digest": "3" * 64, "previous": "2" * 64})


BREAKS: Mapping[str, tuple[str, Callable[[Forger], None], str]] = {
    "R0": ("R0", r0, "study.closed"),
    "R0 doubled": ("R0", r0_doubled, "study.closed"),
    "R0 said again": ("R0", r0_said_again, "study.closed"),
    "R0 no hash": ("R0", r0_no_hash, "consent.checked"),
    "R1": ("R1", r1, "delivery.started"),
    "R1 no document": ("R1", r1_no_document, "consent.checked"),
    "R1 old version": ("R1", r1_old_version, "consent.checked"),
    "R1 second input": ("R1", r1_second_input, "inference.started"),
    "R1 denied study": ("R1", r1_denied_study, "inference.started"),
    "R1 denied subject": ("R1", r1_denied_subject, "delivery.started"),
    "R1 second patient": ("R1", r1_second_patient, "inference.started"),
    "R1 amended": ("R1", r1_amended, "inference.started"),
    "R1 all versions": ("R1", r1_all_versions, "inference.started"),
    "R1 resting": ("R1", r1_resting, "consent.checked"),
    "R2": ("R2", r2, "model.approved"),
    "R2 registered later": ("R2", r2_registered_later, "model.activated"),
    "R2 same person": ("R2", r2_same_person, "model.approved"),
    "R2 same person wide": ("R2", r2_same_person_wide, "model.approved"),
    "R2 shadow": ("R2", r2_shadow, "delivery.started"),
    "R2 suspended": ("R2", r2_suspended, "inference.started"),
    "R2 forged": ("R2", r2_forged, "model.activated"),
    "R3": ("R3", r3, "result.delivered"),
    "R4": ("R4", r4, "study.received"),
    "R5": ("R5", r5, "access.disclosed"),
    "R5 backwards": ("R5", r5_backwards, "study.closed"),
    "R6": ("R6", r6, "consent.checked"),
    "R6 use": ("R6", r6_use, "delivery.started"),
    "R7": ("R7", r7, "consent.checked"),
    "R7 late": ("R7", r7_late, "override.reviewed"),
    "R7 own": ("R7", r7_own, "override.reviewed"),
    "R8": ("R8", r8, "checkpoint"),
    "R9": ("R9", r9, "config.changed"),
}
"""Name -> (rule, what to say after `open`, the type of the leaf that breaks it)."""
