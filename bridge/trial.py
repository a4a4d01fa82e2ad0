"""What a shadow trial showed: how often, how fast, how alike to the live model, for whom. Pure.

Rates come with Wilson's 95 % interval, agreement with Cohen's kappa, measurements with limits of
agreement (mean difference ± 1.96 standard deviations). Of groups with fewer than `LEAST` readings
nothing is said but that they are few, and of the next smallest neither until two at least and
`LEAST` readings are hidden together: the total would tell. A reading is one run's outcome;
studies are counted once per generation.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from models.findings import ABSENT, PRESENT, Findings

__all__ = ["LEAST", "READ", "Model", "Reading", "age_band", "is_positive", "measured", "trial"]

LEAST: Final = 10
READ: Final = "completed"
_Z: Final = 1.959964
_BANDS: Final = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (80, "65-79"))


@dataclass(frozen=True, slots=True)
class Model:
    """Which model: the package's id and version, the digest of its graph."""

    id: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How one model dealt with one study's input.

    `input` is equal for two models that were given the same arrival; `state` is READ, failed,
    denied, cancelled or waiting, `code` the reason of a failure; `seconds` of the run and
    `waited` since the input was complete; `groups` are names of groups, never of a patient.
    """

    input: str
    state: str
    at: datetime
    code: str = ""
    seconds: float | None = None
    waited: float | None = None
    positive: bool | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)


def is_positive(findings: Findings) -> bool | None:
    """Whether a reader would be told of something; None where the model only measures."""
    said = {one.value for one in findings.qualitative}
    if PRESENT in said:
        return True
    if said == {ABSENT} or findings.nothing_found:
        return False
    return True if findings.segments and findings.kind == "segmentation" else None


def measured(findings: Findings) -> dict[str, float]:
    """Give the measurements by what they measure, of which segment, and their unit."""
    labels = {segment.number: segment.label for segment in findings.segments}
    return {
        ", ".join(filter(None, (one.what.meaning, labels.get(one.segment or 0))))
        + f" [{one.unit.value}]": one.value
        for one in findings.measurements
    }


def age_band(years: float | None) -> str:
    """Give the group of an age."""
    if years is None:
        return "unknown"
    return next((name for limit, name in _BANDS if years < limit), "80 and over")


def trial(
    model: Model,
    against: Model | None,
    readings: Sequence[Reading],
    others: Sequence[Reading],
    *,
    since: datetime,
    until: datetime,
) -> dict[str, Any]:
    """Judge the readings of `model`, and beside them `others` of `against`; JSON values."""
    read = [one for one in readings if one.state == READ]
    days = max((until - since).total_seconds() / 86400, 1 / 24)
    told = [one for one in read if one.positive is not None]
    positive = sum(one.positive is True for one in told)
    pairs = _pairs(read, others)
    return {
        "format": "radseal/trial/v1", "model": asdict(model),
        "against": asdict(against) if against else None,
        "since": since.isoformat(), "until": until.isoformat(), "days": round(days, 2),
        "volume": {
            "inputs": len(readings), "by_state": dict(Counter(one.state for one in readings)),
            "failures": dict(Counter(one.code for one in readings if one.state == "failed")),
            "read_per_day": round(len(read) / days, 2),
        },
        "seconds": {
            "of the run": _spread([one.seconds for one in read]),
            "from complete input to finding": _spread([one.waited for one in read]),
        },
        "positive": {**_share(positive, len(told)), "per_day": round(positive / days, 2)},
        "agreement": _agreement(pairs) if against else None,
        "measurements": _differences(pairs) if against else [],
        "groups": _groups(told),
        # Nothing records a reader's verdict in this release; said so that nobody misses it.
        "feedback": {"readings": 0, "words": "readers' feedback is not recorded by this release"},
    }  # fmt: skip


def _pairs(read: Sequence[Reading], others: Sequence[Reading]) -> list[tuple[Reading, Reading]]:
    by_input = {one.input: one for one in others if one.state == READ}
    return [(one, by_input[one.input]) for one in read if one.input in by_input]


def _spread(values: Sequence[float | None]) -> dict[str, float | int]:
    known = sorted(value for value in values if value is not None)
    if not known:
        return {"n": 0}
    last = len(known) - 1
    return {
        "n": len(known), "p50": round(known[round(last * 0.5)], 3),
        "p95": round(known[math.ceil(last * 0.95)], 3), "most": round(known[-1], 3),
    }  # fmt: skip


def _share(count: int, n: int) -> dict[str, Any]:
    """Give a rate with Wilson's interval (E. B. Wilson 1927); none of nothing."""
    if n == 0:
        return {"count": 0, "n": 0, "rate": None, "low": None, "high": None}
    rate, square = count / n, _Z * _Z
    middle = (rate + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {
        "count": count, "n": n, "rate": round(rate, 4), "low": round(low, 4),
        "high": round(high, 4),
    }  # fmt: skip


def _agreement(pairs: Sequence[tuple[Reading, Reading]]) -> dict[str, Any]:
    cells = Counter(
        (one.positive, other.positive)
        for one, other in pairs
        if one.positive is not None and other.positive is not None
    )
    n = sum(cells.values())
    same = cells[True, True] + cells[False, False]
    return {
        "pairs": n, "both": cells[True, True], "neither": cells[False, False],
        "only_this": cells[True, False], "only_live": cells[False, True],
        **{k: v for k, v in _share(same, n).items() if k in ("rate", "low", "high")},
        "kappa": _kappa(cells, n),
    }  # fmt: skip


def _kappa(cells: Counter[tuple[bool, bool]], n: int) -> float | None:
    """Cohen's kappa; None where both always say the same one thing, which tells nothing."""
    if n == 0:
        return None
    mine = cells[True, True] + cells[True, False]
    theirs = cells[True, True] + cells[False, True]
    chance = (mine * theirs + (n - mine) * (n - theirs)) / (n * n)
    if chance >= 1:
        return None
    return round(((cells[True, True] + cells[False, False]) / n - chance) / (1 - chance), 4)


def _differences(pairs: Sequence[tuple[Reading, Reading]]) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = defaultdict(list)
    for one, other in pairs:
        for what in one.measures.keys() & other.measures.keys():
            found[what].append(one.measures[what] - other.measures[what])
    rows = []
    for what, values in sorted(found.items()):
        row: dict[str, Any] = {"what": what, "pairs": len(values)}
        row["mean_difference"] = round(statistics.fmean(values), 4)
        if len(values) > 1:
            half = 1.96 * statistics.stdev(values)
            row["low"] = round(row["mean_difference"] - half, 4)
            row["high"] = round(row["mean_difference"] + half, 4)
        rows.append(row)
    return rows


def _groups(told: Sequence[Reading]) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    for by in sorted({by for one in told for by in one.groups}):
        cells: dict[str, list[bool]] = defaultdict(list)
        for one in told:
            cells[one.groups.get(by, "unknown")].append(one.positive is True)
        hidden = {name for name, said in cells.items() if len(said) < LEAST}
        shown = sorted(cells.keys() - hidden, key=lambda name: (len(cells[name]), name))
        while hidden and shown and not _enough([len(cells[name]) for name in hidden]):
            hidden.add(shown.pop(0))
        tables[by] = [
            {"group": name, "few": True}
            if name in hidden
            else {"group": name, **_share(sum(cells[name]), len(cells[name]))}
            for name in sorted(cells)
        ]
    return tables


def _enough(hidden: Sequence[int]) -> bool:
    """Whether the total minus what is shown tells of no few: of several groups, and not small."""
    return len(hidden) > 1 and sum(hidden) >= LEAST
