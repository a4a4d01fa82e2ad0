"""models.decoded: what two routes share on the disk, and neither spoils for the other."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from models import decoded, tasks


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.dcm"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def first(tmp_path: Path, image: Path) -> Path:
    """Give the folder of a route that decoded the image."""
    work = tmp_path / "first"
    (work / decoded.PIXELS).mkdir(parents=True)
    (work / decoded.PIXELS / "0.npy").write_bytes(b"its pixels")
    decoded.note([image], work, {"input_digest": "d"})
    return work


def _decode_into(work: Path) -> None:
    """Write as the child does that decodes."""
    (work / decoded.PIXELS).mkdir(parents=True, exist_ok=True)
    (work / decoded.PIXELS / "0.npy").write_bytes(b"others")


def test_a_second_route_links_what_the_first_decoded(image: Path, first: Path, tmp_path: Path):
    second = tmp_path / "second"
    second.mkdir()
    assert decoded.take([image], second, [first]) == {"input_digest": "d"}
    ours, theirs = (work / decoded.PIXELS / "0.npy" for work in (second, first))
    assert os.path.samefile(ours, theirs)


def test_files_that_changed_are_decoded_anew_beside_the_shared_pixels(
    image: Path, first: Path, tmp_path: Path
):
    second = tmp_path / "second"
    second.mkdir()
    decoded.take([image], second, [first])
    image.write_bytes(b"another")
    assert decoded.take([image], second, [first]) is None
    _decode_into(second)
    assert (first / decoded.PIXELS / "0.npy").read_bytes() == b"its pixels"


@pytest.mark.fault
def test_a_full_disk_between_the_links_and_their_note_spoils_nothing(
    image: Path, first: Path, tmp_path: Path
):
    second = tmp_path / "second"
    second.mkdir()
    full = OSError(errno.ENOSPC, "full")
    with mock.patch.object(shutil, "copyfile", side_effect=full):
        assert decoded.take([image], second, [first]) is None
    _decode_into(second)
    assert (first / decoded.PIXELS / "0.npy").read_bytes() == b"its pixels"


def test_pixels_of_which_nothing_is_left_are_decoded_anew(image: Path, tmp_path: Path):
    info = image.stat()
    (tmp_path / "0.npy").write_bytes(b"")
    row = ["0.npy", "0" * 64, info.st_size, info.st_mtime_ns]
    (tmp_path / "index.json").write_text(json.dumps({str(image): row}))
    pixels = np.ones((1, 2, 2), np.uint8)
    with mock.patch.object(tasks.decode, "decode", return_value=(pixels, "x")):
        assert tasks._cached(str(tmp_path))(image, mock.sentinel.dataset) is pixels
