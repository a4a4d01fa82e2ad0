"""Starting a package from a graph, and looking at one: every fault, not the first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import admission, card, graph, hints, packing, sandbox, selftest, skeleton
from models.errors import PackageError, RunFailed
from models.fault import Fault
from models.package import MANIFEST, TODO, load, survey, unfilled
from models.sandbox import Limits

LIMITS = Limits(memory_mb=1024, timeout_s=60, threads=1)


def filled(manifest: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """A person's answers, by key of the fault."""

    def walk(value: Any, path: str) -> Any:
        if path in answers:
            return answers[path]
        if isinstance(value, dict):
            return {k: walk(v, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, f"{path}[{i}]") for i, v in enumerate(value)]
        return "said" if isinstance(value, str) and value.startswith(TODO) else value

    found: dict[str, Any] = walk(manifest, "")
    return found


@pytest.fixture
def onnx_file(tmp_path: Path, threshold: Callable[..., Any]) -> Path:
    model = threshold()
    for key, value in {"labels": '["background", "Bright"]', "license": "CC0-1.0"}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    path = tmp_path / "exported.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_skeleton_becomes_a_package_once_a_person_filled_it_in(
    onnx_file: Path, tmp_path: Path
) -> None:
    root = tmp_path / "new"
    told = packing.start(root, id="com.acme.x", vendor="Acme", kind="segmentation", onnx=onnx_file)
    assert "float32" in told[0]
    manifest = json.loads((root / MANIFEST).read_text())
    said = manifest["network_data_format"]
    assert said["inputs"]["x"]["dtype"] == "float32"
    assert said["outputs"]["mask"]["num_channels"] == 1
    assert manifest["deployment"]["layout"] == "NCHW"
    assert manifest["deployment"]["identity"]["license"] == "CC0-1.0"
    assert manifest["deployment"]["outputs"][0]["labels"] == [{"index": 1, "label": "Bright"}]
    assert manifest["deployment"]["execution"]["opset"] == 17

    found, faults = packing.examine(root, LIMITS)
    assert found is not None
    open_ = {f.key for f in faults if "not filled in" in f.text}
    assert open_ == {f.key for f in packing.open_places(root)} == {f.key for f in faults}
    assert {"intended_use", "deployment.preprocess[0].op"} <= open_
    with pytest.raises(PackageError, match="not filled in"):
        load(root)  # so that nobody signs or pushes it by mistake

    answers = {
        "deployment.input.sop_classes[0]": "1.2.840.10008.5.1.4.1.1.2",
        "deployment.preprocess[0]": {"op": "Rescale", "to": "HU"},
    }
    (root / MANIFEST).write_text(json.dumps(filled(manifest, answers)))
    found, faults = packing.examine(root, LIMITS)
    assert found is not None
    assert faults == []
    assert sandbox.selftest(load(root), LIMITS).passed


@pytest.mark.parametrize("kind", skeleton.KINDS)
@pytest.mark.parametrize("described", [None, "flat", "volume"])
def test_every_skeleton_fits_the_schema_but_for_its_marks(
    kind: str, described: str | None, tmp_path: Path
) -> None:
    dims = [None, 1, 32, 32] if described == "flat" else [None, 1, None, None, None]
    graph_ = None if described is None else {
        "inputs": {"a": ["uint8", dims], "text": None}, "outputs": {"b": ["float32", [None, 3]]},
        "metadata": {"author": "A"}, "ir": 8, "opset": 17, "external": [],
    }  # fmt: skip
    manifest = skeleton.manifest(id="com.acme.x", vendor="Acme", kind=kind, graph=graph_)
    packing.write(tmp_path / "p", manifest)
    _, faults = survey(tmp_path / "p")
    shown = [f for f in faults if f.file == MANIFEST]
    assert shown == unfilled(manifest)
    assert shown


