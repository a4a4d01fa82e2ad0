"""A first manifest: filled in from the graph, and marked where only a person knows.

Pure. Marks are texts that begin with `models.package.TODO`; `radseal model check` names each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from models import hints
from models.package import TODO

__all__ = ["KINDS", "manifest"]

KINDS: Final = ("segmentation", "classification", "multilabel", "regression", "measurement")
"""What the first output of a skeleton can be."""
_NO_DIGEST: Final = f"{TODO} the SHA-256 of models/model.onnx"
_MOST_LABELS: Final = 200
_VOLUME: Final = {"value": "118565006", "scheme": "SCT", "meaning": "Volume"}
_ML: Final = {"value": "mL", "scheme": "UCUM", "meaning": "milliliter"}
_Tensor = tuple[str, list[int | None]]


def manifest(
    *,
    id: str,
    vendor: str,
    kind: str,
    graph: Mapping[str, Any] | None = None,
    model_sha256: str | None = None,
    external: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write configs/metadata.json for a model of this kind; `graph` is `models.graph.describe`'s.

    `external` lists the weight files as `deployment.identity.external_data` does.
    """
    graph = graph or {}
    said = hints.said(graph.get("metadata", {}))
    inputs = _numbers(graph.get("inputs")) or {"image": (f"{TODO} the input's dtype", [])}
    outputs = _numbers(graph.get("outputs")) or {"result": (f"{TODO} the output's dtype", [])}

    def hint(key: str, ask: str) -> str:
        return said.get((key,), f"{TODO} {ask}")

    return {
        "$schema": "package.schema.json",
        "version": said.get(("version",), "0.1.0"),
        "task": hint("task", "the task in a few words"),
        "description": hint("description", "what the model does and how it was made"),
        "authors": hint("authors", "who made it"),
        "copyright": hint("copyright", "whose it is"),
        "intended_use": f"{TODO} what it is for, for whom, and what it is not for",
        "network_data_format": {
            "inputs": {name: _promise(*found) for name, found in inputs.items()},
            "outputs": {name: _promise(*found) for name, found in outputs.items()},
        },
        "deployment": _deployment(
            id, vendor, kind, graph, model_sha256, external, inputs, outputs
        ),
    }  # fmt: skip


def _deployment(
    id: str, vendor: str, kind: str, graph: Mapping[str, Any], model_sha256: str | None,
    external: Sequence[Mapping[str, Any]], inputs: dict[str, _Tensor], outputs: dict[str, _Tensor],
) -> dict[str, Any]:  # fmt: skip
    flat = any(len(dims) == 4 for _, dims in inputs.values())
    said = hints.said(graph.get("metadata", {}))
    return {
        "manifest_version": 1,
        "identity": {
            "id": id, "name": _name(id),
            "vendor": vendor, "contact": f"{TODO} where a department writes to",
            "license": said.get(
                ("deployment", "identity", "license"), f"{TODO} an SPDX licence id"
            ),
            "model_sha256": model_sha256 or _NO_DIGEST,
            **({"external_data": [dict(item) for item in external]} if external else {}),
        },
        "regulatory": {"status": "research-only"},
        "input": _input(list(inputs)),
        "preprocess": _steps(next(iter(inputs.values()))),
        "layout": "NCHW" if flat else f"{TODO} NCXYZ (x first) or NCDHW (slices first)",
        **({"batch_axis": "slices"} if flat else {}),
        "outputs": [_output(next(iter(outputs)), next(iter(outputs.values())), kind,
                            hints.labels(graph.get("metadata", {})))],
        "selftest": {"layout": "onnx test_data_set", "atol": 1e-5, "rtol": 1e-4},
        "execution": {"providers": ["CPUExecutionProvider"], "max_batch": 1, "timeout_s": 120,
                      "memory_mb": 4096, **_versions(graph)},
    }  # fmt: skip


def _name(id: str) -> str:
    """Give the last word of an id as a first name for readers."""
    if id.startswith(TODO):
        return f"{TODO} the name that readers see"
    return id.rpartition(".")[2].replace("-", " ").capitalize()


