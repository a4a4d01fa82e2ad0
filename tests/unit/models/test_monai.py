"""Every step of the closed list against MONAI's recorded answer: values, dtype and affine."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.preprocess import STEPS, Image, apply

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "monai"
CASES = json.loads((VECTORS / "cases.json").read_text("utf-8"))
OURS_ALONE = {"Rescale", "Monochrome", "VOI"}  # DICOM's, not MONAI's


@cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(VECTORS / "vectors.npz", allow_pickle=False) as stored:
        return dict(stored)


def differences(case: dict[str, Any]) -> tuple[float, float]:
    """The greatest difference of a value and of an element of the affine."""
    flat = case["input"] == "flat"
    affine = np.array(case.get("affine", np.eye(4)))
    given = arrays()[f"in/{case['input']}"]
    start = Image(given.copy(), affine, not flat, flat, "CT", "MONOCHROME2", True, None)
    out, wanted = apply(start, [case["step"]]), arrays()[f"out/{case['name']}"]
    assert np.array_equal(start.array, given), "a step changed the array it was given"
    assert out.array.shape == wanted.shape
    assert out.array.dtype == wanted.dtype
    moved = 0.0
    if "expected_affine" in case:
        moved = float(np.abs(out.affine - np.array(case["expected_affine"])).max())
    apart = np.abs(out.array.astype(np.float64) - wanted.astype(np.float64))
    return float(apart.max(initial=0.0)), moved


@pytest.mark.parametrize("case", CASES, ids=[c["name"] for c in CASES])
def test_step_equals_monai(case: dict[str, Any]) -> None:
    value, moved = differences(case)
    assert value <= case["tolerance"]
    assert moved <= 1e-9


def test_the_table_holds_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    table: dict[str, list[float]] = {}
    for case in CASES:
        value, moved = differences(case)
        row = table.setdefault(case["step"]["op"], [0, 0.0, 0.0, 0.0])
        row[:] = [row[0] + 1, max(row[1], value), max(row[2], moved),
                  max(row[3], case["tolerance"])]  # fmt: skip
    with capsys.disabled():
        print(f"\n{'step':32}cases  max difference  affine    tolerance")
        for op, (count, value, moved, tolerance) in table.items():
            print(f"{op:32}{count:5}  {value:14.2g}  {moved:8.1g}  {tolerance:.0e}")
    assert set(table) == set(STEPS) - OURS_ALONE
