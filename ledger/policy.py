"""Whom a verifier trusts, and how many must agree: tlog-policy (C2SP). Pure.

    log <vkey> [<url>]                         a log's key; its name is the log's origin
    witness <name> <vkey> [<url>]              a cosigner, named for the lines below
    group <name> <k|any|all> <member>...       k of these witnesses and earlier groups
    quorum <witness|group|none>                exactly one: what a checkpoint needs

Items are separated by spaces and tabs; empty lines and lines that start with # are comments.
The quorum and a group name only what stands above them, and nobody is a member twice.

`judge` is stricter than the specification in one point: where it accepts a checkpoint that
*any* listed log key signed, each algorithm that is listed for an origin must have signed, so
that nobody can strip the post-quantum signature from a log whose two keys are listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ledger import leaf, note
from ledger.checkpoint import Checkpoint
from ledger.errors import BadKey, MalformedPolicy, SignatureInvalid

__all__ = [
    "NO_QUORUM", "UNWITNESSED", "Group", "Policy", "Trusted", "Verdict", "line_name", "of_keys",
    "signature_lines",
]  # fmt: skip

NO_QUORUM = "none"
UNWITNESSED = (
    "consistent with this checkpoint; its operator could have shown others another history"
)
"""What a verifier says of every log that no witness of the policy has cosigned."""
_LATEST = 253_402_300_799  # 9999-12-31: no time that can be written is later
_MAX_LENGTH, _MAX_OF_A_KIND = 1_000_000, 256
_LOG_TYPES = (note.ED25519, note.MLDSA44)
_WITNESS_TYPES = (note.ED25519_COSIGNATURE, note.MLDSA44)
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Trusted:
    """A key that the policy lists. `name` is a witness's name in the policy, a log's origin."""

    name: str
    key: note.Verifier
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these members stand for the group."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one checkpoint.

    `signed` and `missing` are the listed log keys of its origin that did and did not sign;
    `signed_at` the time in the log's own type 06 signature; `cosigned` when each listed
    witness (by its name in the policy) says that it saw it, POSIX seconds; `reached` whether
    these satisfy the quorum (always so for `quorum none`); `unchecked` the lines whose key
    is not listed, as NAME+KEYID.
    """

    checkpoint: Checkpoint
    signed: tuple[note.Verifier, ...]
    missing: tuple[note.Verifier, ...]
    signed_at: int | None
    cosigned: Mapping[str, int]
    reached: bool
    unchecked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Trusted log keys and witnesses, and the quorum."""

    logs: tuple[Trusted, ...]
    witnesses: tuple[Trusted, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NO_QUORUM

    def __str__(self) -> str:
        lines = [f"log {note.vkey(one.key)}{_tail(one)}" for one in self.logs]
        lines += [f"witness {one.name} {note.vkey(one.key)}{_tail(one)}" for one in self.witnesses]
        lines += [
            f"group {one.name} {one.threshold} {' '.join(one.members)}" for one in self.groups
        ]
        return "".join(f"{line}\n" for line in [*lines, f"quorum {self.quorum}"])

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read a policy file; raises MalformedPolicy naming the line."""
        if len(text) > _MAX_LENGTH or _FORBIDDEN.search(text):
            raise MalformedPolicy("a policy is text without control characters, below 1 MB")
        if text and not text.endswith("\n"):
            raise MalformedPolicy("the last line of the policy does not end: is it cut short?")
        read = _Reader()
        for number, line in enumerate(text.split("\n"), 1):
            items = [item for item in re.split("[ \t]+", line) if item]
            if items and not items[0].startswith("#"):
                try:
                    read.line(items)
                except (MalformedPolicy, BadKey) as error:
                    raise MalformedPolicy(f"line {number} of the policy: {error}") from None
        if read.quorum is None:
            raise MalformedPolicy(
                "the policy has no quorum line; `quorum none` asks for no witness"
            )
        return cls(tuple(read.logs), tuple(read.witnesses), tuple(read.groups), read.quorum)

    def judge(self, text: str) -> Verdict:
        """Judge a signed checkpoint's text.

        Raises MalformedNote or MalformedCheckpoint for what is none, BadKey for a policy
        without log keys, and SignatureInvalid where a listed key's line does not verify, no
        listed log key signed, or none of an algorithm that is listed for this origin.
        """
        if not self.logs:
            raise BadKey("bring at least one vkey: a verifier takes no trust from what it verifies")
        body, lines = note.parse(text)
        times = _verified(body, lines, [one.key for one in (*self.logs, *self.witnesses)])
        if not any(one.key in times for one in self.logs):
            raise SignatureInvalid(
                "no key that you trust has signed this note; if the log's keys were rotated, "
                "fetch its ledger.vkey again from where you trust it"
            )
        point = Checkpoint.parse(body)
        ours = [one.key for one in self.logs if one.key.name == point.origin]
        signed = tuple(key for key in ours if key in times)
        _required(point.origin, ours, signed)
        cosigned = {
            one.name: time for one in self.witnesses if (time := times.get(one.key)) is not None
        }
        known = {(one.key.name, one.key.key_id) for one in (*self.logs, *self.witnesses)}
        return Verdict(
            point, signed, tuple(key for key in ours if key not in times),
            next((time for key in signed if (time := times[key]) is not None), None),
            cosigned, self.satisfied(cosigned),
            tuple(line_name(x.name, x.key_id) for x in lines if (x.name, x.key_id) not in known),
        )  # fmt: skip

    def satisfied(self, cosigned: Mapping[str, int]) -> bool:
        """Whether the witnesses of these names are a quorum."""
        groups = {group.name: group for group in self.groups}

        def holds(name: str) -> bool:
            group = groups.get(name)
            if group is None:
                return name in cosigned
            return sum(map(holds, group.members)) >= group.threshold

        return self.quorum == NO_QUORUM or holds(self.quorum)


