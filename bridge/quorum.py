"""Which witnesses a site asks and how many must agree: the lines of [ledger] witnesses. Pure.

They are lines of tlog-policy: witness, group and quorum. The log's own keys are not among them;
`of_site` puts those in front, and the whole is the site's `ledger.policy`.

Without a quorum line more than half of the witnesses must agree. Then any two quorums share a
witness, so two histories cannot both be witnessed unless that one lies; and one witness of three
may be down. `any` of two would let each history have a witness of its own, `all` would let one
partner's outage stop `checkpoint.witnessed`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bridge.errors import SettingsError
from ledger import note, policy
from ledger.errors import LedgerError, MalformedPolicy
from ledger.policy import NO_QUORUM, Policy

__all__ = ["MAJORITY", "Partner", "asked", "fault", "is_name", "of_lines", "of_site", "partners"]

MAJORITY = "majority"
_URL = re.compile(
    r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/[A-Za-z0-9._~%/-]*)?"
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Partner:
    """One address that we ask, with the keys it may answer with; named by its first line."""

    name: str
    url: str
    keys: tuple[note.Verifier, ...]


def asked(lines: Sequence[str]) -> Policy:
    """Read [ledger] witnesses; raises SettingsError naming the line and what to correct."""
    try:
        return of_lines(lines)
    except LedgerError as error:
        raise SettingsError(f"site.toml: ledger.witnesses: {error}") from None


def of_lines(lines: Sequence[str]) -> Policy:
    """Read witness, group and quorum lines; raises MalformedPolicy naming what to correct."""
    text = [line.strip() for line in lines]
    if any("\n" in line for line in text):
        raise MalformedPolicy("write one line of the policy as one text of the list")
    words = [line.split() for line in text if line and not line.startswith("#")]
    kinds = {one[0] for one in words}
    if "log" in kinds:
        raise MalformedPolicy("list witnesses, groups and a quorum; the log's own keys are known")
    if "group" in kinds and "quorum" not in kinds:
        raise MalformedPolicy("groups need a quorum line that says which of them counts")
    if "quorum" not in kinds:
        text += _majority([one[1] for one in words if one[0] == "witness" and len(one) > 1])
    found = Policy.parse("".join(f"{line}\n" for line in text))
    for one in found.witnesses:
        if not is_name(one.name):
            raise MalformedPolicy(
                f"the witness's name {one.name!r} may have lower case letters, digits, . - and _"
            )
        wrong = fault(one.url) if one.url else "is missing at the end of its line"
        if wrong:
            raise MalformedPolicy(f"the address of witness {one.name} {wrong}")
    return found


def of_site(vkeys: Sequence[str], asked: Policy) -> Policy:
    """Return the policy that verifiers need: the log's keys, its witnesses, the quorum."""
    return replace(asked, logs=policy.of_keys(vkeys).logs)


def partners(asked: Policy) -> tuple[Partner, ...]:
    """Return whom to ask: lines with one address are one partner with several keys."""
    found: dict[str, Partner] = {}
    for one in asked.witnesses:
        url = (one.url or "").rstrip("/")
        known = found.get(url, Partner(one.name, url, ()))
        found[url] = replace(known, keys=(*known.keys, one.key))
    return tuple(found.values())


def _majority(names: Sequence[str]) -> list[str]:
    if not names:
        return [f"quorum {NO_QUORUM}"]
    return [
        f"group {MAJORITY} {len(names) // 2 + 1} {' '.join(names)}",
        f"quorum {MAJORITY}",
    ]


def is_name(text: str) -> bool:
    """Whether a witness can be called so in site.toml: it becomes a file's name and a label."""
    return _NAME.fullmatch(text) is not None


def fault(url: str) -> str | None:
    """Say what is wrong with a witness's address (its submission prefix); None if nothing."""
    match = _URL.fullmatch(url)
    if match is None:
        return "must be http:// or https://, a host and perhaps a path; no user, no ? and no #"
    if match[1] and not 0 < int(match[1]) < 65536:
        return "has a port that is none"
    return None
