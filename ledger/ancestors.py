"""Whether what a log carries from the logs before it stands in them.

A log that begins with log.continued repeats leaves of earlier logs word for word
(`ledger.carried`). That they are lawful there is seen only with those logs at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ledger import leaf
from ledger.carried import unproven
from ledger.errors import VerifyError
from ledger.trace import Terms
from ledger.verify import Report, Trust, audit, finding

__all__ = ["compare"]

_NAMED = 5


def compare(
    report: Report, previous: Sequence[Path | str], trust: Trust, terms: Terms | None = None
) -> Report:
    """Verify the logs that this one continues, newest first; give the report with what they show.

    Each must hold by the same trust and terms, have no finding, and be the history whose end
    log.continued names. Raises VerifyError naming the log. A leaf that an ended log had taken
    and never published stands in none: such ones are listed, not refused.
    """
    alone = {unproven(origin, len(some)) for origin, some in report.carried.items()}
    newer, notes = report, [words for words in report.notes if words not in alone]
    carried = {origin: _placed(report.origin, some) for origin, some in report.carried.items()}
    for where in previous:
        earlier = _audited(newer, where, trust, terms, {h for one in carried.values() for h in one})
        notes += _end(newer, earlier)
        some = carried.pop(earlier.origin, {})
        notes.append(_found(earlier, some))
        for origin, more in earlier.carried.items():
            carried.setdefault(origin, {}).update(_placed(earlier.origin, more))
        newer = earlier
    notes += [unproven(origin, len(some)) for origin, some in carried.items()]
    return replace(report, notes=tuple(notes))


def _placed(origin: str, some: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    return {there: (origin, index) for there, index in some.items()}


def _audited(
    newer: Report, where: Path | str, trust: Trust, terms: Terms | None, wanted: set[str]
) -> Report:
    said = newer.continued
    if said is None:
        raise VerifyError(str(where), f"{newer.origin} continues no earlier log")
    try:
        earlier = audit(where, trust, terms, wanted=wanted, sizes=[said["size"]])
        if earlier.origin != said["previous"]:
            words = f"it is {earlier.origin}, and {newer.origin} continues {said['previous']}"
            raise VerifyError("checkpoint", f"{words}: bring the newest of the earlier logs first")
        if earlier.violations:
            raise finding(earlier)
    except VerifyError as error:
        raise VerifyError(f"{where}: {error.where}", error.what) from error
    return earlier


def _end(newer: Report, earlier: Report) -> list[str]:
    """Compare the earlier log with what log.continued says of its end."""
    said = newer.continued or {}
    size, root = said["size"], earlier.roots.get(said["size"])
    if root is None:
        words = f"{newer.origin} says that {size} leaves of {earlier.origin} were signed"
        return [f"{words}; the copy that you brought has {earlier.size}"]
    if leaf.ref(root) != said["root"]:
        words = f"names another history of {earlier.origin} than the one that you brought"
        raise VerifyError(f"leaf 0 (log.continued) of {newer.origin}", words)
    return []


def _found(earlier: Report, some: Mapping[str, tuple[str, int]]) -> str:
    many = "1 leaf is" if len(some) == 1 else f"{len(some)} leaves are"
    words = f"{many} carried from {earlier.origin}, which was verified too"
    absent = sorted(place for there, place in some.items() if there not in earlier.met)
    if not absent:
        return f"{words}: all stand in it"
    names = ", ".join(f"leaf {index} of {origin}" for origin, index in absent[:_NAMED])
    more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
    return (
        f"{words}: {len(absent)} of them do not stand in it ({names}{more}); a log that ended may "
        "have taken them and not published them, and nobody else has signed them"
    )
