"""A MONAI bundle becomes a package: mapped or listed, never evaluated; its ZIP is hostile."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import monai, packing, skeleton
from models.errors import PackageError
from models.package import MANIFEST, TODO

METADATA: dict[str, Any] = {
    "schema": "https://example.org/meta_schema.json", "version": "0.5.7", "monai_version": "1.4.0",
    "task": "CT spleen segmentation", "description": "d", "authors": "MONAI team", "copyright": "c",
    "intended_use": "An example, not for diagnosis", "references": ["a paper"],
    "network_data_format": {
        "inputs": {"image": {"type": "image", "format": "hounsfield", "modality": "CT",
                             "num_channels": 1, "spatial_shape": [96, 96], "dtype": "float32",
                             "value_range": [0, 1], "is_patch_data": True,
                             "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"type": "image", "format": "segmentation", "num_channels": 2,
                             "spatial_shape": [96, 96], "dtype": "float32",
                             "channel_def": {"0": "background", "1": "spleen"}}},
    },
}  # fmt: skip
BOMB = "$__import__('os').system('touch /tmp/radseal-was-here')"
INFERENCE: dict[str, Any] = {
    "imports": ["$import glob"], "device": "$torch.device('cuda')", "evil": BOMB,
    "preprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {"_target_": "monai.transforms.ScaleIntensityRanged", "keys": "image", "a_min": -57,
         "a_max": 164, "b_min": 0, "b_max": 1, "clip": True},
        {"_target_": "SpatialPadd", "keys": "image", "spatial_size": "@roi"},
        {"_target_": "os.system", "command": "true"},
        {"_target_": "NormalizeIntensityd", "_disabled_": True},
        {"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True},
        {"_target_": "Resized", "spatial_size": [9, 9]},
        BOMB,
    ]},
    "postprocessing": {"_target_": "Compose", "transforms": [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd"},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "KeepLargestConnectedComponentd"},
    ]},
}  # fmt: skip


def first(kind: str = "segmentation") -> dict[str, Any]:
    graph = {
        "inputs": {"x": ["float32", [None, 1, None, None, None]]},
        "outputs": {"y": ["float32", [None, 2, None, None, None]]},
        "metadata": {}, "ir": 8, "opset": 17, "external": [],
    }  # fmt: skip
    return skeleton.manifest(id="a.b", vendor="v", kind=kind, graph=graph, model_sha256="0" * 64)


def test_what_can_be_mapped_is() -> None:
    found = monai.mapped(METADATA, INFERENCE, first()).manifest
    assert (found["version"], found["task"]) == ("0.5.7", "CT spleen segmentation")
    assert found["references"] == ["a paper"]
    said = found["network_data_format"]
    assert said["inputs"]["x"]["modality"] == "CT"
    assert said["outputs"]["y"]["num_channels"] == 2
    ours = found["deployment"]
    assert ours["layout"] == "NCXYZ"
    assert ours["input"]["series"][0]["selections"][0]["conditions"] == {"Modality": "CT"}
    output = ours["outputs"][0]
    assert output["labels"] == [{"index": 1, "label": "spleen"}]
    assert (output["decode"], output["activation"]) == ("argmax", "softmax")
    assert ours["preprocess"][:-1] == [
        {"op": "Orientation", "axcodes": "RAS"},
        {"op": "Spacing", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {"op": "ScaleIntensityRange", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1,
         "clip": True},
        {"op": "NormalizeIntensity", "nonzero": True},
    ]  # fmt: skip
    assert ours["preprocess"][-1]["op"].startswith(TODO)  # something is missing between them


def test_the_rest_is_listed_in_words() -> None:
    left = "\n".join(monai.mapped(METADATA, INFERENCE, first()).left)
    for words in (
        "step 6 (SpatialPad): spatial_size is an expression", "step 7 (system): is no step",
        "left out: channel_wise", "(Resize): has the mode area", "(an expression)",
        "KeepLargestConnectedComponent", "not read: device, evil, imports",
    ):  # fmt: skip
        assert words in left
    assert "__import__" not in left


def test_the_graph_rules_where_the_bundle_differs() -> None:
    said = json.loads(json.dumps(METADATA))
    said["network_data_format"]["outputs"]["pred"]["num_channels"] = 14
    found = monai.mapped(said, None, first())
    assert found.manifest["network_data_format"]["outputs"]["y"]["num_channels"] == 2
    assert any("says 14, the graph 2" in words for words in found.left)
    assert any("no configs/inference.json" in words for words in found.left)


@pytest.mark.parametrize("odd", [
    {"network_data_format": 3}, {"network_data_format": {"inputs": [], "outputs": {"a": 1}}},
    {"task": 3}, {"network_data_format": {"inputs": {"i": {"modality": []}}, "outputs": {
        "o": {"channel_def": {"x": 1, "²": "a", "1": ""}}}}},
])  # fmt: skip
@pytest.mark.parametrize("inference", [
    {}, {"preprocessing": 3}, {"preprocessing": {"transforms": 3}},
    {"preprocessing": {"transforms": [3, None, {"_target_": 3}, {"_target_": "Spacingd"}]}},
    {"preprocessing": {"transforms": [{"_target_": "Orientationd", "axcodes": {"_target_": "x"}}]}},
])  # fmt: skip
def test_odd_bundles_are_listed_not_followed(
    odd: dict[str, Any], inference: dict[str, Any]
) -> None:
    found = monai.mapped({**METADATA, **odd}, inference, first())
    assert found.left
    assert found.manifest["deployment"]["outputs"][0]["labels"]


@pytest.fixture
def bundle(tmp_path: Path, threshold: Callable[..., Any]) -> Path:
    root = tmp_path / "spleen"
    for folder in ("configs", "models", "docs"):
        (root / folder).mkdir(parents=True)
    (root / MANIFEST).write_text(json.dumps(METADATA))
    (root / "configs/inference.json").write_text(json.dumps(INFERENCE))
    (root / "models/model.onnx").write_bytes(threshold(rank=5).SerializeToString())
    (root / "models/model.pt").write_bytes(b"pickled")
    (root / "docs/README.md").write_text("spleen")
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_a_bundle_is_taken_from_a_folder_or_an_archive(
    bundle: Path, tmp_path: Path, packed: bool
) -> None:
    source = bundle
    if packed:
        source = tmp_path / "spleen.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as out:
            for path in bundle.rglob("*"):
                out.write(path, path.relative_to(bundle.parent))
    told = packing.take(source, tmp_path / "pkg", id="com.acme.spleen", vendor="Acme")
    assert any("is recorded" in words for words in told)
    assert any(words.startswith("left: ") for words in told)
    names = {p.relative_to(tmp_path / "pkg").as_posix() for p in (tmp_path / "pkg").rglob("*.*")}
    assert {"models/model.onnx", "docs/README.md", "selftest/test_data_set_0/input_0.pb"} <= names
    assert not any(name.endswith(".pt") for name in names)
    assert not Path("/tmp/radseal-was-here").exists()
    keys = {fault.key for fault in packing.open_places(tmp_path / "pkg")}
    assert "deployment.input.sop_classes[0]" in keys
    assert "task" not in keys


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: (r / "models/model.onnx").unlink(), "no ONNX model"),
        (lambda r: (r / MANIFEST).write_text("["), "not JSON"),
        (lambda r: (r / MANIFEST).write_text("[]"), "no JSON object"),
        (lambda r: (r / MANIFEST).unlink(), "missing"),
    ],
)
def test_what_is_no_bundle_makes_no_package(
    bundle: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(bundle)
    with pytest.raises(PackageError, match=words) as refused:
        packing.take(bundle, tmp_path / "pkg", id="a.b", vendor="v")
    assert refused.value.fix
    assert not (tmp_path / "pkg").exists()
