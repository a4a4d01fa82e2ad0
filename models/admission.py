"""Hold the graph against the manifest, and against what we would run at all.

Read statically; nothing is executed and no weights outside the graph are
opened. `models.sandbox.admit` does the same in a child with limits, which is
what a package from outside deserves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import onnx
import regex
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from models.fault import Fault
from models.findings import VOLUME
from models.outputs import VOLUME_UNITS
from models.package import MANIFEST, MODEL, Package
from models.select import READ
from models.selftest import data_sets

__all__ = ["check"]

_IR: Final = (3, 13)
_OPSET: Final = (7, 26)
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_RANDOM: Final = frozenset({
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
    "Bernoulli", "Dropout",
})  # fmt: skip
_LOOPS: Final = frozenset({"Loop", "Scan"})
_MAX_GRAPH: Final = 2 * 1024**3
_NAMES: Final = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8", onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.UINT16: "uint16", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64", onnx.TensorProto.BOOL: "bool",
}  # fmt: skip
_EXPORT: Final = "Export again (torch.onnx.export) with opset_version 11 to 22 and IR 13 or less."


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and every graph inside its nodes' attributes."""
    stack = [graph]
    while stack:
        current = stack.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    stack.append(attribute.g)
                stack.extend(attribute.graphs)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    for graph in _graphs(attribute.g):
                        yield from graph.node


