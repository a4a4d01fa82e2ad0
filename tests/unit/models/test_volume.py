"""Geometry: what is stacked, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from models import decode
from models.errors import RunFailed
from models.volume import load

STORED = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6)


def test_sorted_scaled_and_placed(make_series: Callable[..., list[Path]]) -> None:
    volume = load(make_series(STORED))
    assert np.array_equal(volume.array, STORED.astype(np.float32) - 1024)
    assert volume.frames == tuple(f"2.25.10{i}" for i in range(5))
    assert volume.spacing == (3.0, 2.0, 0.5)
    assert volume.affine is not None
    assert np.allclose(volume.affine @ [2, 3, 4, 1], [-10 + 4 * 0.5, -20 + 3 * 2.0, 6, 1])
    assert volume.voxel_mm3 == pytest.approx(3.0)


def test_slope_of_each_slice(make_series: Callable[..., list[Path]]) -> None:
    def edit(index: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = index + 1, 0

    volume = load(make_series(STORED, edit))
    assert np.array_equal(volume.array[4], STORED[4] * 5.0)


def test_oblique_and_sheared(make_series: Callable[..., list[Path]]) -> None:
    turn = np.deg2rad(20)
    row, col = [1, 0, 0], [0, np.cos(turn), np.sin(turn)]

    def oblique(index: int, ds: Dataset) -> None:
        normal = np.cross(row, col)
        ds.ImageOrientationPatient = [round(float(v), 8) for v in (*row, *col)]
        ds.ImagePositionPatient = [round(float(v), 6) for v in normal * 3 * index]

    assert load(make_series(STORED, oblique, "a")).voxel_mm3 == pytest.approx(3.0, rel=1e-4)

    def tilted(index: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 1.0 * index, 3.0 * index]

    sheared = load(make_series(STORED, tilted, "b"))
    assert sheared.affine is not None
    assert np.allclose(sheared.affine[:3, 0], [0, 1, 3])
    assert sheared.voxel_mm3 == pytest.approx(3.0)


def _set(keyword: str, value: Any, only: int | None = None) -> Callable[[int, Dataset], None]:
    def edit(index: int, ds: Dataset) -> None:
        if only is None or index == only:
            setattr(ds, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (_set("ImagePositionPatient", [-10, -20, 3], 2), "bad_geometry", "same place"),
        (_set("ImagePositionPatient", [-10, -20, 99], 4), "bad_geometry", "not evenly spaced"),
        (_set("ImagePositionPatient", [40, -20, 6], 2), "bad_geometry", "straight line"),
        (_set("PixelSpacing", [0, 0]), "bad_geometry", "not positive"),
        (_set("PixelSpacing", [-1, 1]), "bad_geometry", "not positive"),
        (_set("PixelSpacing", [1, 1], 3), "bad_geometry", "differ in orientation or pixel"),
        (_set("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "bad_geometry", "perpendicular"),
        (_set("ImageOrientationPatient", [1, 0, 0, 0, 0, 1], 1), "bad_geometry", "differ"),
        (_set("FrameOfReferenceUID", "1.9", 1), "bad_geometry", "FrameOfReferenceUID"),
        (_set("RescaleSlope", 0, 1), "bad_pixels", "RescaleSlope"),
    ],
)
def test_impossible_stacks(
    make_series: Callable[..., list[Path]], edit: Any, code: str, words: str
) -> None:
    with pytest.raises(RunFailed, match=words) as failed:
        load(make_series(STORED, edit))
    assert failed.value.code == code


def test_the_manifest_bounds_gaps(make_series: Callable[..., list[Path]]) -> None:
    paths = make_series(STORED)
    with pytest.raises(RunFailed, match=r"3.00 mm apart, allowed are 2 mm"):
        load(paths, {"max_slice_gap_mm": 2.0})
    assert load(paths, {"max_slice_gap_mm": 3.5}).frames


def test_a_gap_as_wide_as_allowed_is_not_too_wide(make_series: Callable[..., list[Path]]) -> None:
    """Of an oblique stack, whose gaps are never exactly what its positions were made with."""
    turn = np.radians(17)

    def edit(index: int, ds: Dataset) -> None:
        away = 3.0 * index
        ds.ImageOrientationPatient = [1, 0, 0, 0, float(np.cos(turn)), float(np.sin(turn))]
        ds.ImagePositionPatient = [
            -10.0,
            round(-20 - away * float(np.sin(turn)), 4),
            round(away * float(np.cos(turn)), 4),
        ]

    paths = make_series(STORED, edit)
    assert load(paths, {"max_slice_gap_mm": 3.0}).frames
    with pytest.raises(RunFailed, match=r"3.00 mm apart, allowed are 2.99 mm"):
        load(paths, {"max_slice_gap_mm": 2.99})


def test_a_missing_slice_is_counted(make_series: Callable[..., list[Path]]) -> None:
    paths = [p for p in make_series(STORED) if p.name != "2.dcm"]
    with pytest.raises(RunFailed, match="1 missing"):
        load(paths)


def test_projections_have_no_geometry(make_series: Callable[..., list[Path]]) -> None:
    def edit(index: int, ds: Dataset) -> None:
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
        ds.InstanceNumber = 5 - index

    volume = load(make_series(STORED, edit))
    assert volume.affine is None
    assert volume.voxel_mm3 is None
    assert volume.frames[0] == "2.25.104"


def test_enhanced_multi_frame(make_series: Callable[..., list[Path]]) -> None:
    def edit(_index: int, ds: Dataset) -> None:
        ds.NumberOfFrames, ds.Rows, ds.Columns = 3, 4, 6
        ds.PixelData = STORED[:3].tobytes()
        del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing
        del ds.RescaleSlope, ds.RescaleIntercept
        shared, turn, size, scale = Dataset(), Dataset(), Dataset(), Dataset()
        turn.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        size.PixelSpacing = [1, 1]
        scale.RescaleSlope, scale.RescaleIntercept = 2, 0
        shared.PlaneOrientationSequence = [turn]
        shared.PixelMeasuresSequence = [size]
        shared.PixelValueTransformationSequence = [scale]
        ds.SharedFunctionalGroupsSequence = [shared]
        frames = []
        for z in (4.0, 0.0, 2.0):
            place, frame = Dataset(), Dataset()
            place.ImagePositionPatient = [0, 0, z]
            frame.PlanePositionSequence = [place]
            frames.append(frame)
        ds.PerFrameFunctionalGroupsSequence = frames

    volume = load(make_series(STORED[:1], edit))
    assert volume.frames == ("2.25.100",) * 3
    assert np.array_equal(volume.array, STORED[[1, 2, 0]] * 2.0)
    assert volume.spacing == (2.0, 1.0, 1.0)
    assert volume.stored == (1, 2, 0)


def test_bits_above_the_high_bit_are_not_pixels(make_series: Callable[..., list[Path]]) -> None:
    def edit(_index: int, ds: Dataset) -> None:
        ds.PixelData = (STORED[0] | 0xF000).astype("<u2").tobytes()

    (path,) = make_series(STORED[:1], edit)
    assert np.array_equal(decode.decode(decode.read_header(path))[0][0], STORED[0])


def test_the_digest_does_not_see_the_encoding(make_series: Callable[..., list[Path]]) -> None:
    def rle(_index: int, ds: Dataset) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)

    (raw,), (packed,) = make_series(STORED[:1], name="a"), make_series(STORED[:1], rle, "b")
    first = decode.decode(decode.read_header(raw))
    second = decode.decode(decode.read_header(packed))
    assert decode.pixel_sha256(first[0]) == decode.pixel_sha256(second[0])
    assert first[1] == "native"
    assert second[1].startswith("pylibjpeg-rle ")


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (_set("Rows", 60000), "undecodable"),
        (_set("NumberOfFrames", 1_000_000_000), "memory"),
        (_set("BitsAllocated", 7), "undecodable"),
        (lambda _i, ds: delattr(ds, "PixelData"), "undecodable"),
        (lambda _i, ds: delattr(ds, "Columns"), "undecodable"),
    ],
)
def test_lying_headers(
    make_series: Callable[..., list[Path]], edit: Callable[[int, Dataset], None], code: str
) -> None:
    (path,) = make_series(STORED[:1], edit)
    with pytest.raises(RunFailed) as failed:
        decode.decode(decode.read_header(path))
    assert failed.value.code == code


def test_what_is_no_dicom(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello" * 100)
    with pytest.raises(RunFailed, match="not readable"):
        decode.read_header(path)
