"""Left stays left in every plane, measured in the SEG that a PACS stored and nowhere else.

A generated body with a block in each octant, acquired in three planes, runs always. The head MR
of the shared corpus with two learned models, axial and resliced to coronal and sagittal, takes
minutes: RADSEAL_SOAK=full.
"""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pydicom
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, SegmentationStorage
from pydicom.valuerep import DSfloat
from scipy import ndimage

from bridge.report import check, seg
from bridge.report.identity import derived_uid
from models import packing, sandbox
from models.package import Package, load
from models.sandbox import Limits
from models.volume import Volume
from models.volume import load as load_volume

pytestmark = pytest.mark.peer

made = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "reporting.py")))
HEAD = "corpus/dev/series/mr_t1_head_384"
COARSE = (1.2, 0.9, 0.9)  # mm between slices, rows, columns
LIMITS = Limits(memory_mb=16_000, timeout_s=600)
PLANES = ("axial", "coronal", "sagittal")
only_in_full = pytest.mark.skipif(
    os.environ.get("RADSEAL_SOAK") != "full", reason="minutes of inference: RADSEAL_SOAK=full"
)


@dataclass(frozen=True)
class Grid:
    """Stored voxels [slice, row, column] and the affine of their centres to LPS mm."""

    array: np.ndarray
    affine: np.ndarray

    def flipped(self, axis: int) -> Grid:
        """The same body, counted from the other end of an axis."""
        change = np.eye(4)
        change[axis, axis], change[axis, 3] = -1, self.array.shape[axis] - 1
        return Grid(np.flip(self.array, axis), self.affine @ change)

    def turned(self, *order: int) -> Grid:
        """The same body, with other axes as slices, rows and columns."""
        return Grid(np.transpose(self.array, order), self.affine[:, [*order, 3]])