def _weights(model: Any) -> Iterator[Any]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def _parse(package: Package) -> Any | Fault:
    path = package.model_path
    if path.stat().st_size > _MAX_GRAPH:
        return Fault(MODEL, "", "is larger than 2 GB", "Keep weights in listed external data.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RecursionError):
        return Fault(MODEL, "", "is not an ONNX file", "Export the model as ONNX.")
    if not model.HasField("graph") or not model.graph.output:
        return Fault(MODEL, "", "holds no graph", "Export the model as ONNX.")
    return model


def _versions(model: Any) -> Iterator[Fault]:
    if not _IR[0] <= model.ir_version <= _IR[1]:
        yield Fault(MODEL, "ir_version", f"IR {model.ir_version} cannot be run here", _EXPORT)
    for used in model.opset_import:
        if used.domain not in _DOMAINS:
            yield Fault(
                MODEL, "opset_import", f"uses the operator domain {used.domain[:64]!r}",
                "Use operators of ai.onnx and ai.onnx.ml only; custom operators are code.",
            )  # fmt: skip
        elif used.domain in ("", "ai.onnx") and not _OPSET[0] <= used.version <= _OPSET[1]:
            yield Fault(MODEL, "opset_import", f"opset {used.version} cannot be run here", _EXPORT)


def _operators(model: Any) -> Iterator[Fault]:
    own = {(f.domain, f.name) for f in model.functions}
    seen: set[tuple[str, str]] = set()
    for node in _nodes(model):
        kind = (node.domain, node.op_type)
        if kind in seen or kind in own:
            continue
        seen.add(kind)
        if node.domain not in _DOMAINS:
            yield Fault(
                MODEL, node.op_type[:64], f"is an operator of the domain {node.domain[:64]!r}",
                "Use operators of ai.onnx and ai.onnx.ml only; custom operators are code.",
            )  # fmt: skip
        elif node.op_type in _RANDOM and node.op_type != "Dropout":
            yield Fault(
                MODEL, node.op_type, "draws random numbers, so a result cannot be repeated",
                "Export the model for inference, without sampling.",
            )  # fmt: skip
        elif node.op_type in _LOOPS:
            yield Fault(
                MODEL, node.op_type, "can run without end; the time limit will stop it",
                "Bound the loop, and give execution.timeout_s.", warning=True,
            )  # fmt: skip


def _external(model: Any, listed: Mapping[str, str]) -> Iterator[Fault]:
    seen: set[str] = set()
    for tensor in _weights(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        where = entries.get("location", "")
        if where in seen:
            continue
        seen.add(where)
        if where not in listed or where.startswith("/") or ".." in where.split("/"):
            yield Fault(
                MODEL, "external_data", f"reads weights from {where[:64]!r}, which is not listed",
                "List the file with its SHA-256 in deployment.identity.external_data.",
            )  # fmt: skip


def _tensors(values: Any, weights: set[str]) -> dict[str, tuple[str, list[int | None]] | None]:
    """Name → (dtype, dimensions), None for what is not a tensor of numbers."""
    found: dict[str, tuple[str, list[int | None]] | None] = {}
    for value in values:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            found[value.name] = None
            continue
        tensor = value.type.tensor_type
        dtype = _NAMES.get(tensor.elem_type)
        if dtype is None:
            found[value.name] = None
            continue
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        found[value.name] = (dtype, dims)
    return found


def _compare(
    side: str, graph: Mapping[str, Any], declared: Mapping[str, Any], channel_rank: int
) -> Iterator[Fault]:
    """Hold network_data_format against the graph: names, dtypes, channels."""
    for name, promise in declared.items():
        key = f"network_data_format.{side}.{name}"
        if name not in graph:
            there = ", ".join(sorted(graph))[:120]
            yield Fault(MANIFEST, key, "is no tensor of the graph", f"The graph has: {there}.")
            continue
        if graph[name] is None:
            yield Fault(
                MODEL, name, "is text, a sequence or another thing that is no tensor of numbers",
                "Give tensors of numbers only.",
            )  # fmt: skip
            continue
        dtype, dims = graph[name]
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
    inputs = _tensors(model.graph.input, weights)
    outputs = _tensors(model.graph.output, set())
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


def _output(output: Mapping[str, Any], declared: Mapping[str, Any]) -> Iterator[Fault]:
    name, kind = str(output["tensor"]), output["kind"]
    key = f"deployment.outputs.{name}"
    if name not in declared:
        yield Fault(
            MANIFEST, key, "is not declared in network_data_format.outputs", "Declare the tensor."
        )
        return
    if kind in ("detection", "embedding"):
        yield Fault(MANIFEST, f"{key}.kind", f"{kind} is not supported yet", "Use another kind.")
    if kind in ("segmentation", "classification", "multilabel") and not output.get("labels"):
        yield Fault(MANIFEST, f"{key}.labels", "is missing", "Name what the indices mean.")
    indices = [label["index"] for label in output.get("labels", [])]
    if len(set(indices)) != len(indices):
        yield Fault(MANIFEST, f"{key}.labels", "an index stands twice", "Number labels once.")
    if kind == "segmentation" and 0 in indices:
        yield Fault(
            MANIFEST, f"{key}.labels", "index 0 is the background and never a segment",
            "Leave it out, or count from 1.", warning=True,
        )  # fmt: skip
    channels = declared[name].get("num_channels")
    if output.get("decode") == "argmax" and channels and max(indices, default=0) >= channels:
        yield Fault(MANIFEST, f"{key}.labels", "an index lies beyond the channels", "Count from 0.")
    for rule in output.get("measurements", []):
        unit, what = rule["unit"]["value"], (rule["what"]["value"], rule["what"]["scheme"])
        known = what == (VOLUME.value, VOLUME.scheme) and unit in VOLUME_UNITS
        if kind == "segmentation" and not known:
            yield Fault(
                MANIFEST, f"{key}.measurements", "of a mask only volumes (mm3, mL, L) are measured",
                "Compute it in the graph, as an output of kind measurement.",
            )  # fmt: skip
    if kind in ("regression", "measurement") and not output.get("measurements"):
        yield Fault(MANIFEST, f"{key}.measurements", "is missing", "Name each number and its unit.")


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


def check(package: Package) -> list[Fault]:
    """Everything wrong with a package's graph and manifest, in words; empty means admissible.

    Faults that are only warnings say so. Raises nothing for a hostile graph but
    what the process dies of; use `models.sandbox.admit` for strangers.
    """
    model = _parse(package)
    if isinstance(model, Fault):
        return [model]
    faults = [
        *_versions(model),
        *_operators(model),
        *_external(model, package.external_data()),
        *_signature(package, model),
        *_rules(package),
    ]
    declared = package.manifest["network_data_format"]["outputs"]
    for output in package.outputs:
        faults.extend(_output(output, declared))
    if not any(not f.warning for f in faults):
        try:
            onnx.checker.check_model(str(package.model_path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError,
                RuntimeError, ValueError) as error:  # fmt: skip
            first = str(error).strip().splitlines()
            faults.append(
                Fault(MODEL, "", f"is not valid ONNX: {first[0][:120] if first else ''}", _EXPORT)
            )
    return faults