def of_keys(vkeys: Sequence[str]) -> Policy:
    """Return the policy that trusts these log keys and asks for no witness; raises BadKey."""
    found = [note.Verifier.from_vkey(text) for text in dict.fromkeys(vkeys)]
    for key in found:
        if key.algorithm not in _LOG_TYPES:
            raise BadKey(f"{line_name(key.name, key.key_id)} is a witness's key, not a log's")
    if len({(key.name, key.key_id) for key in found}) != len(found):
        raise BadKey("two of the keys have one name and one key id; bring one of them")
    return Policy(tuple(Trusted(key.name, key) for key in found))


def line_name(name: str, key_id: bytes) -> str:
    """Spell whose signature line it is: NAME+KEYID, as a vkey begins."""
    return f"{name}+{key_id.hex()}"


def signature_lines(unchecked: Sequence[str], cosigned: Mapping[str, int]) -> list[str]:
    """Say which signatures nobody could check, and what witnesses say; without any, the caution."""
    lines = [f"signature not checked: {name}" for name in unchecked]
    for who, when in sorted(cosigned.items()):
        at = datetime.fromtimestamp(min(when, _LATEST), UTC)
        lines.append(f"witnessed: by {who} at {leaf.stamp(at)}")
    return lines if cosigned else [*lines, f"unwitnessed: {UNWITNESSED}"]


def _tail(one: Trusted) -> str:
    return "" if one.url is None else f" {one.url}"


def _verified(
    text: str, lines: Sequence[note.Line], keys: Sequence[note.Verifier]
) -> dict[note.Verifier, int | None]:
    """Give the keys that signed and the time each says; the first line of a key counts."""
    known = {(key.name, key.key_id): key for key in keys}
    found: dict[note.Verifier, int | None] = {}
    for line in lines:
        key = known.get((line.name, line.key_id))
        if key is not None:
            time = key.verify(text, line.payload)
            found.setdefault(key, time)
    return found


