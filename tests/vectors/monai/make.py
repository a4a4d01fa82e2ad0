"""Write the vectors anew: python tests/vectors/monai/make.py (see SOURCE.md; needs monai, torch).

Nothing of radseal is imported: what stands in the files is MONAI's answer alone.
"""

import json
from pathlib import Path

import numpy as np
import torch
from monai import transforms as mt
from monai.data import MetaTensor

HERE = Path(__file__).resolve().parent
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # MONAI's affines are RAS, radseal's LPS


def straight():
    return np.array(
        [[0.7, 0, 0, -12.5], [0, 0.7, 0, 31.25], [0, 0, 2.5, -100.5], [0, 0, 0, 1.0]]
    )


def turned(alpha, beta, zooms):
    """Orthogonal columns, oblique to the patient."""
    c, s, d, t = np.cos(alpha), np.sin(alpha), np.cos(beta), np.sin(beta)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, d, -t], [0, t, d]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(zooms)
    affine[:3, 3] = [3.5, -7.25, 11.0]
    return affine


def coronal():
    return np.array([[1.0, 0, 0, 5], [0, 0, 2.0, -4], [0, -1.0, 0, 9], [0, 0, 0, 1.0]])


PLAIN, OBLIQUE = straight(), turned(0.35, -0.5, (0.8, 1.1, 3.0))
HARD = turned(0.79, 0.6, (0.5, 0.9, 2.0))
SCALE = {"b_min": -1.0, "b_max": 2.0}


def cases():
    """Yield name, our step, MONAI's transform, kind of input, affine, tolerance."""
    space = (("bilinear", 1e-4), ("nearest", 0.0))
    for codes in ("RAS", "LIA", "SLP"):
        for name, affine in (("straight", PLAIN), ("oblique", OBLIQUE), ("hard", HARD),
                             ("coronal", coronal())):  # fmt: skip
            yield (f"Orientation {codes} {name}", {"op": "Orientation", "axcodes": codes},
                   mt.Orientation(codes), "volume", affine, 0.0)  # fmt: skip
    for mode, tol in space:
        for name, affine, pixdim in (
            ("anisotropic", PLAIN, [1.3, 0.9, 1.7]), ("oblique", OBLIQUE, [1.25, 0.7, 1.9]),
            ("half", coronal(), [2.0, 1.6, 3.0]), ("same", PLAIN, [0.7, 0.7, 2.5]),
            ("round", np.diag([1.0, 1.0, 1.0, 1.0]), [2.0, 4.0, 1.3]),
        ):  # fmt: skip
            yield (f"Spacing {mode} {name}", {"op": "Spacing", "pixdim": pixdim, "mode": mode},
                   mt.Spacing(pixdim, mode=mode), "volume", affine, tol)  # fmt: skip
    for mode, ours in (("trilinear", "bilinear"), ("nearest", "nearest"),
                       ("nearest-exact", "nearest-exact"), ("area", "area")):  # fmt: skip
        for size in ([5, 4, 9], [9, 12, 7], [3, 14, 4], [1, 8, 8]):
            for smooth in (False, True):
                step = {"op": "Resize", "spatial_size": size, "mode": ours, "anti_alias": smooth}
                tall = "x".join(map(str, size))
                yield (f"Resize {ours} {tall}{' anti_alias' if smooth else ''}", step,
                       mt.Resize(size, mode=mode, anti_aliasing=smooth), "volume", OBLIQUE,
                       0.0 if "nearest" in ours and not smooth else 2e-4)  # fmt: skip
    yield ("Resize keep_ratio", {"op": "Resize", "spatial_size": [6, 6, 6], "keep_ratio": True},
           mt.Resize(6, size_mode="longest", mode="trilinear"), "volume", PLAIN, 2e-4)  # fmt: skip
    yield ("Resize flat", {"op": "Resize", "spatial_size": [5, 14], "mode": "bilinear"},
           mt.Resize([14, 5], mode="bilinear"), "flat", None, 2e-4)  # fmt: skip
    yield ("Resize flat anti_alias", {"op": "Resize", "spatial_size": [5, 4], "anti_alias": True},
           mt.Resize([4, 5], mode="bilinear", anti_aliasing=True), "flat", None, 2e-4)  # fmt: skip
    for size in ([16, 5, 6], [3, 16, 9], [7, 8, 9]):
        tall = "x".join(map(str, size))
        yield (f"ResizeWithPadOrCrop {tall}",
               {"op": "ResizeWithPadOrCrop", "spatial_size": size, "value": -3.0},
               mt.ResizeWithPadOrCrop(size, value=-3.0), "volume", OBLIQUE, 0.0)  # fmt: skip
        yield (f"SpatialPad {tall}", {"op": "SpatialPad", "spatial_size": size, "value": 2.0},
               mt.SpatialPad(size, value=2.0), "volume", OBLIQUE, 0.0)  # fmt: skip
        yield (f"CenterSpatialCrop {tall}", {"op": "CenterSpatialCrop", "roi_size": size},
               mt.CenterSpatialCrop(size), "volume", OBLIQUE, 0.0)  # fmt: skip
    for margin in (0, 1, 3):
        for smaller in (False, True):
            yield (f"CropForeground margin {margin}{' allow_smaller' if smaller else ''}",
                   {"op": "CropForeground", "margin": margin, "allow_smaller": smaller},
                   mt.CropForeground(margin=margin, allow_smaller=smaller), "blob", PLAIN, 0.0
                   )  # fmt: skip
    yield ("CropForeground threshold", {"op": "CropForeground", "threshold": 80.0},
           mt.CropForeground(select_fn=lambda x: x > 80.0), "volume", PLAIN, 0.0)  # fmt: skip
    for clip in (False, True):
        yield (f"ScaleIntensityRange clip {clip}",
               {"op": "ScaleIntensityRange", "a_min": -50, "a_max": 60, "clip": clip, **SCALE},
               mt.ScaleIntensityRange(-50, 60, **SCALE, clip=clip), "volume", PLAIN, 1e-5
               )  # fmt: skip
        yield (f"ScaleIntensityRange one value clip {clip}",
               {"op": "ScaleIntensityRange", "a_min": 5, "a_max": 5, "clip": clip, **SCALE},
               mt.ScaleIntensityRange(5, 5, **SCALE, clip=clip), "volume", PLAIN, 1e-5
               )  # fmt: skip
        for wise in (False, True):
            yield (f"ScaleIntensityRangePercentiles clip {clip} channel_wise {wise}",
                   {"op": "ScaleIntensityRangePercentiles", "lower": 3, "upper": 97.5,
                    "clip": clip, "channel_wise": wise, **SCALE},
                   mt.ScaleIntensityRangePercentiles(3, 97.5, **SCALE, clip=clip,
                                                     channel_wise=wise),
                   "volume", PLAIN, 1e-5)  # fmt: skip
    yield ("ScaleIntensityRangePercentiles one value",
           {"op": "ScaleIntensityRangePercentiles", "lower": 1, "upper": 99, "clip": True, **SCALE},
           mt.ScaleIntensityRangePercentiles(1, 99, **SCALE, clip=True), "constant", PLAIN, 1e-5
           )  # fmt: skip
    for wise in (False, True):
        for kind in ("volume", "constant"):
            yield (f"ScaleIntensity channel_wise {wise} {kind}",
                   {"op": "ScaleIntensity", "minv": -2.0, "maxv": 5.0, "channel_wise": wise},
                   mt.ScaleIntensity(-2.0, 5.0, channel_wise=wise), kind, PLAIN, 1e-5)  # fmt: skip
        for nonzero in (False, True):
            for kind in ("blob", "volume", "constant", "empty"):
                yield (f"NormalizeIntensity nonzero {nonzero} channel_wise {wise} {kind}",
                       {"op": "NormalizeIntensity", "nonzero": nonzero, "channel_wise": wise},
                       mt.NormalizeIntensity(nonzero=nonzero, channel_wise=wise), kind, PLAIN,
                       1e-5)  # fmt: skip
    yield ("ScaleIntensity defaults", {"op": "ScaleIntensity"}, mt.ScaleIntensity(), "volume",
           PLAIN, 1e-5)  # fmt: skip
    yield ("NormalizeIntensity mean and std",
           {"op": "NormalizeIntensity", "mean": [3.0, -1.5], "std": [2.0, 0.25]},
           mt.NormalizeIntensity([3.0, -1.5], [2.0, 0.25], channel_wise=True), "volume", PLAIN,
           1e-5)  # fmt: skip
    yield ("NormalizeIntensity mean alone", {"op": "NormalizeIntensity", "mean": 12.0},
           mt.NormalizeIntensity(12.0), "volume", PLAIN, 1e-5)  # fmt: skip
    yield ("NormalizeIntensity std alone nonzero",
           {"op": "NormalizeIntensity", "std": 12.0, "nonzero": True},
           mt.NormalizeIntensity(None, 12.0, nonzero=True), "blob", PLAIN, 1e-5)  # fmt: skip
    yield ("ToRGB", {"op": "ToRGB"}, mt.RepeatChannel(3), "grey", PLAIN, 0.0)
    yield ("Cast float16", {"op": "Cast", "dtype": "float16"}, mt.CastToType(torch.float16),
           "volume", PLAIN, 0.0)  # fmt: skip
    yield ("Cast int16 of whole numbers", {"op": "Cast", "dtype": "int16"},
           mt.CastToType(torch.int16), "whole", PLAIN, 0.0)  # fmt: skip


