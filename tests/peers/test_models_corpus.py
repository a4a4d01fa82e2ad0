"""Real series, real models and hostile ones from the shared corpus (not part of the repository)."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError
from scipy import ndimage

from models import admission, decode, packing, sandbox, signature
from models.errors import RunFailed, SignatureError
from models.folder import file_digest
from models.package import load
from models.sandbox import Limits
from models.volume import load as load_volume

CHEST = "corpus/dev/series/ct_chest_siemens_b40f_8mm"
HEAD = "corpus/dev/series/mr_t1_head_384"
LIMITS = Limits(timeout_s=550)


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def reference(hu: np.ndarray) -> np.ndarray:
    """The lung air mask of one slice, by scipy: half size, threshold, border fill, opening."""
    half = hu.reshape(hu.shape[0] // 2, 2, hu.shape[1] // 2, 2).mean(axis=(1, 3))
    air = half < -400
    labels, _ = ndimage.label(air, np.ones((3, 3)))
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    lung = air & ~np.isin(labels, edge[edge > 0])
    # beyond the border the graph's erosion sees nothing, so the border counts as inside
    eroded = ndimage.binary_erosion(lung, np.ones((3, 3)), border_value=1)
    opened = ndimage.binary_dilation(eroded, np.ones((3, 3)))
    return np.kron(opened, np.ones((2, 2), bool))


@pytest.mark.peer
def test_lung_air_is_exact(shared: Path, tmp_path: Path) -> None:
    package = load(shared / "models/packages/ct-lung-air")
    paths = files(shared / CHEST)
    sealed = sandbox.seal(paths=paths, work=tmp_path, limits=LIMITS)
    outcome = sandbox.run(
        package=package, roles={"image": paths}, work=tmp_path, limits=LIMITS, cached=sealed.cached
    )
    assert outcome.findings.segments[0].voxels == 801_916
    assert outcome.findings.measurements[0].value == pytest.approx(2681.2, abs=0.1)
    assert outcome.mask_path is not None
    mask = np.load(outcome.mask_path)["mask"]
    volume = load_volume(paths)
    assert outcome.findings.frames == volume.frames
    assert all(np.array_equal(mask[i] == 1, reference(volume.array[i])) for i in range(len(mask)))


@pytest.mark.peer
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_brain_volumes(shared: Path, tmp_path: Path) -> None:
    package = load(shared / "models/packages/brain-subcortical-18")
    golden = json.loads((shared / "models/golden.json").read_text())
    truth = golden["model18cls on dev/series/mr_t1_head_384"]
    outcome = sandbox.run(
        package=package, roles={"image": files(shared / HEAD)}, work=tmp_path, limits=LIMITS
    )
    names = {s.number: s.label for s in outcome.findings.segments}
    assert len(names) == 17
    for measured in outcome.findings.measurements:
        assert measured.segment is not None
        want = truth[names[measured.segment]]
        allowed = 0.03 if want >= 10 else 0.10
        assert measured.value == pytest.approx(want, rel=allowed), names[measured.segment]
    voxel = outcome.findings.voxel_mm3
    assert voxel is not None
    for segment, measured in zip(
        outcome.findings.segments, outcome.findings.measurements, strict=True
    ):
        assert measured.value == pytest.approx(segment.voxels * voxel / 1000)


@pytest.mark.parametrize("name", ["ct-lung-air", "brain-subcortical-18"])
def test_the_examples_are_admitted_unchanged(shared: Path, name: str) -> None:
    package = load(shared / "models/packages" / name)
    assert [f for f in admission.check(package) if not f.warning] == []
    assert sandbox.selftest(package, LIMITS).passed


def test_every_file_of_the_corpus_decodes_to_its_recorded_pixels(shared: Path) -> None:
    """Bit for bit, in every transfer syntax; 12-bit JPEG alone has no permissive decoder."""
    rows = csv.DictReader((shared / "corpus/MANIFEST.tsv").open(), delimiter="\t")
    recorded = re.compile(r"([0-9a-f]{16})[a-z]+\d+\[")
    refused, checked = [], 0
    for row in rows:
        known = recorded.match(row["decoded_pixels"])
        if known is None or "/malformed/" in row["path"] or "/series/" in row["path"]:
            continue
        try:
            pixels, _ = decode.decode(decode.read_header(shared / "corpus" / row["path"]))
        except RunFailed:
            refused.append(Path(row["path"]).name)
            continue
        checked += 1
        assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == known[1], row["path"]
    assert refused == ["JPGExtended.dcm"]
    assert checked > 50


@pytest.mark.fault
def test_malformed_files_never_harm(shared: Path, tmp_path: Path) -> None:
    """Each malformed file, and each derived one, ends in pixels or a RunFailed."""
    limits = Limits(memory_mb=1024, timeout_s=60)
    for path in files(shared / "corpus/dev/malformed"):
        with contextlib.suppress(RunFailed):  # anything else fails the test
            assert sandbox.seal(paths=[path], work=tmp_path / path.name, limits=limits).instances


def _package(shared: Path, root: Path, graph: Path) -> Path:
    """Wrap a bare graph in a package whose manifest says what the graph says of itself."""
    base = json.loads((shared / "models/packages/ct-lung-air/configs/metadata.json").read_text())
    for folder in ("configs", "models", "selftest/test_data_set_0"):
        (root / folder).mkdir(parents=True)
    data = graph.read_bytes()
    (root / "models/model.onnx").write_bytes(data)
    base["deployment"]["identity"]["model_sha256"] = hashlib.sha256(data).hexdigest()
    if graph.stem in {"ext_ok", "ext_offset_overflow"}:
        shutil.copy(graph.with_name("real.bin"), root / "models/real.bin")
        base["deployment"]["identity"]["external_data"] = [
            {"path": "real.bin", "sha256": file_digest(root / "models/real.bin")}
        ]
    if graph.stem == "ext_symlink":
        (root / "models/link.bin").symlink_to("/etc/hostname")
    try:
        model = onnx.load_model(str(graph), load_external_data=False)
    except DecodeError:  # garbage: the manifest stays as it is
        model = None
    if model is not None and model.graph.output:
        _declare(base, model)
    (root / "configs/metadata.json").write_text(json.dumps(base))
    (root / "selftest/test_data_set_0/input_0.pb").write_bytes(b"")
    return root


def _declare(base: dict[str, Any], model: Any) -> None:
    def tensor(value: Any) -> dict[str, Any]:
        dtype = {1: "float32", 2: "uint8", 10: "float16"}.get(value.type.tensor_type.elem_type)
        dims = value.type.tensor_type.shape.dim
        channels = dims[1].dim_value if len(dims) > 1 and dims[1].dim_value else 1
        return {"dtype": dtype or "float32", "num_channels": channels, "spatial_shape": []}

    base["network_data_format"] = {
        "inputs": {i.name: tensor(i) for i in model.graph.input},
        "outputs": {o.name: tensor(o) for o in model.graph.output},
    }
    rank = len(model.graph.input[0].type.tensor_type.shape.dim)
    base["deployment"]["layout"] = "NCHW" if rank == 4 else "NCXYZ"
    base["deployment"]["outputs"] = [
        {"tensor": o.name, "kind": "multilabel", "decode": "none",
         "labels": [{"index": 0, "label": "Finding"}]} for o in model.graph.output
    ]  # fmt: skip


@pytest.fixture
def wrapped(shared: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: _package(shared, tmp_path / name, shared / f"models/hostile/{name}.onnx")


TABLE = {
    "bitflip_weight": ("digest", "is not the digest of models/model.onnx"),
    "custom_op": ("graph", "operator of the domain 'com.evil'"),
    "empty": ("graph", "holds no graph"),
    "endless_loop": ("run", "no answer within"),
    "ext_absolute": ("graph", "outside of models/"),
    "ext_missing": ("graph", "which is not listed"),
    "ext_offset_overflow": ("graph", "beyond the end of 'real.bin'"),
    "ext_symlink": ("folder", "is a symbolic link"),
    "ext_traversal": ("graph", "outside of models/"),
    "float16_input": ("tensors", "is float32, the graph says float16"),
    "garbage": ("graph", "is not an ONNX file"),
    "inf_output": ("run", "not finite"),
    "ir_99": ("graph", "IR 99 cannot be run here"),
    "memory_bomb": ("run", "more memory than it is allowed"),
    "memory_bomb_at_run": ("run", "more memory than it is allowed"),
    "nan_output": ("run", "not finite"),
    "nested_if_20": ("graph", "more than 8 deep"),
    "opset_5": ("graph", "opset 5 cannot be run here"),
    "opset_99": ("graph", "opset 99 cannot be run here"),
    "probability_over_1": ("run", "a score outside 0..1"),
    "random_output": ("graph", "draws random numbers"),
    "string_output": ("graph", "no tensor of numbers"),
    "truncated": ("graph", "is not an ONNX file"),
    "two_inputs": ("tensors", "several inputs need a role"),
    "uint8_input": ("tensors", "is float32, the graph says uint8"),
    "wrong_declared_shape": ("graph", "declares shapes that its operators do not give"),
}
"""Each hostile model: where it is stopped, and what the vendor or the department is told."""


def _disguise(root: Path, name: str) -> None:
    """Lay the trap that a model is about: a manifest that is about another file than the graph."""
    path = root / "configs/metadata.json"
    manifest = json.loads(path.read_text())
    if name == "bitflip_weight":  # signed for the clean twin
        manifest["deployment"]["identity"]["model_sha256"] = "0" * 64
    if name in {"float16_input", "uint8_input"}:
        for tensor in manifest["network_data_format"]["inputs"].values():
            tensor["dtype"] = "float32"
    path.write_text(json.dumps(manifest))


def test_the_table_names_every_hostile_model(shared: Path) -> None:
    there = {path.stem for path in (shared / "models/hostile").glob("*.onnx")}
    assert there - set(TABLE) == {"ext_ok"}


@pytest.mark.fault
@pytest.mark.parametrize("name", sorted(TABLE))
def test_hostile_models_are_stopped_with_a_sentence(
    wrapped: Callable[[str], Path], shared: Path, tmp_path: Path, name: str
) -> None:
    where, words = TABLE[name]
    root = wrapped(name)
    _disguise(root, name)
    limits = Limits(memory_mb=2048, timeout_s=6, threads=1)
    found, faults = packing.examine(root, limits)
    if where != "run":
        told = [f for f in faults if not f.warning and words in f.text]
        assert told, faults
        assert all(f.fix for f in told)
        assert name not in {"ir_99", "opset_5", "opset_99"} or "torch.onnx.export" in told[0].fix
        print(f"{name}.onnx | refused: {where} | {told[0].text}; {told[0].fix}")
        return
    assert found is not None
    assert not [f for f in faults if not f.warning], faults
    with pytest.raises(RunFailed) as failed:
        sandbox.run(
            package=found, roles={"image": files(shared / CHEST)[:2]}, work=tmp_path / "w",
            limits=limits,
        )  # fmt: skip
    assert words in failed.value.text
    print(f"{name}.onnx | contained: run ({failed.value.code}) | {failed.value.text}")


@pytest.mark.fault
def test_the_good_twin_passes_and_a_clean_model_still_works(
    wrapped: Callable[[str], Path], shared: Path
) -> None:
    _, faults = packing.examine(wrapped("ext_ok"), Limits(2048, 30))
    assert [f for f in faults if not f.warning] == []
    clean = load(shared / "models/packages/ct-lung-air")
    assert sandbox.selftest(clean, Limits(2048, 60)).passed


@pytest.mark.parametrize("name", ["ct-lung-air", "brain-subcortical-18"])
@pytest.mark.parametrize("wrong", ["byte", "more", "fewer", "key"])
def test_the_examples_are_refused_when_anything_is_another(
    shared: Path, tmp_path: Path, name: str, wrong: str
) -> None:
    """By their own signature; the key's dates are the site's (tests/unit/bridge/test_catalog)."""
    source = shared / "models/packages"
    root, key = tmp_path / name, (source / "keys/TEST-ONLY.pub.pem").read_bytes()
    shutil.copytree(source / name, root)
    assert signature.verify(root, source / f"{name}.sig", [key]).files
    graph = root / "models/model.onnx"
    if wrong == "byte":
        data = bytearray(graph.read_bytes())
        data[len(data) // 2] ^= 1
        graph.write_bytes(data)
    elif wrong == "more":
        (root / "docs/more.txt").write_text("x")
    elif wrong == "fewer":
        (root / "docs/license.txt").unlink()
    else:
        stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
        key = stranger.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    words = {"byte": "changed after signing", "more": "not signed", "fewer": "missing",
             "key": "not trusted here"}[wrong]  # fmt: skip
    with pytest.raises(SignatureError, match=words):
        signature.verify(root, source / f"{name}.sig", [key])
