"""What a score means: the activation that makes it 0..1, and the operating point that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import RunFailed

__all__ = ["Point", "activated", "limits", "point", "shares", "urgent"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Point:
    """The threshold in use; `name` is None where the manifest gives a bare threshold."""

    threshold: float
    name: str | None = None
    sensitivity: float | None = None
    specificity: float | None = None

    def parameter(self, tensor: str) -> str:
        """Spell it as an algorithm parameter of a report."""
        said = [f"threshold={self.threshold:g}"]
        if self.name is not None:
            said.insert(0, f"operating_point={self.name}")
        for word in ("sensitivity", "specificity"):
            value = getattr(self, word)
            if value is not None:
                said.append(f"{word}={value:g}")
        return f"{tensor}: {', '.join(said)}"


def point(output: Mapping[str, Any]) -> Point:
    """Give an output's operating point: the one marked default, else the first, else 0.5."""
    points = output.get("operating_points", [])
    chosen = next((p for p in points if p.get("default")), points[0] if points else None)
    if chosen is None:
        return Point(float(output.get("threshold", 0.5)))
    return Point(
        float(chosen["threshold"]), str(chosen["name"]), chosen.get("sensitivity"),
        chosen.get("specificity"),
    )  # fmt: skip


def limits(output: Mapping[str, Any]) -> dict[int, float]:
    """Give the threshold of each label's index: its own, else that of the operating point."""
    usual = point(output).threshold
    return {
        int(label["index"]): float(label.get("threshold", usual))
        for label in output.get("labels", [])
    }


def urgent(output: Mapping[str, Any], scores: Mapping[str, float]) -> bool | None:
    """Whether an output's triage rule holds, by the score of each label; None without a rule.

    A label without a score has none: nothing of it was found.
    """
    rule = output.get("triage")
    if rule is None:
        return None
    label, above = rule["priority_when"]["label"], rule["priority_when"]["above"]
    points = {p["name"]: p["threshold"] for p in output.get("operating_points", [])}
    limit = float(points[above] if isinstance(above, str) else above)
    return scores.get(label, -1.0) >= limit


def activated(tensor: Array, output: Mapping[str, Any], axis: int) -> Array:
    """Apply the output's activation: sigmoid, softmax along `axis`, or none."""
    activation = output.get("activation", "none")
    if activation == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-tensor.astype(np.float64))))
    if activation == "softmax":
        e = np.exp(tensor.astype(np.float64) - tensor.max(axis=axis, keepdims=True))
        return np.asarray(e / e.sum(axis=axis, keepdims=True))
    return tensor


def shares(tensor: Array, output: Mapping[str, Any], axis: int) -> Array:
    """Do the same, and raise RunFailed("bad_output") where a score lies outside 0..1."""
    found = activated(tensor, output, axis)
    if found.size and not 0 <= float(found.min()) <= float(found.max()) <= 1:
        raise RunFailed("bad_output", f"{output['tensor']} holds a score outside 0..1")
    return found
