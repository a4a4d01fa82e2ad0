"""Hold the graph against the manifest, and against what we would run at all.

Read statically; nothing is executed and no weights outside the graph are
opened. `models.sandbox.admit` does the same in a child with limits, which is
what a package from outside deserves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import regex

from models import card, codes, graph, hints, kinds
from models.errors import PackageError
from models.fault import Fault
from models.graph import EXPORT
from models.package import MANIFEST, MODEL, Package, unfilled
from models.select import READ
from models.selftest import data_sets

__all__ = ["check"]


def _compare(
    side: str, there: Mapping[str, Any], declared: Mapping[str, Any], channel_rank: int
) -> Iterator[Fault]:
    """Hold network_data_format against the graph: names, dtypes, channels."""
    for name, promise in declared.items():
        key = f"network_data_format.{side}.{name}"
        if name not in there:
            names = ", ".join(sorted(there))[:120]
            yield Fault(MANIFEST, key, "is no tensor of the graph", f"The graph has: {names}.")
            continue
        if there[name] is None:
            continue  # models.graph says that it is no tensor of numbers
        dtype, dims = there[name]
        if promise["dtype"] != dtype:
            yield Fault(
                MANIFEST, f"{key}.dtype", f"is {promise['dtype']}, the graph says {dtype}",
                f"Write {dtype}.",
            )  # fmt: skip
        channels = promise.get("num_channels")
        if len(dims) == channel_rank and channels and dims[1] not in (None, channels):
            yield Fault(
                MANIFEST, f"{key}.num_channels", f"is {channels}, the graph says {dims[1]}",
                f"Write {dims[1]}.",
            )  # fmt: skip


def _signature(package: Package, model: Any) -> Iterator[Fault]:
    weights = {w.name for w in model.graph.initializer}
    inputs = graph.tensors(model.graph.input, weights)
    outputs = graph.tensors(model.graph.output, set())
    declared = package.manifest["network_data_format"]
    rank = 4 if package.deployment["layout"] == "NCHW" else 5
    yield from _compare("inputs", inputs, declared["inputs"], rank)
    yield from _compare("outputs", outputs, declared["outputs"], rank)
    for name, found in inputs.items():
        if name not in declared["inputs"]:
            yield Fault(
                MANIFEST, "network_data_format.inputs", f"lacks the graph's input {name[:64]}",
                "Declare every input.",
            )  # fmt: skip
        elif found is not None and len(found[1]) != rank:
            yield Fault(
                MANIFEST, "deployment.layout",
                f"{package.deployment['layout']} has {rank} axes, input {name[:64]} has "
                f"{len(found[1])}", "Choose the layout of the graph's input.",
            )  # fmt: skip
    roles = [r["role"] for r in package.input["series"]]
    if len(declared["inputs"]) > 1 and set(declared["inputs"]) != set(roles):
        yield Fault(
            MANIFEST, "deployment.input.series", "several inputs need a role of the same name each",
            "Name the roles as the graph's inputs.",
        )  # fmt: skip


def _patterns(where: str, values: Mapping[str, Any]) -> Iterator[Fault]:
    for keyword, wanted in values.items():
        if keyword not in READ:
            yield Fault(
                MANIFEST, f"{where}.{keyword}", "is not an attribute that rules can ask for",
                "README.md of models lists them.",
            )  # fmt: skip
        if isinstance(wanted, str):
            try:
                regex.compile(wanted)
            except regex.error:
                yield Fault(
                    MANIFEST, f"{where}.{keyword}", "is not a valid pattern", "Correct the pattern."
                )


def _rules(package: Package) -> Iterator[Fault]:
    rules = package.input
    roles = [role["role"] for role in rules["series"]]
    if len(set(roles)) != len(roles):
        yield Fault(MANIFEST, "deployment.input.series", "a role stands twice", "Rename one.")
    yield from _patterns("deployment.input.prefer", rules.get("prefer", {}))
    for role in rules["series"]:
        where = f"deployment.input.series.{role['role']}"
        yield from _patterns(f"{where}.prefer", role.get("prefer", {}))
        for selection in role["selections"]:
            yield from _patterns(f"{where}.selections", selection["conditions"])
    if (rules.get("prior") or {}).get("needed"):
        yield Fault(
            MANIFEST, "deployment.input.prior", "prior studies are not supported yet", "Remove it."
        )
    steps = [s["op"] for s in package.preprocess]
    if package.deployment["layout"] == "NCHW":
        if "Orientation" in steps:
            yield Fault(
                MANIFEST, "deployment.preprocess", "Orientation needs a volume layout",
                "Use NCXYZ or NCDHW.",
            )  # fmt: skip
        if package.deployment.get("batch_axis") != "slices" and rules.get("max_slices") != 1:
            yield Fault(
                MANIFEST, "deployment.batch_axis", "is missing: each image stands alone",
                'Write "slices", or input.max_slices 1.', warning=True,
            )  # fmt: skip
    if not data_sets(package):
        yield Fault(
            "selftest", "", "holds no test_data_set_N", "Record an input and its output there."
        )


def _card(package: Package) -> Iterator[Fault]:
    if package.card is None:
        return
    name = package.card.relative_to(package.root).as_posix()
    with package.card.open("rb") as stream:
        data = stream.read(card.MAX_CARD + 1)
    try:
        card.read(data, name)
    except PackageError as error:
        yield Fault(error.file, error.key, error.text, error.fix)


def _invalid(error: Exception) -> str:
    """Say what the checker of ONNX found, the first line of it."""
    text = str(error)
    if "ShapeInferenceError" in text:
        return "declares shapes that its operators do not give"
    return f"is not valid ONNX: {text.strip().splitlines()[0][:120] if text.strip() else ''}"


def check(package: Package) -> list[Fault]:
    """Everything wrong with a package's graph and manifest, in words; empty means admissible.

    Faults that are only warnings say so. Raises nothing for a hostile graph but
    what the process dies of; use `models.sandbox.admit` for strangers.
    """
    model = graph.read(package.model_path)
    if isinstance(model, Fault):
        return [model, *_rules(package)]
    sizes = {
        name: (package.model_path.parent / name).stat().st_size
        for name in package.external_data()
        if f"models/{name}" in package.files
    }
    faults = [
        *unfilled(package.manifest),
        *_card(package),
        *graph.faults(model, sizes),
        *_signature(package, model),
        *hints.faults(package.manifest, graph.describe(model)["metadata"]),
        *_rules(package),
    ]
    outputs = graph.tensors(model.graph.output, set())
    faults += kinds.check(package, {name: found[1] for name, found in outputs.items() if found})
    faults += codes.check(package.deployment, MANIFEST)
    if not any(not f.warning for f in faults):
        try:
            onnx.checker.check_model(str(package.model_path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
                RuntimeError, ValueError) as error:  # fmt: skip
            faults.append(Fault(MODEL, "", _invalid(error), EXPORT))
    return faults
