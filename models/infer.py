"""From volumes to tensors: which series feeds which input, batches, and the call itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import RunFailed
from models.package import Package
from models.preprocess import Image, apply, from_volume, onto, tensor
from models.runtime import Session
from models.volume import Volume

__all__ = ["prepare", "through"]

Array = npt.NDArray[Any]


def prepare(
    package: Package, volumes: Mapping[str, Volume]
) -> tuple[Image, Image, dict[str, Array]]:
    """Return (first series before any step, after all steps, tensors by input name).

    With several roles, an input named like a role is fed by it; a single input
    takes all roles as channels, resampled onto the first role's grid.
    """
    layout = str(package.deployment["layout"])
    flat = layout == "NCHW"
    inputs = package.manifest["network_data_format"]["inputs"]
    sources = {role: from_volume(v, flat=flat) for role, v in volumes.items()}
    first = next(iter(sources))
    images: dict[str, Image] = {}
    for role, source in sources.items():
        image = apply(source, package.preprocess)
        images[role] = image if role == first else onto(image, images[first])
    if len(images) == 1:
        arrays = {next(iter(inputs)): images[first].array}
    elif set(images) == set(inputs):
        arrays = {role: image.array for role, image in images.items()}
    else:
        stacked = np.concatenate([images[role].array for role in images])
        arrays = {next(iter(inputs)): stacked}
    feeds: dict[str, Array] = {}
    for name, array in arrays.items():
        channels = inputs[name].get("num_channels")
        if channels is not None and array.shape[0] != channels:
            raise RunFailed(
                "bad_input",
                f"the images have {array.shape[0]} channels, the model wants {channels}",
            )
        carrier = Image(array, images[first].affine, images[first].placed, flat, "", "", True, None)
        feeds[name] = tensor(carrier, layout).astype(np.dtype(inputs[name]["dtype"]), copy=False)
    return sources[first], images[first], feeds


def _batched(
    session: Session, feeds: Mapping[str, Array], wanted: list[str], size: int
) -> dict[str, Array]:
    count = len(next(iter(feeds.values())))
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    for start in range(0, count, size):
        batch = {name: array[start : start + size] for name, array in feeds.items()}
        for name, value in session.run(batch, wanted).items():
            if value.ndim == 0 or value.shape[0] != len(next(iter(batch.values()))):
                raise RunFailed("bad_output", f"{name[:64]} has not one result for each image")
            parts[name].append(value)
    return {name: _joined(name, values) for name, values in parts.items()}


def _joined(name: str, values: list[Array]) -> Array:
    """Put batches together; where a detector gives fewer boxes, the rest is zeros: no boxes."""
    if len({value.shape[1:] for value in values}) > 1:
        if len({(value.ndim, value.shape[2:]) for value in values}) > 1 or values[0].ndim < 2:
            raise RunFailed("bad_output", f"{name[:64]} changes its shape from image to image")
        most = max(value.shape[1] for value in values)
        values = [
            np.pad(v, [(0, 0), (0, most - v.shape[1]), *[(0, 0)] * (v.ndim - 2)]) for v in values
        ]
    return np.concatenate(values)


def _declared(package: Package, tensors: Mapping[str, Array], feeds: Mapping[str, Array]) -> None:
    """Compare what came out with what the manifest promised; raises RunFailed("bad_output")."""
    declared = package.manifest["network_data_format"]["outputs"]
    fed = next(iter(feeds.values()))
    filled = {str(o["tensor"]) for o in package.outputs if o["kind"] != "detection"}
    for name in package.tensors:
        value, dtype = tensors[name], declared[name]["dtype"]
        if value.size == 0 and name in filled:  # no boxes are an answer, no mask is none
            raise RunFailed("bad_output", f"output {name[:64]} is empty")
        if value.dtype != np.dtype(dtype):
            raise RunFailed("bad_output", f"{name} is {value.dtype}, promised {dtype}")
    for output in package.outputs:
        name = output["tensor"]
        promise, value = declared[name], tensors[name]
        if output["kind"] == "segmentation":
            channels = promise.get("num_channels", 1)
            wanted = (fed.shape[0], channels, *fed.shape[2:])
            if output.get("decode", "none") != "argmax" and channels > 1:
                wanted = (fed.shape[0], value.shape[1] if value.ndim > 1 else 0, *fed.shape[2:])
            if value.shape != wanted:
                raise RunFailed(
                    "bad_output", f"{name} has shape {list(value.shape)}, expected {list(wanted)}"
                )


def through(
    package: Package, session: Session, feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Run the graph; return the outputs the manifest names and what ran it. Raises RunFailed."""
    wanted = package.tensors
    if str(package.deployment["layout"]) == "NCHW":
        size = int(package.execution.get("max_batch", 1))
        tensors = _batched(session, feeds, wanted, size)
    else:
        tensors = session.run(feeds, wanted)
    _declared(package, tensors, feeds)
    return tensors, session.facts()
