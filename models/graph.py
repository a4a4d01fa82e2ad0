"""What an ONNX graph says of itself, and what of it we would not run at all.

Read statically; nothing is executed and no weights outside the graph are opened. Only a
child opens a graph of strangers (`models.tasks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from models.fault import Fault
from models.package import MODEL

__all__ = ["EXPORT", "describe", "faults", "read", "tensors"]

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
EXPORT: Final = (
    "Export again: torch.onnx.export(model, x, path, opset_version=17), which writes an IR that "
    "runs here (IR 3 to 13, opset 7 to 26)."
)
"""The fix for a graph that the runtime cannot take."""
_DEEPEST: Final = 8
_HINTS: Final = 64
_HINT_LENGTH: Final = 16_384


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


def read(path: Path) -> Any | Fault:
    """Parse the graph at `path`; a Fault for what is no ONNX graph or larger than 2 GB."""
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
        yield Fault(MODEL, "ir_version", f"IR {model.ir_version} cannot be run here", EXPORT)
    for used in model.opset_import:
        if used.domain not in _DOMAINS:
            yield Fault(
                MODEL, "opset_import", f"uses the operator domain {used.domain[:64]!r}",
                "Use operators of ai.onnx and ai.onnx.ml only; custom operators are code.",
            )  # fmt: skip
        elif used.domain in ("", "ai.onnx") and not _OPSET[0] <= used.version <= _OPSET[1]:
            yield Fault(MODEL, "opset_import", f"opset {used.version} cannot be run here", EXPORT)


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


def _external(model: Any, listed: Mapping[str, int]) -> Iterator[Fault]:
    said: set[str] = set()
    for tensor in _weights(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {e.key: e.value for e in tensor.external_data}
        where = entries.get("location", "")
        if where in said:
            continue
        text = fix = ""
        if where.startswith("/") or ".." in where.split("/"):
            text = f"reads weights from {where[:64]!r}, outside of models/ and not listed"
            fix = "Put the file beside model.onnx and export with that relative name."
        elif where not in listed:
            text = f"reads weights from {where[:64]!r}, which is not listed"
            fix = "List the file with its SHA-256 in deployment.identity.external_data."
        elif not _within(entries, listed[where]):
            text = f"reads weights beyond the end of {where[:64]!r} ({listed[where]} bytes)"
            fix = "Export again; the graph and its weights do not belong together."
        if text:
            said.add(where)
            yield Fault(MODEL, "external_data", text, fix)


def _within(entries: Mapping[str, str], size: int) -> bool:
    """Whether offset and length, decimal text, lie inside a file of this size."""
    numbers = [entries.get("offset", "0"), entries.get("length", "0")]
    if not all(n.isascii() and n.isdigit() and len(n) < 20 for n in numbers):
        return False
    return sum(int(n) for n in numbers) <= size


def tensors(values: Any, weights: set[str]) -> dict[str, tuple[str, list[int | None]] | None]:
    """Give name → (dtype, dimensions), None for what is not a tensor of numbers."""
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
        dims = [d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim]
        found[value.name] = (dtype, dims)
    return found


def _depth(model: Any) -> Iterator[Fault]:
    """Refuse graphs nested in graphs beyond what any export writes; each costs the stack."""
    level, graphs = 0, [model.graph, *model.functions]
    while graphs:
        graphs = [
            inner
            for graph in graphs
            for node in graph.node
            for attribute in node.attribute
            for inner in (
                *attribute.graphs,
                *([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []),
            )
        ]
        level += 1
        if level > _DEEPEST and graphs:
            yield Fault(
                MODEL, "graph", f"nests graphs in If, Loop or Scan more than {_DEEPEST} deep",
                "Flatten the control flow, or export by tracing.",
            )  # fmt: skip
            return


def _plain(model: Any) -> Iterator[Fault]:
    """Refuse inputs and outputs that are text, sequences or maps."""
    weights = {w.name for w in model.graph.initializer}
    for side, values in (("input", model.graph.input), ("output", model.graph.output)):
        for name, found in tensors(values, weights).items():
            if found is None:
                yield Fault(
                    MODEL, name[:64], f"is an {side} of text, a sequence or another thing that is "
                    "no tensor of numbers", "Give tensors of numbers only.",
                )  # fmt: skip


def faults(model: Any, listed: Mapping[str, int]) -> list[Fault]:
    """Everything in a graph that we would not run; `listed`: size of each file it may read."""
    return [
        *_versions(model), *_operators(model), *_external(model, listed), *_depth(model),
        *_plain(model),
    ]  # fmt: skip


def describe(model: Any) -> dict[str, Any]:
    """Give what a manifest can be filled from, as JSON values.

    inputs and outputs: name → [dtype, dimensions (null: not fixed)] or null; ir; opset;
    metadata: the exporter's own metadata_props, bounded; external: files that it reads.
    """
    weights = {w.name for w in model.graph.initializer}
    located = {
        entry.value
        for tensor in _weights(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return {
        "inputs": tensors(model.graph.input, weights),
        "outputs": tensors(model.graph.output, set()),
        "ir": int(model.ir_version),
        "opset": max((int(o.version) for o in model.opset_import if not o.domain), default=0),
        "metadata": {
            p.key[:64]: p.value[:_HINT_LENGTH] for p in list(model.metadata_props)[:_HINTS]
        },
        "external": sorted(located),
    }
