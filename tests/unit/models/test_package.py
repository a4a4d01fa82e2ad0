"""The manifest, the folder, and the graph behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from models import admission
from models.errors import PackageError
from models.package import load


def faults(root: Path) -> list[str]:
    return [f"{f.key}: {f.text}" for f in admission.check(load(root)) if not f.warning]


def test_a_sound_package(make_package: Callable[..., Path]) -> None:
    package = load(make_package())
    assert (package.id, package.version, package.vendor) == ("test.threshold", "1.2.3", "test")
    assert package.model_path.read_bytes()
    assert package.research_only
    assert package.card is None
    assert admission.check(package) == []
    package.manifest["deployment"].clear()
    assert package.input["sop_classes"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deployment": {"surprise": 1}}, "surprise"),
        ({"deployment": {"input": {"surprise": 1}}}, "surprise"),
        ({"deployment": {"preprocess": [{"op": "Shell", "run": "ls"}]}}, "preprocess"),
        ({"deployment": {"preprocess": [{"op": "Orientation", "axcodes": "XYZ"}]}}, "axcodes"),
        ({"deployment": {"preprocess": [{"op": "Resize"}]}}, "spatial_size"),
        ({"deployment": {"identity": {"id": "../../etc"}}}, "identity.id"),
        ({"deployment": {"identity": {"model_sha256": "0" * 64}}}, "model_sha256"),
        ({"version": "../1"}, "version"),
        ({"deployment": {"regulatory": {"status": "FDA approved!"}}}, "regulatory.status"),
    ],
)
def test_a_manifest_that_is_not_ours(
    make_package: Callable[..., Path], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(PackageError, match=words):
        load(make_package(change=change))


@pytest.mark.parametrize("text", ["", "[", '{"a": NaN}', '{"version": "1", "version": "2"}'])
def test_a_manifest_that_is_no_json(make_package: Callable[..., Path], text: str) -> None:
    root = make_package()
    (root / "configs/metadata.json").write_text(text)
    with pytest.raises(PackageError, match="is not JSON"):
        load(root)


def test_nothing_executable(make_package: Callable[..., Path]) -> None:
    root = make_package()
    (root / "models/extra.py").write_text("print()")
    with pytest.raises(PackageError, match="can carry code"):
        load(root)


def test_unknown_monai_keys_on_top_are_fine(make_package: Callable[..., Path]) -> None:
    assert load(make_package(change={"monai_version": "1.3", "eval_metrics": {"dice": 1}}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network_data_format": {"inputs": {"x": {"dtype": "uint8"}}}}, "graph says float32"),
        ({"network_data_format": {"inputs": {"x": {"num_channels": 3}}}}, "graph says 1"),
        ({"network_data_format": {"outputs": {"y": {"dtype": "uint8"}}}}, "no tensor of the graph"),
        ({"deployment": {"layout": "NCXYZ"}}, "has 5 axes"),
        ({"deployment": {"input": {"prefer": {"PatientName": "x"}}}}, "not an attribute"),
        ({"deployment": {"input": {"prefer": {"ConvolutionKernel": "("}}}}, "valid pattern"),
        ({"deployment": {"outputs": [{"tensor": "mask", "kind": "embedding"}]}}, "not supported"),
        ({"deployment": {"outputs": [{"tensor": "mask", "kind": "segmentation"}]}}, "is missing"),
        ({"deployment": {"preprocess": [{"op": "Orientation", "axcodes": "RAS"}]}}, "volume"),
    ],
)
def test_promises_the_graph_does_not_keep(
    make_package: Callable[..., Path], change: dict[str, Any], words: str
) -> None:
    assert any(words in fault for fault in faults(make_package(change=change)))


def model_with(node: Any, *, domain: str = "", opset: int = 17, ir: int = 8) -> Any:
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1, "h", "w"])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


FLOAT = {"network_data_format": {"outputs": {"mask": {"dtype": "float32"}}}}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (model_with(helper.make_node("Relu", ["x"], ["mask"]), opset=99), "opset 99"),
        (model_with(helper.make_node("Relu", ["x"], ["mask"]), opset=5), "opset 5"),
        (model_with(helper.make_node("Relu", ["x"], ["mask"]), ir=99), "IR 99"),
        (model_with(helper.make_node("Evil", ["x"], ["mask"], domain="com.evil"),
                    domain="com.evil"), "com.evil"),
        (model_with(helper.make_node("RandomNormalLike", ["x"], ["mask"])), "random"),
        (model_with(helper.make_node("Relu", ["x", "x"], ["mask"])), "not valid ONNX"),
        (b"garbage", "not an ONNX file"),
        (b"", "holds no graph"),
    ],
)  # fmt: skip
def test_graphs_we_would_not_run(make_package: Callable[..., Path], model: Any, words: str) -> None:
    assert any(words in fault for fault in faults(make_package(model=model, change=FLOAT)))


def test_external_weights_must_be_listed(make_package: Callable[..., Path], threshold: Any) -> None:
    model = threshold()
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    model.graph.initializer.append(weight)
    assert any("not listed" in fault for fault in faults(make_package(model=model)))


def test_the_schema_is_valid_and_closed(root: Path) -> None:
    schema = json.loads((root / "models/package.schema.json").read_text())
    assert schema["properties"]["deployment"]["additionalProperties"] is False


def _properties(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property that an editor can be asked about."""
    if isinstance(node, dict):
        for name, rule in node.get("properties", {}).items():
            yield f"{path}.{name}", rule
        for key, value in node.items():
            yield from _properties(value, f"{path}.{key}")
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _properties(value, f"{path}[{place}]")


def test_every_property_has_a_description_for_editors(root: Path) -> None:
    schema = json.loads((root / "models/package.schema.json").read_text())
    found = dict(_properties(schema, ""))
    assert len(found) > 150
    assert [
        p for p, rule in found.items() if not str(rule.get("description", "")).endswith(".")
    ] == []


def test_a_manifest_may_name_its_schema(make_package: Callable[..., Path]) -> None:
    assert load(make_package(change={"$schema": "package.schema.json"}))