def resampled(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The same body on a grid of other spacings (mm), between voxels by a straight line."""
    scale = np.array(spacing) / np.linalg.norm(grid.affine[:3, :3], axis=0)
    shape = tuple(int((n - 1) / s) + 1 for n, s in zip(grid.array.shape, scale, strict=True))
    values = ndimage.affine_transform(
        grid.array.astype(np.float32), scale, output_shape=shape, order=1, prefilter=False
    )
    return Grid(np.rint(values), grid.affine @ np.diag([*scale, 1.0]))


def resliced(grid: Grid, plane: str) -> Grid:
    """Cut an axial stack (slices to the head, rows to the back, columns to the left) anew.

    As people look at it: coronal rows run from the head down, columns to the left; sagittal rows
    from the head down, columns from the front to the back. No voxel is interpolated.
    """
    if plane == "coronal":
        return grid.flipped(0).turned(1, 0, 2)
    return grid.flipped(0).turned(2, 0, 1) if plane == "sagittal" else grid


def write(grid: Grid, folder: Path, like: Dataset, name: str) -> list[Path]:
    """Write a grid as an MR series; file names and InstanceNumbers are in no order."""
    folder.mkdir()
    affine, count = grid.affine, len(grid.array)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / spacing
    place = np.random.default_rng(len(name)).permutation(count)
    paths = []
    for k in range(count):
        image = Dataset()
        image.update({one.tag: one for one in like if one.tag.group not in (0x0002, 0x7FE0)})
        image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, derived_uid(name, str(k))
        image.SeriesInstanceUID = derived_uid(name)
        image.InstanceNumber = int(place[k]) + 1
        image.ImageOrientationPatient = [_ds(v) for v in (*cosines[:, 2], *cosines[:, 1])]
        image.ImagePositionPatient = [_ds(v) for v in affine[:3, 3] + k * affine[:3, 0]]
        image.PixelSpacing = [_ds(spacing[1]), _ds(spacing[2])]
        image.SliceThickness = image.SpacingBetweenSlices = _ds(spacing[0])
        image.Rows, image.Columns = grid.array.shape[1:]
        image.PixelData = np.ascontiguousarray(grid.array[k], "<i2").tobytes()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        paths.append(folder / f"{place[k]:04}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return sorted(paths)


def _ds(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def package_of(
    shared: Path, root: Path, graph: Path, changes: dict[str, Any], labels: list[str]
) -> Package:
    """Make a package like brain-subcortical-18 of another graph, with a recorded self-test."""
    example = shared / "models/packages/brain-subcortical-18"
    for part in ("docs", "configs"):
        shutil.copytree(example / part, root / part)
    for part in ("models", "selftest/test_data_set_0"):
        (root / part).mkdir(parents=True)
    shutil.copy(graph, root / "models/model.onnx")
    manifest = json.loads((root / "configs/metadata.json").read_text())
    identity = manifest["deployment"]["identity"]
    identity |= {"id": f"test.{root.name}", "name": root.name, "vendor": "test"}
    identity["model_sha256"] = hashlib.sha256(graph.read_bytes()).hexdigest()
    (output,) = manifest["deployment"]["outputs"]
    output |= {
        "labels": [
            {"index": k, "label": label} for k, label in enumerate(labels) if k > 0
        ],
        **changes.pop("output", {}),
    }  # fmt: skip
    manifest["network_data_format"] |= changes.pop("tensors", {})
    declared = manifest["network_data_format"]["outputs"][output["tensor"]]
    declared["channel_def"] = {str(k): label for k, label in enumerate(labels)}
    manifest["deployment"] |= changes
    (root / "configs/metadata.json").write_text(json.dumps(manifest))
    sandbox.record(root / "models/model.onnx", root / "selftest/test_data_set_0", {}, LIMITS)
    found, faults = packing.examine(root, LIMITS)
    assert [fault for fault in faults if not fault.warning] == []
    assert found is not None
    return found


@dataclass(frozen=True)
class Region:
    """What a stored SEG holds under one label."""

    millilitres: float
    centroid: np.ndarray  # LPS mm


def read_back(data: bytes) -> dict[str, Region]:
    """Measure every segment by the SEG's own geometry, nothing else known."""
    ds = pydicom.dcmread(BytesIO(data))
    shared_ = ds.SharedFunctionalGroupsSequence[0]
    measures = shared_.PixelMeasuresSequence[0]
    along = np.array(shared_.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, across = (float(v) for v in measures.PixelSpacing)
    names = {int(s.SegmentNumber): str(s.SegmentLabel) for s in ds.SegmentSequence}
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    sums = {number: np.zeros(4) for number in names}
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        corner = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        middle = corner * len(rows)
        middle = middle + along[:3] * across * columns.sum() + along[3:] * down * rows.sum()
        sums[number] += [*middle, len(rows)]
    voxel = down * across * float(measures.SpacingBetweenSlices) / 1000
    return {
        names[number]: Region(voxel * total[3], total[:3] / total[3])
        for number, total in sums.items()
    }


def stored(
    package: Package, paths: list[Path], orthanc: Any, work: Path
) -> tuple[dict[str, Region], sandbox.Outcome]:
    """Run a package, compose the SEG, store it in Orthanc, and measure what comes back."""
    outcome = sandbox.run(package=package, roles={"image": paths}, work=work, limits=LIMITS)
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    by_uid = {str(one.SOPInstanceUID): one for one in headers}
    sources = [by_uid[uid] for uid in outcome.findings.frames]
    assert outcome.mask_path is not None
    mask = np.load(outcome.mask_path, allow_pickle=False)["mask"]
    naming = made.naming(f"{package.id} {sources[0].SeriesInstanceUID}")
    composed = seg.compose(outcome.findings, mask, sources, made.MODEL, made.GATEWAY, naming)
    assert check.faults(composed, sources) == []
    written = BytesIO()
    composed.save_as(written, enforce_file_format=True)
    orthanc.post("/instances", written.getvalue())
    (data,) = orthanc.files(
        SOPInstanceUID=str(composed.SOPInstanceUID), SOPClassUID=SegmentationStorage
    )
    return read_back(data), outcome


# A generated body: eight blocks, one in each octant.

CENTRE = np.array([14.0, -9.0, 31.0])
OCTANTS = [
    f"{'RL'[n & 1]}{'SI'[n >> 1 & 1]}{'PA'[n >> 2 & 1]}" for n in range(8)
]  # as an index grows along L, I, A
TOWARDS = {"R": (0, -1), "L": (0, 1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
AWAY = np.array([13.0, 12.0, 14.0])  # mm from the centre


def _middle(octant: str, turn: np.ndarray) -> np.ndarray:
    away = np.zeros(3)
    for letter in octant:
        axis, sign = TOWARDS[letter]
        away[axis] = sign * AWAY[axis]
    return CENTRE + turn @ away


def body(turn: np.ndarray) -> Grid:
    """An axial stack, turned, of unequal spacings, with eight bright blocks in the dark."""
    shape, spacing = (31, 41, 49), np.array([2.0, 1.5, 1.25])
    axes = turn @ np.eye(3)[:, [2, 1, 0]]
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    where = np.indices(shape).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    own = (where - CENTRE) @ turn  # LPS mm along the turned body's own axes
    inside = (np.abs(np.abs(own) - AWAY) <= 5.1).all(axis=1)
    return Grid(np.where(inside, 400, 20).astype(np.int16).reshape(shape), affine)


def octants(path: Path) -> Path:
    """A graph that knows sides by place alone: bright voxels, by the octant they lie in."""
    x, y, z = np.indices((64, 64, 64)) >= 32
    which = (1 + x + 2 * y + 4 * z).astype(np.int32)[None, None]
    nodes = [
        helper.make_node("Greater", ["input", "limit"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["ones"], to=TensorProto.INT32),
        helper.make_node("Mul", ["ones", "which"], ["named"]),
        helper.make_node("Cast", ["named"], ["logits"], to=TensorProto.UINT8),
    ]
    shape = [1, 1, 64, 64, 64]
    graph = helper.make_graph(
        nodes, "octants",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.float32(0.5), "limit"),
         numpy_helper.from_array(which, "which")],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.fixture(scope="module")
def by_place(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("by_place")
    steps = [
        {"op": "Orientation", "axcodes": "LIA"},
        {"op": "Spacing", "pixdim": [1, 1, 1], "mode": "bilinear"},
        {"op": "ResizeWithPadOrCrop", "spatial_size": [64, 64, 64]},
        {"op": "ScaleIntensity"},
    ]
    tensors = {
        "outputs": {"logits": {"dtype": "uint8", "num_channels": 1, "spatial_shape": [64, 64, 64]}}
    }
    changes = {"preprocess": steps, "output": {"decode": "none"}, "tensors": tensors}
    graph = octants(folder / "octants.onnx")
    return package_of(shared, folder / "octants", graph, changes, ["none", *OCTANTS])


def _turn(degrees: float) -> np.ndarray:
    """Turn about all three axes, as a head lies in a coil."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return first @ second @ first.T @ second


@pytest.fixture
def plain_mr() -> Dataset:
    image = made.sources(Modality="MR")[0]
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    return image


@pytest.mark.parametrize("degrees", [0, 9], ids=["straight", "oblique"])
@pytest.mark.parametrize("plane", PLANES)
def test_each_octant_stays_in_its_place(
    by_place: Package, plain_mr: Dataset, orthanc: Any, tmp_path: Path, plane: str, degrees: float
) -> None:
    turn = _turn(degrees)
    grid = resliced(body(turn), plane)
    paths = write(grid, tmp_path / "series", plain_mr, f"{plane} {degrees}")
    found, _ = stored(by_place, paths, orthanc, tmp_path / "work")
    assert sorted(found) == sorted(OCTANTS)
    for octant, region in found.items():
        off = float(np.linalg.norm(region.centroid - _middle(octant, turn)))
        print(f"{plane:9} {octant} {region.millilitres:.2f} mL, {off:.2f} mm off")
        assert off < 1.0, octant


# The head.

CROPPED = [
    {"op": "Orientation", "axcodes": "LIA"},
    {"op": "Spacing", "pixdim": [1, 1, 1], "mode": "bilinear"},
    {"op": "ScaleIntensityRangePercentiles", "lower": 0, "upper": 99.9, "b_min": 0, "b_max": 1,
     "clip": True},
    {"op": "CropForeground", "threshold": 0.1, "margin": 4},
]  # fmt: skip
"""As brain-subcortical-18's, but for the size: 104 channels of 256 x 256 x 256 are 7 GB."""


@pytest.fixture(scope="module")
def planes(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Give the head as a series in a plane; axial is the corpus's own files.

    A plane called coarse has other and thicker voxels, as an acquisition of its own would.
    """
    folder, own = tmp_path_factory.mktemp("planes"), sorted((shared / HEAD).iterdir())
    volume: list[Volume] = []

    def give(plane: str) -> list[Path]:
        if plane == "axial":
            return own
        volume[:] = volume or [load_volume(own, rescale=False)]
        assert volume[0].affine is not None
        grid = resliced(Grid(volume[0].array, volume[0].affine), plane.removeprefix("coarse "))
        grid = resampled(grid, COARSE) if plane.startswith("coarse ") else grid
        like = pydicom.dcmread(own[0], stop_before_pixels=True)
        if not (folder / plane).exists():
            write(grid, folder / plane, like, plane)
        return sorted((folder / plane).iterdir())

    return give


@pytest.fixture(scope="module")
def with_sides(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    graph = shared / "models/brain_mr/model21_104class.onnx"
    hints = {p.key: p.value for p in onnx.load(str(graph)).metadata_props}
    labels = json.loads(hints["labels"])
    tensors = {
        "outputs": {
            "logits": {"dtype": "float32", "num_channels": 104, "spatial_shape": ["*", "*", "*"]}
        }
    }
    root = tmp_path_factory.mktemp("with_sides") / "aparc104"
    changes = {"preprocess": CROPPED, "tensors": tensors, "execution": {"memory_mb": 16_000}}
    return package_of(shared, root, graph, changes, labels)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "models/golden.json").read_text())
    return found


@pytest.mark.soak
@pytest.mark.timeout(1500)
@only_in_full
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_left_and_right_of_the_104_labels(
    with_sides: Package, planes: Callable[[str], list[Path]], golden: dict[str, Any],
    orthanc: Any, tmp_path: Path, plane: str,
) -> None:  # fmt: skip
    found, outcome = stored(with_sides, planes(plane), orthanc, tmp_path)
    print(f"{plane}: {len(found)} segments, {outcome.seconds:.0f} s, {outcome.peak_mb} MB")
    for name, region in sorted(found.items()):
        if name.startswith(("Left-", "ctx-lh-", "Right-", "ctx-rh-")):
            left = name.startswith(("Left-", "ctx-lh-"))
            assert (region.centroid[0] > 0) == left, (name, region.centroid)
    truth = golden["model21_104class on dev/series/mr_t1_head_384"]["centroid_RAS_mm"]
    assert len(truth) == 4
    for name, ras in truth.items():
        centroid = found[name].centroid * (-1, -1, 1)
        off = float(np.linalg.norm(centroid - ras))
        print(f"{plane:9} {name:24} RAS {np.round(centroid, 1)} golden {ras}: {off:.2f} mm off")
        assert off <= 3.0, name


@pytest.mark.soak
@pytest.mark.timeout(1500)
@only_in_full
def test_volumes_are_the_same_in_every_plane(
    shared: Path, planes: Callable[[str], list[Path]], orthanc: Any, tmp_path: Path
) -> None:
    """Cut anew without loss they are equal; of thicker voxels what is small may differ by more."""
    package = load(shared / "models/packages/brain-subcortical-18")
    found = {
        plane: stored(package, planes(plane), orthanc, tmp_path / plane)[0]
        for plane in (*PLANES, "coarse sagittal")
    }
    assert {len(regions) for regions in found.values()} == {17}
    for name, axial in found["axial"].items():
        for plane in (*PLANES[1:], "coarse sagittal"):
            other = found[plane][name]
            share = other.millilitres / axial.millilitres - 1
            off = float(np.linalg.norm(other.centroid - axial.centroid))
            print(f"{name:28} {axial.millilitres:7.2f} mL, {plane} {share:+.2%}, {off:.2f} mm off")
            small = plane.startswith("coarse") and axial.millilitres < 5
            assert abs(share) <= (0.15 if small else 0.05), (name, plane)
            assert off < 1.5, (name, plane)