def _required(origin: str, ours: Sequence[note.Verifier], signed: Sequence[note.Verifier]) -> None:
    if not signed:
        raise SignatureInvalid(f"the checkpoint of {origin} is signed by another log's key")
    missing = {key.algorithm for key in ours} - {key.algorithm for key in signed}
    if missing:
        kinds = ", ".join(f"{kind:02x}" for kind in sorted(missing))
        raise SignatureInvalid(f"no signature by your key of type {kinds}")


@dataclass(slots=True)
class _Reader:
    logs: list[Trusted] = field(default_factory=list)
    witnesses: list[Trusted] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    quorum: str | None = None
    _names: set[str] = field(default_factory=set)
    _members: set[str] = field(default_factory=set)

    def line(self, items: Sequence[str]) -> None:
        reader: Callable[[Sequence[str]], None] | None = {
            "log": self._log, "witness": self._witness,
            "group": self._group, "quorum": self._quorum,
        }.get(items[0])  # fmt: skip
        if reader is None:
            raise MalformedPolicy(f"{items[0]!r} is neither log, witness, group nor quorum")
        reader(items[1:])
        if max(len(self.logs), len(self.witnesses), len(self.groups)) > _MAX_OF_A_KIND:
            raise MalformedPolicy(f"more than {_MAX_OF_A_KIND} logs, witnesses or groups")

    def _key(self, text: str, types: Sequence[int], others: Sequence[Trusted]) -> note.Verifier:
        key = note.Verifier.from_vkey(text)
        if key.algorithm not in types:
            kinds = " or ".join(f"{kind:02x}" for kind in types)
            raise MalformedPolicy(f"a key of type {key.algorithm:02x} stands where {kinds} belongs")
        if any(key.public == other.key.public for other in others):
            raise MalformedPolicy("this key is listed already")
        everybody = (*self.logs, *self.witnesses)
        if any((key.name, key.key_id) == (o.key.name, o.key.key_id) for o in everybody):
            raise MalformedPolicy("another key has this name and this key id")
        return key

    def _log(self, items: Sequence[str]) -> None:
        if len(items) not in (1, 2):
            raise MalformedPolicy("write log <vkey> [<url>]")
        key = self._key(items[0], _LOG_TYPES, self.logs)
        self.logs.append(Trusted(key.name, key, *items[1:]))

    def _witness(self, items: Sequence[str]) -> None:
        if len(items) not in (2, 3):
            raise MalformedPolicy("write witness <name> <vkey> [<url>]")
        key = self._key(items[1], _WITNESS_TYPES, self.witnesses)
        self.witnesses.append(Trusted(self._new(items[0]), key, *items[2:]))

    def _group(self, items: Sequence[str]) -> None:
        if len(items) < 3:
            raise MalformedPolicy("write group <name> <k|any|all> <member>...")
        name, count, *members = items
        for member in members:
            if member not in self._names:
                raise MalformedPolicy(f"{member} is neither a witness nor a group above this line")
            if member in self._members:
                raise MalformedPolicy(f"{member} is a member already")
            self._members.add(member)
        threshold = {"any": 1, "all": len(members)}.get(count)
        if threshold is None:
            if re.fullmatch("[1-9][0-9]{0,5}", count) is None or int(count) > len(members):
                raise MalformedPolicy(
                    f"{count} of {len(members)}: write a number of them, any or all"
                )
            threshold = int(count)
        self.groups.append(Group(self._new(name), threshold, tuple(members)))

    def _quorum(self, items: Sequence[str]) -> None:
        if len(items) != 1 or self.quorum is not None:
            raise MalformedPolicy("write one quorum line: quorum <witness|group|none>")
        if items[0] != NO_QUORUM and items[0] not in self._names:
            raise MalformedPolicy(f"{items[0]} is neither a witness nor a group above this line")
        self.quorum = items[0]

    def _new(self, name: str) -> str:
        if name == NO_QUORUM or name in self._names:
            raise MalformedPolicy(f"the name {name} is taken")
        self._names.add(name)
        return name