def test_a_folder_that_is_not_empty_is_left_alone(onnx_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(PackageError, match="not empty"):
        packing.start(tmp_path, id="a.b", vendor="v", kind="segmentation", onnx=onnx_file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported.onnx", "mine"]


@pytest.mark.parametrize("where", ["../w.bin", "/etc/hostname", "link.bin", "absent.bin"])
def test_weights_beside_a_graph_are_taken_from_its_own_folder_only(
    onnx_file: Path, tmp_path: Path, threshold: Callable[..., Any], where: str
) -> None:
    model = threshold()
    external(model, where)
    onnx_file.write_bytes(model.SerializeToString())
    (tmp_path / "link.bin").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="no file beside it") as refused:
        packing.start(tmp_path / "p", id="a.b", vendor="v", kind="segmentation", onnx=onnx_file)
    assert refused.value.fix
    assert not (tmp_path / "p").exists()


def external(model: Any, where: str, **more: str) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": where, **more}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    model.graph.initializer.append(weight)


def test_what_is_no_graph_starts_no_package(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"garbage")
    with pytest.raises(RunFailed, match="not an ONNX file"):
        packing.start(tmp_path / "p", id="a.b", vendor="v", kind="segmentation",
                      onnx=tmp_path / "x.onnx")  # fmt: skip
    assert not (tmp_path / "p").exists()


def test_every_fault_is_said_not_the_first(make_package: Callable[..., Path]) -> None:
    root = make_package(change={
        "version": "../1", "intended_use": "",
        "deployment": {"surprise": 1, "preprocess": [{"op": "Resize"}, {"op": "Shell"}],
                       "identity": {"id": "../../etc"}},
    }, model=random_graph())  # fmt: skip
    (root / "models/extra.py").write_text("print()")
    (root / "docs/link").symlink_to("/etc/hostname")
    found, faults = packing.examine(root, LIMITS)
    assert found is None
    said = "\n".join(f"{f.file}: {f.key}: {f.text}; {f.fix}" for f in faults)
    for words in (
        "version", "intended_use", "surprise", "spatial_size", "preprocess[1]", "identity.id",
        "extra.py", "docs/link", "random numbers",
    ):  # fmt: skip
        assert words in said
    assert all(f.text and f.fix for f in faults)


def test_digests_tensors_and_graph_are_held_against_a_manifest_that_reads(
    make_package: Callable[..., Path],
) -> None:
    root = make_package(change={
        "deployment": {"identity": {
            "model_sha256": "0" * 64,
            "external_data": [{"path": "w.bin", "sha256": "1" * 64}],
        }},
        "network_data_format": {"inputs": {"x": {"dtype": "uint8", "num_channels": 3}}},
    })  # fmt: skip
    keys = [f.key for f in packing.examine(root, LIMITS)[1]]
    assert keys == [
        "deployment.identity.model_sha256", "deployment.identity.external_data",
        "network_data_format.inputs.x.dtype", "network_data_format.inputs.x.num_channels",
    ]  # fmt: skip


def random_graph() -> Any:
    graph_ = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["x"], ["mask"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1, "h", "w"])],
    )  # fmt: skip
    return helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_that_is_another_one_each_time_fails_its_self_test(
    make_package: Callable[..., Path],
) -> None:
    x = np.zeros((1, 1, 2, 2), np.float32)
    change = {
        "network_data_format": {"outputs": {"mask": {"dtype": "float32"}}},
        "deployment": {"selftest": {"atol": 1000}},
    }
    root = make_package(model=random_graph(), feeds={"x": x}, expect={"mask": x}, change=change)
    passed, text = selftest.run(load(root), 1)
    assert not passed
    assert "run again" in text
    loose = make_package(
        model=random_graph(), feeds={"x": x}, expect={"mask": x}, name="loose",
        change={**change, "deployment": {"selftest": {"atol": 1000},
                                         "execution": {"deterministic": False}}},
    )  # fmt: skip
    assert selftest.run(load(loose), 1)[0]


def test_a_generated_input_is_the_same_everywhere() -> None:
    made = selftest.generated([1, 1, 4, 4], "uint8", "byte")
    assert made.dtype == np.uint8
    assert made.ravel()[:6].tolist() == selftest.generated([16], "uint8", "byte")[:6].tolist()
    assert len(set(made.ravel().tolist())) > 10
    assert float(selftest.generated([99], "float32", "hu").min()) >= -1024


