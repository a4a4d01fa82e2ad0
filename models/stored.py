"""What was found in one multi-frame image, in the order in which its frames are stored.

A volume is sorted by position, frames need not be: a SEG and a region refer to a frame by its
number in the image, so a mask in the volume's order would lie on the wrong slices.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.outputs import Result
from models.volume import Volume

__all__ = ["in_stored_order"]


def in_stored_order(result: Result, volume: Volume) -> Result:
    """Give the result with mask and boxes along the frames of the image that they are of.

    Of several images it stays: there `Findings.frames` names each. The heat map is for pictures
    in the volume's order, and stays, too.
    """
    alone = len(volume.frames) > 1 and len(set(volume.frames)) == 1
    if not alone or volume.stored == tuple(range(len(volume.stored))):
        return result
    mask = result.mask
    if mask is not None:
        # Slice i of the volume is frame stored[i]: the inverse of that permutation.
        mask = mask[np.argsort(volume.stored)]
    boxes = tuple(replace(b, frame=volume.stored[b.frame]) for b in result.findings.boxes)
    return replace(result, mask=mask, findings=replace(result.findings, boxes=boxes))
