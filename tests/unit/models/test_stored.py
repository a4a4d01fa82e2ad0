"""models.stored: what was found in one multi-frame image, along its own frames."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from models.findings import Box, Code, Findings
from models.outputs import Result
from models.stored import in_stored_order

NODULE = Code("1", "99X", "Nodule")


def found(*, frames: tuple[str, ...]) -> Result:
    mask = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((3, 2, 2), np.uint8)
    box = Box(**{
        **dict.fromkeys(Box.__dataclass_fields__, 0), "finding": NODULE, "frame": 0, "score": 0.5,
    })  # fmt: skip
    findings = replace(Findings("segmentation", "said", frames), boxes=(box,))
    return Result(findings, mask)


def volume(frames: tuple[str, ...], stored: tuple[int, ...]) -> Any:
    return SimpleNamespace(frames=frames, stored=stored)


def test_mask_and_boxes_follow_the_frames_of_their_image() -> None:
    frames = ("a", "a", "a")
    result = in_stored_order(found(frames=frames), volume(frames, (1, 2, 0)))
    assert result.mask is not None
    assert result.mask[:, 0, 0].tolist() == [2, 0, 1]
    assert result.findings.boxes[0].frame == 1


def test_of_several_images_or_in_order_nothing_moves() -> None:
    for frames, stored in ((("a", "b", "c"), (0, 0, 0)), (("a", "a", "a"), (0, 1, 2))):
        before = found(frames=frames)
        assert in_stored_order(before, volume(frames, stored)) is before
