"""A MONAI bundle's own words as a manifest of ours; what cannot be mapped is listed. Pure.

Of configs/inference.json only the names of known transforms with constant arguments are
read. Nothing is imported, no `_target_` made, no `$` or `@` expression evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from models import skeleton
from models.package import TODO, step_fault

__all__ = ["Imported", "kind_of", "mapped"]

_RENAMED: Final[dict[str, dict[str, str]]] = {
    "Orientation": {"axcodes": "axcodes"},
    "Spacing": {"pixdim": "pixdim", "mode": "mode"},
    "Resize": {"spatial_size": "spatial_size", "mode": "mode", "anti_aliasing": "anti_alias"},
    "ResizeWithPadOrCrop": {"spatial_size": "spatial_size", "value": "value"},
    "SpatialPad": {"spatial_size": "spatial_size", "value": "value"},
    "CropForeground": {"margin": "margin"},
    "ScaleIntensityRange": {k: k for k in ("a_min", "a_max", "b_min", "b_max", "clip")},
    "ScaleIntensityRangePercentiles": {
        k: k for k in ("lower", "upper", "b_min", "b_max", "clip")
    },
    "NormalizeIntensity": {"subtrahend": "mean", "divisor": "std", "nonzero": "nonzero"},
    "CastToType": {"dtype": "dtype"},
}  # fmt: skip
"""Transforms of MONAI that are steps of ours, and how their arguments are called here."""
_OP: Final = {"CastToType": "Cast"}
_OURS: Final = frozenset({
    "LoadImage", "EnsureChannelFirst", "AddChannel", "EnsureType", "ToTensor", "ToDevice",
})  # fmt: skip
"""What radseal does itself with every image."""
_SILENT: Final = frozenset({"_target_", "_disabled_", "_desc_", "_mode_", "keys",
                            "allow_missing_keys"})  # fmt: skip
_MODALITIES: Final = {"CT": "CT", "MR": "MR", "MRI": "MR", "CR": "CR", "DX": "DX", "MG": "MG",
                      "US": "US", "PT": "PT", "PET": "PT"}  # fmt: skip
_AFTER: Final = frozenset({"Activations", "AsDiscrete", "Invert", "SaveImage"})
_READ_FROM_INFERENCE: Final = frozenset({"preprocessing", "postprocessing"})


@dataclass(slots=True)
class Imported:
    """A manifest, and in sentences what of the bundle is not in it."""

    manifest: dict[str, Any]
    left: list[str] = field(default_factory=list)


def mapped(
    metadata: Mapping[str, Any], inference: Mapping[str, Any] | None, first: dict[str, Any]
) -> Imported:
    """Lay a bundle's words over `first`, a skeleton of its graph (`models.skeleton.manifest`)."""
    found = Imported(first)
    for key, value in metadata.items():
        if key in ("deployment", "$schema", "network_data_format"):
            continue
        known = isinstance(first.get(key), str)
        if isinstance(value, str) and value.strip():
            first[key] = value
        elif not known and not isinstance(value, str):
            first[key] = value  # MONAI's own keys stay where they are
        elif known:
            found.left.append(f"configs/metadata.json: {key} is no text")
    formats = metadata.get("network_data_format")
    _formats(formats if isinstance(formats, Mapping) else {}, found)
    if inference is None:
        found.left.append("there is no configs/inference.json: the steps are yours to write")
        return found
    _steps(inference, found)
    _after(inference, found)
    others = sorted(str(k)[:40] for k in inference if k not in _READ_FROM_INFERENCE)
    if others:
        found.left.append(f"configs/inference.json: not read: {', '.join(others[:40])}")
    return found


def kind_of(metadata: Mapping[str, Any]) -> str:
    """Guess what comes out, by the words of the task."""
    words = f"{metadata.get('task', '')} {metadata.get('description', '')}".casefold()
    return "classification" if "classif" in words and "segment" not in words else skeleton.KINDS[0]


def _formats(formats: Mapping[str, Any], found: Imported) -> None:
    """Take over network_data_format: the graph rules over dtype and channels."""
    ours = found.manifest["network_data_format"]
    for side in ("inputs", "outputs"):
        theirs = formats.get(side)
        said = [v for v in theirs.values() if isinstance(v, Mapping)] if isinstance(
            theirs, Mapping) else []  # fmt: skip
        if len(said) != len(ours[side]):
            found.left.append(
                f"network_data_format.{side}: the bundle names {len(said)} tensors, the graph has "
                f"{len(ours[side])}; only the graph's are written"
            )
            continue
        for (name, promise), words in zip(ours[side].items(), said, strict=True):
            for key in ("dtype", "num_channels"):
                if key in words and key in promise and words[key] != promise[key]:
                    found.left.append(
                        f"network_data_format.{side}.{name}.{key}: the bundle says "
                        f"{str(words[key])[:40]}, the graph {promise[key]}; the graph's is written"
                    )
            kept = {k: v for k, v in words.items() if k not in ("dtype", "num_channels")}
            promise.update({k: v for k, v in kept.items() if _fits(k, v)})
    _modality(found)
    _labels(found)
    if found.manifest["deployment"]["layout"].startswith(TODO):
        found.manifest["deployment"]["layout"] = "NCXYZ"  # as MONAI's LoadImage gives axes


def _fits(key: str, value: Any) -> bool:
    wanted = {"spatial_shape": list, "value_range": list, "channel_def": Mapping, "modality": str}
    return isinstance(value, wanted.get(key, object))


