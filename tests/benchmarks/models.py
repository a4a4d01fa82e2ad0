"""Measure: a model through its warm child, against bare onnxruntime on the same array.

    python tests/benchmarks/models.py [--rounds 20] [--studies 20]

Bare and wrapped take turns in one run, with the same threads, so that a busy machine slows
both. Wrapped is what a study's child does with a prepared tensor: into a sealed memory file,
checked, through the model's process and checked back. `volume` is a 3-D segmentation of fixed
size (a stack of convolutions); `chest X-rays` is the whole way, decode to findings, in cells.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from models import cell, sandbox, shared, warm  # noqa: E402
from models.package import Package, load  # noqa: E402

LIMITS = sandbox.Limits(memory_mb=3072, timeout_s=120)
THREADS = len(os.sched_getaffinity(0))


class Graph:
    """An ONNX graph of convolutions with weights by chance, always the same ones."""

    def __init__(self, dims: int) -> None:
        self._dims, self._random = dims, np.random.default_rng(4)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, *shape: int) -> str:
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.01
        name = f"w{len(self.weights)}"
        values = (self._random.standard_normal(shape) * scale).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def add(self, op: str, inputs: list[str], name: str = "", **keys: Any) -> str:
        name = name or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **keys))
        return name

    def conv(self, x: str, fed: int, out: int, size: int, stride: int = 1) -> str:
        shape = [size] * self._dims
        weights = [self.weight(out, fed, *shape), self.weight(out)]
        pads = [size // 2] * (2 * self._dims)
        return self.add("Conv", [x, *weights], kernel_shape=shape, pads=pads,
                        strides=[stride] * self._dims)  # fmt: skip

    def save(self, fed: list[Any], out: list[Any]) -> bytes:
        graph = helper.make_graph(
            self.nodes, "bench", [helper.make_tensor_value_info("x", TensorProto.FLOAT, fed)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)], self.weights,
        )  # fmt: skip
        opset = [helper.make_opsetid("", 17)]
        model: bytes = helper.make_model(
            graph, opset_imports=opset, ir_version=8
        ).SerializeToString()
        return model


def resnet18() -> bytes:
    """ResNet18's shape and size (11.7 million weights) without its training."""
    g = Graph(2)
    x = g.add("Relu", [g.conv("x", 1, 64, 7, 2)])
    x = g.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    fed = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and out > 64 else 1
            y = g.add("Relu", [g.conv(x, fed, out, 3, stride)])
            y = g.conv(y, out, out, 3)
            if stride > 1:
                x = g.conv(x, fed, out, 1, stride)
            x, fed = g.add("Relu", [g.add("Add", [x, y])]), out
    x = g.add("Flatten", [g.add("GlobalAveragePool", [x])])
    x = g.add("Gemm", [x, g.weight(1000, 512), g.weight(1000)], transB=1)
    x = g.add("Gemm", [x, g.weight(1, 1000), g.weight(1)], transB=1)
    g.add("Sigmoid", [x], "y")
    return g.save(["n", 1, 224, 224], ["n", 1])


def volume(side: int) -> bytes:
    """A 3-D segmentation of one mask: five convolutions of five channels, as MeshNet's."""
    g, x, fed = Graph(3), "x", 1
    for _ in range(5):
        x, fed = g.add("Relu", [g.conv(x, fed, 5, 3)]), 5
    g.add("Sigmoid", [g.conv(x, 5, 1, 1)], "y")
    return g.save([1, 1, side, side, side], [1, 1, side, side, side])


