"""Steps, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.errors import RunFailed
from models.masks import back
from models.preprocess import Image, apply, from_volume, onto, tensor
from models.volume import Volume


def volume(shape: tuple[int, ...] = (4, 6, 8), affine: Any = None, **more: Any) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    if affine is None:
        affine = np.array([[0, 0, 0.5, 1], [0, 2.0, 0, 2], [3.0, 0, 0, 3], [0, 0, 0, 1]])
    rest = {
        "frames": tuple(f"1.{i}" for i in range(shape[0])), "spacing": (3.0, 2.0, 0.5),
        "modality": "CT", "photometric": "MONOCHROME2", "rescaled": True,
        "window": (40.0, 400.0), "frame_of_reference": "1.9",
    }  # fmt: skip
    return Volume(array=array, affine=affine, **{**rest, **more})


def image(flat: bool = False, **more: Any) -> Image:
    return from_volume(volume(**more), flat=flat)


def test_axes_of_the_layouts() -> None:
    start = image()
    assert start.array.shape == (1, 8, 6, 4)
    assert tensor(start, "NCXYZ").shape == (1, 1, 8, 6, 4)
    assert np.array_equal(tensor(start, "NCDHW")[0, 0], volume().array)
    assert np.array_equal(tensor(start, "NCHW")[:, 0], volume().array)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "LIA", "PIR", "SLP"])
def test_orientation_points_where_it_says(codes: str) -> None:
    out = apply(image(), [{"op": "Orientation", "axcodes": codes}])
    towards = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    for axis, code in enumerate(codes):
        world, sign = towards[code]
        assert np.sign(out.affine[world, axis]) == sign
    back = np.linalg.inv(image().affine) @ out.affine @ [0, 0, 0, 1]
    x, y, z = np.rint(back[:3]).astype(int)
    assert out.array[0, 0, 0, 0] == image().array[0, x, y, z]


def test_spacing_keeps_places_and_values() -> None:
    ramp = image()
    out = apply(ramp, [{"op": "Spacing", "pixdim": [1, 1, 1.5]}])
    assert np.allclose(np.linalg.norm(out.affine[:3, :3], axis=0), [1, 1, 1.5])
    assert out.array.shape[1:] == (4, 11, 7)  # 4.5 is rounded to the even number, as MONAI does
    assert np.allclose(out.affine[:3, 3], ramp.affine[:3, 3])
    assert out.array[0, 1, 1, 1] == pytest.approx(
        (ramp.array[0, 2, 0, 0] + ramp.array[0, 2, 1, 0] + ramp.array[0, 2, 0, 1]
         + ramp.array[0, 2, 1, 1]) / 4)  # fmt: skip


def test_pad_and_crop_are_centred() -> None:
    out = apply(image(), [{"op": "ResizeWithPadOrCrop", "spatial_size": [10, 4, 4]}])
    assert out.array.shape == (1, 10, 4, 4)
    assert np.array_equal(out.array[:, 1:9], image().array[:, :, 1:5])
    assert not out.array[:, 0].any()
    pad = apply(image(), [{"op": "SpatialPad", "spatial_size": [10, 2, 4], "value": -1}])
    assert pad.array.shape == (1, 10, 6, 4)
    assert (pad.array[:, 0] == -1).all()


def test_two_sizes_mean_rows_and_columns() -> None:
    out = apply(image(flat=True), [{"op": "Resize", "spatial_size": [3, 4]}])
    assert out.array.shape == (1, 4, 3, 4)
    assert tensor(out, "NCHW").shape == (4, 1, 3, 4)
    with pytest.raises(RunFailed, match="three sizes"):
        apply(image(), [{"op": "Resize", "spatial_size": [3, 4]}])


def test_keep_ratio_and_antialias() -> None:
    step = {"op": "Resize", "spatial_size": [3, 3], "keep_ratio": True, "anti_alias": True}
    assert apply(image(flat=True), [step]).array.shape == (1, 3, 2, 4)


def test_intensity_steps() -> None:
    scale = {"b_min": 0, "b_max": 1, "clip": True}
    full = apply(image(), [{"op": "ScaleIntensityRange", "a_min": 0, "a_max": 100, **scale}])
    assert full.array.max() == 1
    assert full.array[0, 1, 0, 0] == pytest.approx(0.01)
    x = image().array
    parts = apply(
        image(), [{"op": "ScaleIntensityRangePercentiles", "lower": 10, "upper": 90, **scale}]
    )
    low, high = np.percentile(x, [10, 90])
    assert np.allclose(parts.array, np.clip((x - low) / (high - low), 0, 1), atol=1e-6)
    normal = apply(image(), [{"op": "NormalizeIntensity"}])
    assert normal.array.mean() == pytest.approx(0, abs=1e-5)
    assert normal.array.std() == pytest.approx(1, abs=1e-5)
    fixed = apply(image(), [{"op": "ToRGB"}, {"op": "NormalizeIntensity", "mean": [1, 2, 3],
                                              "std": [1, 2, 4]}])  # fmt: skip
    assert np.allclose(fixed.array[2], (x[0] - 3) / 4)


def test_slices_stand_alone_when_flat() -> None:
    scale = {"b_min": 0, "b_max": 1, "clip": False, "lower": 0, "upper": 100}
    out = apply(image(flat=True), [{"op": "ScaleIntensityRangePercentiles", **scale}])
    assert np.allclose(out.array.max(axis=(0, 1, 2)), 1)


def test_window_monochrome_cast_and_hounsfield() -> None:
    step = {"op": "VOI", "center": 50, "width": 101, "function": "LINEAR"}
    assert apply(image(), [step]).array.max() == 1
    assert apply(image(), [{"op": "VOI", "from_header": True}]).array.min() == pytest.approx(
        (0 - 39.5) / 399 + 0.5
    )
    with pytest.raises(RunFailed, match="window"):
        apply(image(window=None), [{"op": "VOI", "from_header": True}])
    turned = apply(image(photometric="MONOCHROME1", flat=True), [{"op": "Monochrome"}])
    assert turned.array[0, 0, 0, 0] == 47
    assert apply(image(), [{"op": "Cast", "dtype": "uint8"}]).array.dtype == np.uint8
    with pytest.raises(RunFailed, match="Hounsfield"):
        apply(image(modality="MR"), [{"op": "Rescale", "to": "HU"}])
    with pytest.raises(RunFailed, match="Hounsfield"):
        apply(image(rescaled=False), [{"op": "Rescale", "to": "HU"}])


def test_foreground() -> None:
    start = image()
    array = np.zeros_like(start.array)
    array[0, 2:5, 1:3, 1] = 9
    out = apply(Image(array, start.affine, True, False, "CT", "", True, None),
                [{"op": "CropForeground", "margin": 1}])  # fmt: skip
    assert out.array.shape == (1, 5, 4, 3)
    assert np.allclose(out.affine @ [1, 1, 1, 1], start.affine @ [2, 1, 1, 1])


def test_colour_has_three_channels() -> None:
    colour = from_volume(volume((2, 4, 5, 3)), flat=True)
    assert colour.array.shape == (3, 5, 4, 2)
    with pytest.raises(RunFailed, match="colour"):
        apply(colour, [{"op": "Monochrome"}])


def test_a_second_series_lands_on_the_first() -> None:
    first = image()
    shifted = volume().affine
    assert shifted is not None
    moved = shifted.copy()
    moved[2, 3] += 3.0
    second = onto(from_volume(volume(affine=moved), flat=False), first)
    assert np.allclose(second.array[..., 1:], first.array[..., :-1])


@settings(max_examples=25, deadline=None)
@example(turn=0.0, size=(11, 14, 14), codes="LIA", pixdim=0.4)
@given(
    turn=st.floats(-0.4, 0.4), size=st.tuples(*[st.integers(6, 14)] * 3),
    codes=st.sampled_from(["LIA", "RAS", "LPS", "PSR"]),
    pixdim=st.floats(0.3, 0.4),  # a corner keeps (1 - pixdim / 2)³ ≥ 0.5 of its value
)  # fmt: skip
def test_a_mask_comes_back_to_where_it_was_seen(
    turn: float, size: tuple[int, int, int], codes: str, pixdim: float
) -> None:
    """What a model marks above a threshold lies, on the source grid, where the source is above."""
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [-s, c, 0], [c, s, 0]])
    source = from_volume(volume(size, affine), flat=False)
    blob = np.zeros_like(source.array)
    blob[0, 1:-1, 2:-1, 1:-2] = 1
    source = Image(blob, source.affine, True, False, "CT", "", True, None)
    steps = [{"op": "Orientation", "axcodes": codes}, {"op": "Spacing", "pixdim": [pixdim] * 3},
             {"op": "ResizeWithPadOrCrop", "spatial_size": [64, 64, 64]}]  # fmt: skip
    eaten = apply(source, steps)
    found = back((eaten.array[0] >= 0.5).astype(np.uint16), eaten, source)
    assert np.array_equal(found, np.transpose(blob[0], (2, 1, 0)).astype(np.uint16))
