"""Small packages and small series, made on the spot."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

VOLUME = {"value": "118565006", "scheme": "SCT", "meaning": "Volume"}
ML = {"value": "mL", "scheme": "UCUM", "meaning": "milliliter"}


def threshold_graph(*, above: float = 100.0, rank: int = 4) -> Any:
    """A mask of everything above a value."""
    shape = ["n", 1, *(f"d{i}" for i in range(rank - 2))]
    nodes = [
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.float32(above))),
        helper.make_node("Greater", ["x", "t"], ["b"]),
        helper.make_node("Cast", ["b"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes, "threshold",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def manifest_of(digest: str) -> dict[str, Any]:
    tensor = {"type": "image", "format": "x", "num_channels": 1, "spatial_shape": ["*", "*"]}
    return {
        "version": "1.2.3", "task": "t", "description": "d", "authors": "a", "copyright": "c",
        "intended_use": "testing",
        "network_data_format": {
            "inputs": {"x": {**tensor, "dtype": "float32"}},
            "outputs": {"mask": {**tensor, "dtype": "uint8"}},
        },
        "deployment": {
            "manifest_version": 1,
            "identity": {"id": "test.threshold", "name": "Threshold", "vendor": "test",
                         "license": "CC0-1.0", "model_sha256": digest},
            "regulatory": {"status": "research-only"},
            "input": {
                "series": [{"role": "image", "selections": [
                    {"name": "ct", "conditions": {"Modality": "CT"}}]}],
                "sop_classes": [str(CTImageStorage)],
            },
            "preprocess": [{"op": "Rescale", "to": "HU"}],
            "layout": "NCHW", "batch_axis": "slices",
            "outputs": [{"tensor": "mask", "kind": "segmentation", "decode": "none",
                         "labels": [{"index": 1, "label": "Bright"}],
                         "measurements": [{"what": VOLUME, "unit": ML, "per": "label"}]}],
            "selftest": {"layout": "onnx test_data_set", "atol": 0, "rtol": 0},
            "execution": {"providers": ["CPUExecutionProvider"], "intra_threads": 1,
                          "max_batch": 2, "timeout_s": 60, "memory_mb": 1024},
        },
    }  # fmt: skip


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    out = copy.deepcopy(base)
    for key, value in change.items():
        deep = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if deep else value
    return out


@pytest.fixture
def make_package(tmp_path: Path) -> Callable[..., Path]:
    """Write a package: make(model=..., change={...}, feeds=..., expect=...) -> its folder."""

    def make(
        model: Any = None, change: dict[str, Any] | None = None, name: str = "pkg",
        feeds: dict[str, Any] | None = None, expect: dict[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        root = tmp_path / name
        for folder in ("configs", "models", "docs", "selftest/test_data_set_0"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        model = threshold_graph() if model is None else model
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (root / "models/model.onnx").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        manifest = merge(manifest_of(digest), change or {})
        (root / "configs/metadata.json").write_text(json.dumps(manifest))
        x = np.array([[[[0, 200], [50, 101]]]], np.float32)
        feeds = {"x": x} if feeds is None else feeds
        expect = {"mask": (x > 100).astype(np.uint8)} if expect is None else expect
        for kind, tensors in (("input", feeds), ("output", expect)):
            for place, (key, value) in enumerate(tensors.items()):
                proto = numpy_helper.from_array(value, key)
                path = root / f"selftest/test_data_set_0/{kind}_{place}.pb"
                path.write_bytes(proto.SerializeToString())
        return root

    return make


def ct_image(uid: str, pixels: np.ndarray, position: tuple[float, float, float]) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, uid
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "2.25.1", "2.25.2", "2.25.3"
    ds.Modality, ds.PatientID, ds.PatientName = "CT", "P1", "Canary^Name"
    ds.ImagePositionPatient = list(position)
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [2.0, 0.5]
    ds.SliceThickness = 3
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    return ds


@pytest.fixture
def make_series(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write CT slices 3 mm apart, in shuffled order: make(array[slice,row,col] stored values)."""

    def make(
        array: np.ndarray, edit: Callable[[int, Dataset], None] | None = None, name: str = "ct"
    ) -> list[Path]:
        folder = tmp_path / name
        folder.mkdir()
        paths = []
        for index in sorted(range(len(array)), key=lambda i: (i * 7) % 5):
            ds = ct_image(f"2.25.10{index}", array[index], (-10.0, -20.0, 3.0 * index))
            if edit is not None:
                edit(index, ds)
            path = folder / f"{index}.dcm"
            ds.save_as(path, enforce_file_format=True)
            paths.append(path)
        return paths

    return make


@pytest.fixture
def onnx_module() -> Any:
    return onnx


@pytest.fixture
def threshold() -> Callable[..., Any]:
    return threshold_graph