def package(root: Path, name: str, model: bytes, flat: bool, side: int) -> Package:
    """Write a package around a graph."""
    folder = root / name
    for part in ("configs", "models", "docs", "selftest/test_data_set_0"):
        (folder / part).mkdir(parents=True)
    (folder / "models/model.onnx").write_bytes(model)
    shape = [side, side] if flat else [side] * 3
    tensor = {"type": "image", "format": "x", "num_channels": 1, "dtype": "float32"}
    code = {"value": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"}
    label = {"index": 0 if flat else 1, "label": "Found", "finding": code}
    output = {"tensor": "y", "labels": [label], "operating_points": [
        {"name": "default", "threshold": 0.5, "default": True}]}  # fmt: skip
    kind = {"kind": "classification", "activation": "none"}
    if not flat:
        del label["finding"]
        kind = {"kind": "segmentation", "decode": "threshold"}
    manifest = {
        "version": "1.0.0", "task": "t", "description": "d", "authors": "a", "copyright": "c",
        "intended_use": "benchmark",
        "network_data_format": {
            "inputs": {"x": {**tensor, "spatial_shape": shape}},
            "outputs": {"y": {**tensor, "spatial_shape": [] if flat else shape}},
        },
        "deployment": {
            "manifest_version": 1,
            "identity": {"id": f"bench.{name}", "name": name, "vendor": "bench",
                         "license": "CC0-1.0", "model_sha256": hashlib.sha256(model).hexdigest()},
            "regulatory": {"status": "research-only"},
            "input": {"series": [{"role": "image", "selections": [
                {"name": "all", "conditions": {"Modality": "DX" if flat else "CT"}}]}],
                "sop_classes": [str(DigitalXRayImageStorageForPresentation)]},
            "preprocess": [{"op": "Resize", "spatial_size": [side] * (2 if flat else 3)},
                           {"op": "NormalizeIntensity"}],
            "layout": "NCHW" if flat else "NCDHW",
            **({"batch_axis": "slices"} if flat else {}),
            "outputs": [{**output, **kind}],
            "selftest": {"layout": "onnx test_data_set", "atol": 1e-4, "rtol": 1e-4},
            "execution": {"providers": ["CPUExecutionProvider"], "intra_threads": THREADS,
                          "max_batch": 1, "timeout_s": 120, "memory_mb": 3072},
        },
    }  # fmt: skip
    (folder / "configs/metadata.json").write_text(json.dumps(manifest))
    zero = numpy_helper.from_array(np.zeros([1, 1, *shape], np.float32), "x")
    (folder / "selftest/test_data_set_0/input_0.pb").write_bytes(zero.SerializeToString())
    return load(folder)


def _bare(found: Package) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.enable_cpu_mem_arena = str(found.deployment["layout"]) == "NCHW"
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(found.model_path), options, providers=["CPUExecutionProvider"]
    )