def test_a_dimension_of_minus_one_is_an_open_one(threshold: Callable[..., Any]) -> None:
    model = threshold()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    assert graph.describe(model)["inputs"] == {"x": ("float32", [None, 1, None, None])}


def nested(depth: int) -> Any:
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, ["n", 1, "h", "w"])
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "b", [], [value])
    for _ in range(depth):
        yes = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True)))
        node = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([yes, node], "b", [], [value])
    inner.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w"]))
    return helper.make_model(inner, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("depth", "refused"), [(2, False), (8, False), (9, True)])
def test_graphs_in_graphs_have_an_end(depth: int, refused: bool) -> None:
    assert any("deep" in f.text for f in graph.faults(nested(depth), {})) is refused


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"offset": "0", "length": "4"}, None),
        ({"offset": "8"}, "beyond the end"),
        ({"offset": "0", "length": "5"}, "beyond the end"),
        ({"offset": "-4"}, "beyond the end"),
        ({"offset": "18446744073709551612"}, "beyond the end"),
        ({"offset": "४"}, "beyond the end"),
    ],
)
def test_listed_weights_are_read_within_their_file(
    threshold: Callable[..., Any], more: dict[str, str], words: str | None
) -> None:
    model = threshold()
    external(model, "w.bin", **more)
    found = [f.text for f in graph.faults(model, {"w.bin": 4})]
    assert bool(found) is (words is not None)
    assert all(words in text for text in found if words)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('["a", "b"]', {0: "a", 1: "b"}),
        ('{"0": "a", "7": "b"}', {0: "a", 7: "b"}),
        ("{0: 'a', 1: \"it's\"}", {0: "a", 1: "it's"}),
        ("a, b", {0: "a", 1: "b"}),
        ("a\nb", {0: "a", 1: "b"}),
        ("[" * 5000, {0: ("[" * 5000)[:64]}),
        ("3", {}),
        ('{"x": "a", "1": 2}', {}),
        ("", {}),
    ],
)
def test_labels_as_exporters_write_them(text: str, found: dict[int, str]) -> None:
    assert hints.labels({"Names": text}) == found


def test_hints_that_differ_are_notes(make_package: Callable[..., Path], onnx_file: Path) -> None:
    root = make_package(model=onnx_file.read_bytes())
    assert admission.check(load(root)) == []  # license and labels are those of the manifest
    change = {"deployment": {"identity": {"license": "MIT"},
                             "outputs": [{"tensor": "mask", "kind": "segmentation",
                                          "labels": [{"index": 1, "label": "Dark"}]}]}}  # fmt: skip
    other = make_package(model=onnx_file.read_bytes(), change=change, name="other")
    faults = admission.check(load(other))
    assert all(f.warning for f in faults)
    assert [f.key for f in faults] == [
        "deployment.identity.license", "deployment.outputs.mask.labels",
    ]  # fmt: skip
    assert isinstance(faults[0], Fault)


CARD = b"""<?xml version="1.0"?><m:AppliedModelCard xmlns:m="urn:chai"><BasicInfo>
<ModelName>Lung &amp; air</ModelName></BasicInfo><Warnings>Not for  children</Warnings>
</m:AppliedModelCard>"""


def test_a_model_card_is_shown(make_package: Callable[..., Path]) -> None:
    root = make_package()
    (root / "docs/model-card.xml").write_bytes(CARD)
    assert sandbox.card(load(root), LIMITS) == [
        ("BasicInfo / ModelName", "Lung & air"), ("Warnings", "Not for children"),
    ]  # fmt: skip
    (root / "docs/model-card.xml").unlink()
    assert sandbox.card(load(root), LIMITS) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "cc">]><a>&b;</a>', "document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "document type"),
        (b"<a>&b;</a>", "not XML"),
        (b"<a>" * 40 + b"</a>" * 40, "too deeply"),
        (b"<a>", "not XML"),
        (b"", "not XML"),
        (b"<a>" + b"x" * 1024**2 + b"</a>", "too large"),
    ],
)
def test_a_card_that_is_more_than_text_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PackageError, match=words) as refused:
        card.read(data, "docs/model-card.xml")
    assert refused.value.fix