def _numbers(tensors: Mapping[str, Any] | None) -> dict[str, _Tensor]:
    found = tensors or {}
    return {name: (str(t[0]), list(t[1])) for name, t in found.items() if t is not None}


def _versions(graph: Mapping[str, Any]) -> dict[str, int]:
    return {key: int(graph[key]) for key in ("opset", "ir") if graph.get(key)}


def _promise(dtype: str, dims: Sequence[int | None]) -> dict[str, Any]:
    channels = dims[1] if len(dims) > 1 else 1
    return {
        "type": "image", "format": f"{TODO} hounsfield, magnitude, probabilities …",
        "dtype": dtype, **({"num_channels": channels} if channels else {}),
        "spatial_shape": ["*" if d is None else d for d in dims[2:]],
    }  # fmt: skip


def _input(names: Sequence[str]) -> dict[str, Any]:
    roles = names if len(names) > 1 else ["image"]
    conditions = {"Modality": f"{TODO} CT, MR, CR, DX, MG, US …"}
    return {
        "series": [
            {"role": role, "selections": [{"name": "first", "conditions": dict(conditions)}],
             **({"same_frame_of_reference_as": roles[0]} if role != roles[0] else {})}
            for role in roles
        ],
        "sop_classes": [f"{TODO} the SOP Class UIDs that it reads, e.g. 1.2.840.10008.5.1.4.1.1.2"],
    }  # fmt: skip


def _steps(first: _Tensor) -> list[dict[str, Any]]:
    """Ask for the intensities; where the graph fixes the size, say Resize."""
    dtype, dims = first
    ask = f"{TODO} how values become the model's: Rescale, ScaleIntensityRange …, or remove this"
    size = dims[2:]
    fixed = [int(d) for d in size if d]
    steps: list[dict[str, Any]] = [{"op": ask}]
    if fixed and len(fixed) == len(size):
        # Two sizes mean (rows, columns); three are X, Y, Z, cubes in most graphs.
        steps.append({"op": "Resize", "spatial_size": fixed})
    if dtype not in ("float32", "bool", "float64") and not dtype.startswith(TODO):
        cast = dtype if dtype in ("float16", "uint8", "int16", "int32", "int64") else "float32"
        steps.append({"op": "Cast", "dtype": cast})
    return steps


def _labels(first: int, count: int, known: Mapping[int, str]) -> list[dict[str, Any]]:
    last = min(count, first + _MOST_LABELS)
    return [
        {"index": n, "label": known.get(n, f"{TODO} what index {n} means")}
        for n in range(first, max(last, first + 1))
    ]


def _output(name: str, found: _Tensor, kind: str, known: Mapping[int, str]) -> dict[str, Any]:
    dtype, dims = found
    channels = (dims[1] if len(dims) > 1 else 1) or 1
    whole = {"tensor": name, "kind": kind}
    if kind == "segmentation":
        decode = "argmax" if channels > 1 else "threshold" if dtype.startswith("float") else "none"
        activation = {"activation": f"{TODO} none or sigmoid", "threshold": 0.5}
        return {
            **whole, "decode": decode, **(activation if decode == "threshold" else {}),
            "labels": _labels(1, channels if channels > 1 else max(known, default=1) + 1, known),
            "measurements": [{"what": dict(_VOLUME), "unit": dict(_ML), "per": "label"}],
        }  # fmt: skip
    if kind in ("classification", "multilabel"):
        last = dims[-1] if len(dims) > 1 and dims[-1] and channels == 1 else channels
        return {
            **whole,
            "activation": f"{TODO} none, sigmoid or softmax: what the graph does not do itself",
            "labels": _labels(0, last, known),
            "operating_points": [{"name": f"{TODO} its name, and its threshold beside it",
                                  "threshold": 0.5, "default": True}],
            "calibrated": False,
        }  # fmt: skip
    code = {"value": f"{TODO} code", "scheme": f"{TODO} SCT, DCM", "meaning": f"{TODO} meaning"}
    unit = {"value": f"{TODO} UCUM code", "scheme": "UCUM", "meaning": f"{TODO} the unit"}
    return {**whole, "measurements": [{"what": code, "unit": unit, "per": "study"}]}
