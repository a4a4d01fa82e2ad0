"""Frames of an enhanced multi-frame image stand in any order; the SEG lies where they are."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import EnhancedCTImageStorage

from bridge.report import check, seg
from models import sandbox
from models.package import load
from models.sandbox import Limits

TESTS = Path(__file__).parents[1]
made = SimpleNamespace(**runpy.run_path(str(TESTS / "reporting.py")))
LIMITS = Limits(memory_mb=2048, timeout_s=60)
CHANGE = {
    "network_data_format": {"inputs": {"x": {"modality": "CT"}}},
    "deployment": {"input": {
        "sop_classes": [EnhancedCTImageStorage], "max_slice_gap_mm": 20,
    }},
}  # fmt: skip


def turned_round(source: Path, target: Path) -> Path:
    """The same image with its frames stored the other way round."""
    ds = pydicom.dcmread(source)
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[::-1]).tobytes()
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[::-1]
    ds.save_as(target)
    return target


def by_position(package: Any, path: Path, work: Path) -> dict[tuple[float, ...], np.ndarray]:
    """Run, compose the SEG, and give its mask by the position of each of its frames."""
    outcome = sandbox.run(package=package, roles={"image": [path]}, work=work, limits=LIMITS)
    assert outcome.mask_path is not None
    mask = np.load(outcome.mask_path, allow_pickle=False)["mask"]
    header = pydicom.dcmread(path, stop_before_pixels=True)
    naming = made.naming(f"frames {work.name}")
    composed = seg.compose(outcome.findings, mask, [header], made.MODEL, made.GATEWAY, naming)
    assert check.faults(composed, [header]) == []
    frames = composed.pixel_array.reshape(-1, composed.Rows, composed.Columns)
    found = {}
    for frame, groups in zip(frames, composed.PerFrameFunctionalGroupsSequence, strict=True):
        place = tuple(float(v) for v in groups.PlanePositionSequence[0].ImagePositionPatient)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(source.ReferencedFrameNumber)
        there = header.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0]
        assert tuple(map(float, there.ImagePositionPatient)) == place
        found[place] = frame
    return found


@pytest.mark.peer
def test_frames_that_are_stored_in_another_order(
    shared: Path, tmp_path: Path, workbench: Any
) -> None:
    package = load(workbench.write_package(tmp_path / "pkg", CHANGE))
    source = shared / "corpus/dev/multiframe/eCT_Supplemental.dcm"
    first = by_position(package, source, tmp_path / "as it is")
    other = turned_round(source, tmp_path / "turned.dcm")
    second = by_position(package, other, tmp_path / "turned")
    assert len(first) == 2
    assert first.keys() == second.keys()
    for place, frame in first.items():
        assert frame.any()
        assert np.array_equal(frame, second[place]), f"the mask at {place} is of another slice"
    (one, two) = first.values()
    assert not np.array_equal(one, two), "equal slices would prove nothing"