def _modality(found: Imported) -> None:
    first = next(iter(found.manifest["network_data_format"]["inputs"].values()))
    known = _MODALITIES.get(str(first.get("modality", "")).strip().upper())
    if known is None:
        found.left.append("the modality: name it in deployment.input.series")
        return
    for role in found.manifest["deployment"]["input"]["series"]:
        for selection in role["selections"]:
            selection["conditions"]["Modality"] = known


def _labels(found: Imported) -> None:
    first = next(iter(found.manifest["network_data_format"]["outputs"].values()))
    output = found.manifest["deployment"]["outputs"][0]
    channels = first.get("channel_def")
    if not isinstance(channels, Mapping) or "labels" not in output:
        found.left.append("the labels: there is no channel_def to take them from")
        return
    background = 1 if output["kind"] == "segmentation" else 0
    labels = [
        (int(str(key)), str(value)[:64])
        for key, value in channels.items()
        if str(key).isascii() and str(key).isdigit() and len(str(key)) < 5 and str(value)
    ]
    named = sorted(label for label in labels if label[0] >= background)
    if named:
        output["labels"] = [{"index": index, "label": label} for index, label in named]


def _transforms(inference: Mapping[str, Any], part: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give (name without MONAI's dictionary d, its arguments) of each step that is switched on."""
    whole = inference.get(part)
    steps = whole.get("transforms") if isinstance(whole, Mapping) else None
    for step in steps if isinstance(steps, list) else []:
        target = step.get("_target_") if isinstance(step, Mapping) else None
        if not isinstance(target, str):
            yield "", {}
            continue
        if step.get("_disabled_") is True:
            continue
        name = target.rpartition(".")[2]
        for ending in ("Dict", "d", "D"):
            bare = name.removesuffix(ending)
            if bare != name and (bare in _RENAMED or bare in _OURS or bare in _AFTER):
                name = bare
                break
        yield name[:60], step


def _constant(value: Any) -> bool:
    """Whether an argument is a plain value: nothing that MONAI would evaluate or make."""
    if isinstance(value, str):
        return not value.startswith(("$", "@", "%")) and "@" not in value
    if isinstance(value, list):
        return all(_constant(item) for item in value)
    return value is None or isinstance(value, (int, float, bool))


def _steps(inference: Mapping[str, Any], found: Imported) -> None:
    steps: list[dict[str, Any]] = []
    complete = True
    for number, (name, words) in enumerate(_transforms(inference, "preprocessing"), 1):
        where = f"preprocessing, step {number} ({name or 'an expression'})"
        if name in _OURS:
            continue
        step, why = _step(name, words)
        if step is None:
            found.left.append(f"{where}: {why}")
            complete = False
            continue
        steps.append(step)
        if why:
            found.left.append(f"{where}: {why}")
    if not steps:
        found.left.append("preprocessing: no step could be read; write deployment.preprocess")
        return
    ask = {"op": f"{TODO} the steps that the import listed as left, in their place"}
    found.manifest["deployment"]["preprocess"] = steps if complete else [*steps, ask]


def _step(name: str, words: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Give one of MONAI's transforms as a step of ours, and what of it is left out."""
    names = _RENAMED.get(name)
    if names is None:
        return None, "is no step that radseal knows; put it into the graph"
    said = {k: v for k, v in words.items() if k not in _SILENT and v is not None}
    odd = sorted(k for k, v in said.items() if not _constant(v))
    if odd:
        return None, f"{', '.join(odd)[:80]} is an expression, which is never evaluated"
    step: dict[str, Any] = {"op": _OP.get(name, name)}
    for key, ours in names.items():
        if key in said:
            value = said[key]
            step[ours] = value[0] if key == "mode" and isinstance(value, list) and value else value
    if name in ("ScaleIntensityRange", "ScaleIntensityRangePercentiles"):
        step.setdefault("clip", False)  # MONAI's default
    if name == "CastToType":
        step["dtype"] = str(step.get("dtype", "float32")).rpartition(".")[2]
    if name == "Resize" and "mode" not in step:
        return (
            None,
            "has the mode area (MONAI's default); radseal knows bilinear and nearest",
        )
    wrong = step_fault(step)
    if wrong:
        return None, wrong
    left = sorted(set(said) - set(names))
    return step, f"left out: {', '.join(left)[:120]}" if left else ""


def _after(inference: Mapping[str, Any], found: Imported) -> None:
    """Read activation and decoding from the postprocessing; the rest of it is listed."""
    output = found.manifest["deployment"]["outputs"][0]
    for number, (name, words) in enumerate(_transforms(inference, "postprocessing"), 1):
        where = f"postprocessing, step {number} ({name or 'an expression'})"
        if name == "Activations" and words.get("sigmoid") is True:
            output["activation"] = "sigmoid"
        elif name == "Activations" and words.get("softmax") is True:
            output["activation"] = "softmax"
        elif name == "AsDiscrete" and words.get("argmax") is True:
            output["decode"] = "argmax"
        elif name == "AsDiscrete" and type(words.get("threshold")) in (int, float):
            output["decode"], output["threshold"] = "threshold", words["threshold"]
        elif name not in ("Invert", "SaveImage"):  # radseal brings masks back and writes them
            found.left.append(f"{where}: is no step that radseal knows")
    if str(output.get("activation", "")).startswith(TODO) and output.get("decode") == "argmax":
        del output["activation"]