def _clocked(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _wrapped(graph: warm.Graph, array: Any) -> Any:
    file, rows = shared.put({"x": array})
    ran = graph.run(file, graph.checked(file, rows), time.monotonic() + 120)
    os.close(file)
    return shared.view(ran.file, ran.table)["y"]


def ratio(found: Package, array: Any, rounds: int) -> tuple[float, float]:
    """Medians of bare and wrapped, in turns; refuses to compare what is not equal."""
    session, graph = _bare(found), warm.Graph(found, LIMITS)
    wanted = session.run(["y"], {"x": array})[0]
    if not np.array_equal(wanted, _wrapped(graph, array)):
        raise SystemExit("wrapped and bare do not give the same numbers")
    bare, wrapped = [], []
    for _ in range(rounds):
        bare.append(_clocked(lambda: session.run(["y"], {"x": array})))
        wrapped.append(_clocked(lambda: _wrapped(graph, array)))
    graph.leave()
    return statistics.median(bare), statistics.median(wrapped)


def _image(path: Path, number: int, rows: int, modality: str, place: float | None) -> Path:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = DigitalXRayImageStorageForPresentation
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = kind
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.{number + 1}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "2.25.1", "2.25.2", modality
    ds.Rows = ds.Columns = rows
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    if place is not None:
        ds.ImagePositionPatient, ds.PixelSpacing = [0, 0, place], [1, 1]
        ds.ImageOrientationPatient, ds.FrameOfReferenceUID = [1, 0, 0, 0, 1, 0], "2.25.3"
    noise = np.random.default_rng(number).integers(0, 4096, (rows, rows), np.uint16)
    ds.PixelData = noise.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def throughput(root: Path, found: Package, studies: int) -> float:
    """Chest X-rays of 2,000 x 2,000 an hour, decode to findings, two at a time."""
    paths = [_image(root / f"cxr{n}.dcm", n, 2000, "DX", None) for n in range(studies)]
    cell.keep_spare()

    def one(path: Path) -> None:
        work = root / f"work-{path.stem}"
        sealed = sandbox.seal(paths=[path], work=work, limits=LIMITS)
        sandbox.run(package=found, roles={"image": [path]}, work=work, limits=LIMITS,
                    cached=sealed.cached)  # fmt: skip

    one(paths[0])
    with ThreadPoolExecutor(2) as pool:
        seconds = _clocked(lambda: list(pool.map(one, paths[1:])))
    return (studies - 1) / seconds * 3600


def decoded_once(root: Path) -> tuple[float, float]:
    """Seconds to seal a CT of 128 images for the first model and for a second one."""
    paths = [_image(root / f"ct{n}.dcm", n, 512, "CT", n) for n in range(128)]
    first, second = root / "first", root / "second"

    def seal(work: Path) -> Callable[[], Any]:
        return lambda: sandbox.seal(paths=paths, work=work, limits=LIMITS, beside=[first])

    return _clocked(seal(first)), _clocked(seal(second))


def resident(found: Package, array: Any) -> tuple[int, int, int, int]:
    """MB of the warm child before a 3-D run, at its peak and after it; then of this process."""
    graph = warm.Graph(found, LIMITS)
    graph.warm_up()
    process = graph._process
    before = warm._memory(process, "VmRSS")
    _wrapped(graph, array)
    ours = (
        warm._memory(None, "VmRSS")
        or int(
            next(
                line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmRSS")
            )
        )
        // 1024
    )
    found_now = before, graph.peak_mb, warm._memory(process, "VmRSS"), ours
    graph.leave()
    return found_now


def main() -> None:
    """Print a line for each measure, and its reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--side", type=int, default=128)
    asked = parser.parse_args()
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(prefix="radseal-bench-") as folder:
        root, side = Path(folder), asked.side
        flat = package(root, "resnet18", resnet18(), True, 224)
        cube = package(root, "volume", volume(side), False, side)
        image = random.standard_normal((1, 1, 224, 224), np.float32)
        block = random.standard_normal((1, 1, side, side, side), np.float32)
        bare, wrapped = ratio(flat, image, asked.rounds)
        print(f"224 x 224, {flat.model_path.stat().st_size / 1e6:.0f} MB: bare {bare * 1e3:.1f} ms,"
              f" wrapped {wrapped * 1e3:.1f} ms, ratio {wrapped / bare:.2f}"
              f" (reach <= {bare * 1150 + 2:.1f} ms)")  # fmt: skip
        bare, wrapped = ratio(cube, block, max(asked.rounds // 4, 3))
        print(f"{side} cubed: bare {bare:.3f} s, wrapped {wrapped:.3f} s, ratio"
              f" {wrapped / bare:.3f} (reach <= 1.10)")  # fmt: skip
        before, peak, after, ours = resident(cube, block)
        print(f"RSS of the model's child: {before} MB, at its peak {peak} MB, after the run"
              f" {after} MB; of the service's side {ours} MB")  # fmt: skip
        first, second = decoded_once(root)
        print(f"two models on one CT: sealed in {first:.2f} s, for the second {second:.3f} s")
        sandbox.keep_warm([flat], LIMITS)
        print(f"chest X-rays an hour: {throughput(root, flat, asked.studies):.0f} (reach 1000)")
        sandbox.keep_warm([], LIMITS)


if __name__ == "__main__":
    main()