def inputs():
    rng = np.random.default_rng(20261201)
    volume = rng.normal(10, 60, (2, 7, 9, 8)).astype(np.float32)
    blob = np.zeros_like(volume)
    blob[:, 2:6, 1:5, 3:7] = np.abs(volume[:, 2:6, 1:5, 3:7]) + 1
    return {
        "volume": volume, "blob": blob, "grey": volume[:1], "whole": np.rint(volume),
        "constant": np.full((2, 3, 4, 2), 7.5, np.float32),
        "empty": np.zeros((1, 3, 4, 2), np.float32),
        "flat": rng.normal(0, 9, (1, 11, 10, 3)).astype(np.float32),
    }  # fmt: skip


def main():
    given, listed, arrays = inputs(), [], {}
    arrays |= {f"in/{name}": array for name, array in given.items()}
    for name, step, transform, kind, affine, tolerance in cases():
        entry = {"name": name, "step": step, "input": kind, "tolerance": tolerance}
        if kind == "flat":  # each image alone, as MONAI sees a 2-D image
            whole = given[kind]
            out = np.stack([np.asarray(transform(torch.as_tensor(whole[..., k])))
                            for k in range(whole.shape[3])], axis=3)  # fmt: skip
            arrays[f"out/{name}"] = out
        else:
            made = transform(MetaTensor(torch.as_tensor(given[kind]).clone(), affine=FLIP @ affine))
            arrays[f"out/{name}"] = np.asarray(made.array if hasattr(made, "array") else made)
            entry["affine"] = affine.tolist()
            entry["expected_affine"] = (FLIP @ np.asarray(made.affine)).tolist()
        listed.append(entry)
    np.savez_compressed(HERE / "vectors.npz", **arrays)
    text = "[\n" + ",\n".join(json.dumps(e) for e in listed) + "\n]\n"
    (HERE / "cases.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
