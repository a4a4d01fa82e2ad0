"""The child: what it returns, and that its death is only an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from models import cell, sandbox
from models.errors import RunFailed
from models.package import load
from models.sandbox import Limits

LIMITS = Limits(memory_mb=1024, timeout_s=60, threads=1)
STORED = (np.arange(3 * 8 * 8, dtype=np.uint16).reshape(3, 8, 8) * 10) + 500


def test_a_run_from_files_to_findings(
    make_package: Callable[..., Path], make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    package, paths, work = load(make_package()), make_series(STORED), tmp_path / "work"
    sealed = sandbox.seal(paths=paths, work=work, limits=LIMITS)
    assert sealed.decoders == {"native": 3}
    assert len(sealed.input_digest) == 64
    outcome = sandbox.run(
        package=package, roles={"image": paths}, work=work, limits=LIMITS,
        cached=sealed.cached, warnings=("unknown age",),
    )  # fmt: skip
    bright = STORED.astype(int) - 1024 > 100
    assert outcome.findings.segments[0].voxels == bright.sum()
    assert outcome.findings.warnings == ("unknown age",)
    assert outcome.mask_path is not None
    assert np.array_equal(np.load(outcome.mask_path)["mask"] == 1, bright)
    with np.load(outcome.preview_path) as preview:
        assert preview["image"].dtype == preview["labels"].dtype == np.uint8
    assert outcome.runtime["name"] == "onnxruntime"
    assert outcome.runtime["providers"] == ["CPUExecutionProvider"]
    assert outcome.peak_mb > 20
    assert not list(work.glob(".*.answer"))


def test_a_stale_cache_is_not_used(
    make_package: Callable[..., Path], make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    package, paths, work = load(make_package()), make_series(STORED), tmp_path / "work"
    sealed = sandbox.seal(paths=paths, work=work, limits=LIMITS)
    for spoiled in sealed.cached.glob("*.npy"):
        np.save(spoiled, np.zeros((1, 8, 8), np.uint16))
    outcome = sandbox.run(
        package=package, roles={"image": paths}, work=work, limits=LIMITS, cached=sealed.cached
    )
    assert outcome.findings.segments[0].voxels == (STORED.astype(int) - 1024 > 100).sum()


def test_the_same_files_are_decoded_once(
    make_series: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, first, second = make_series(STORED), tmp_path / "first", tmp_path / "second"
    sealed = sandbox.seal(paths=paths, work=first, limits=LIMITS)
    asked = []
    ask = sandbox._ask
    monkeypatch.setattr(sandbox, "_ask", lambda *args: asked.append(args[0]) or ask(*args))
    for beside in ([tmp_path / "nothing", first], []):  # the second time from its own folder
        again = sandbox.seal(paths=paths[::-1], work=second, limits=LIMITS, beside=beside)
        assert again.input_digest == sealed.input_digest
        assert sorted(again.instances) == sorted(sealed.instances)
        assert again.decoders == sealed.decoders
    assert not asked
    assert {p.stat().st_ino for p in again.cached.iterdir()} == {
        p.stat().st_ino for p in sealed.cached.iterdir()
    }
    sandbox.seal(paths=paths[:2], work=tmp_path / "fewer", limits=LIMITS, beside=[first])
    os.utime(paths[0])
    sandbox.seal(paths=paths, work=tmp_path / "touched", limits=LIMITS, beside=[first])
    (first / "sealed.json").write_text("{")
    sandbox.seal(paths=paths, work=first, limits=LIMITS)
    assert asked == ["seal"] * 3


def test_two_routes_at_once_decode_once(
    make_series: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, works, asked = make_series(STORED), [tmp_path / "a", tmp_path / "b"], []
    ask = sandbox._ask
    monkeypatch.setattr(sandbox, "_ask", lambda *args: asked.append(args[0]) or ask(*args))
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(
                lambda work: sandbox.seal(paths=paths, work=work, limits=LIMITS, beside=works),
                works,
            )
        )
    assert asked == ["seal"]
    assert found[0].input_digest == found[1].input_digest
    assert all(len(list(one.cached.glob("*.npy"))) == 3 for one in found)


def test_the_input_digest(make_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    def digest(edit: Callable[[int, Dataset], None] | None, name: str) -> str:
        paths = make_series(STORED, edit, name)
        return sandbox.seal(paths=paths, work=tmp_path / f"w{name}", limits=LIMITS).input_digest

    def rename(_i: int, ds: Dataset) -> None:
        ds.PatientName, ds.PatientID, ds.AccessionNumber = "Other^Name", "P2", "A1"

    def packed(_i: int, ds: Dataset) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)

    def moved(index: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [0, 0, 3 * index]

    def other(_i: int, ds: Dataset) -> None:
        ds.PixelData = bytes(len(ds.PixelData))

    base = digest(None, "a")
    assert digest(rename, "b") == base
    assert digest(packed, "c") == base
    assert digest(moved, "d") != base
    assert digest(other, "e") != base


def test_pixels_of_one_file(make_series: Callable[..., list[Path]], tmp_path: Path) -> None:
    first, second, _ = make_series(STORED)
    assert sandbox.pixel_digest(first, LIMITS) != sandbox.pixel_digest(second, LIMITS)
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(os.urandom(500))
    with pytest.raises(RunFailed) as failed:
        sandbox.pixel_digest(rubbish, LIMITS)
    assert failed.value.code == "undecodable"


def test_a_corrupt_rle_frame_is_only_an_error(make_series: Callable[..., list[Path]]) -> None:
    def corrupt(_i: int, ds: Dataset) -> None:
        ds.compress(RLELossless, generate_instance_uid=False)
        data = bytearray(ds.PixelData)
        data[16:80] = b"\xff" * 64
        ds.PixelData = bytes(data)

    with pytest.raises(RunFailed) as failed:
        sandbox.pixel_digest(make_series(STORED[:1], corrupt)[0], LIMITS)
    assert failed.value.code == "undecodable"


def test_selftests(make_package: Callable[..., Path]) -> None:
    good = sandbox.selftest(load(make_package()), LIMITS)
    assert good.passed
    bad = load(make_package(name="bad", expect={"mask": np.ones((1, 1, 2, 2), np.uint8)}))
    told = sandbox.selftest(bad, LIMITS)
    assert not told.passed
    assert "differs by up to 1" in told.text


def test_a_package_changed_after_registration(
    make_package: Callable[..., Path], make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    package = load(make_package())
    (package.root / "docs/README.md").write_text("changed")
    with pytest.raises(RunFailed, match="not the one that was registered"):
        sandbox.run(package=package, roles={"image": make_series(STORED)}, work=tmp_path,
                    limits=LIMITS)  # fmt: skip


def _model(nodes: list[Any], *, out: int = TensorProto.UINT8) -> Any:
    shape = ["n", 1, "h", "w"]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mask", out, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def endless() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    yes = numpy_helper.from_array(np.array(True))
    return _model([
        helper.make_node("Constant", [], ["t"], value=yes),
        helper.make_node("Loop", ["", "t", "x"], ["y"], body=body),
        helper.make_node("Cast", ["y"], ["mask"], to=TensorProto.UINT8),
    ])  # fmt: skip


def bomb() -> Any:
    shape = numpy_helper.from_array(np.array([1, 1, 100_000, 100_000], np.int64))
    return _model([
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=1),
        helper.make_node("Expand", ["m", "s"], ["y"]),
        helper.make_node("Cast", ["y"], ["mask"], to=TensorProto.UINT8),
    ])  # fmt: skip


def not_a_number() -> Any:
    zero = numpy_helper.from_array(np.float32(0))
    return _model([
        helper.make_node("Constant", [], ["z"], value=zero),
        helper.make_node("Mul", ["x", "z"], ["o"]),
        helper.make_node("Div", ["o", "o"], ["mask"]),
    ], out=TensorProto.FLOAT)  # fmt: skip


def wrong_shape() -> Any:
    shape = numpy_helper.from_array(np.array([1, 1, 1, -1], np.int64))
    return _model([
        helper.make_node("Constant", [], ["s"], value=shape),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
        helper.make_node("Cast", ["y"], ["mask"], to=TensorProto.UINT8),
    ])  # fmt: skip


FLOATS = {"network_data_format": {"outputs": {"mask": {"dtype": "float32"}}}}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("model", "change", "code"),
    [
        (endless, {}, "timeout"),
        (bomb, {}, "memory"),
        (not_a_number, FLOATS, "not_finite"),
        (wrong_shape, {}, "bad_output"),
    ],
    ids=["endless", "bomb", "nan", "shape"],
)
def test_hostile_models_are_contained(
    make_package: Callable[..., Path], make_series: Callable[..., list[Path]], tmp_path: Path,
    model: Callable[[], Any], change: dict[str, Any], code: str,
) -> None:  # fmt: skip
    package = load(make_package(model=model(), change=change))
    start = time.monotonic()
    with pytest.raises(RunFailed) as failed:
        sandbox.run(
            package=package, roles={"image": make_series(STORED)}, work=tmp_path / "w",
            limits=Limits(memory_mb=1024, timeout_s=8, threads=1),
        )  # fmt: skip
    assert failed.value.code == code
    assert time.monotonic() - start < 30


@pytest.mark.fault
def test_a_child_killed_from_outside(
    make_series: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell, "BOOT", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(RunFailed) as failed:
        sandbox.seal(paths=make_series(STORED), work=tmp_path / "w", limits=LIMITS)
    assert failed.value.code == "crashed"


@pytest.mark.fault
def test_the_child_has_no_network_no_core_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = (
        "import sys, json, os; sys.path.append(sys.argv[1]); from models import child\n"
        "r = json.load(sys.stdin); v = child._Voice(r['answer'])\n"
        "off = child._confine(r['limits'], r['parent'])\n"
        "import resource, socket\n"
        "n = [n for _, n in socket.if_nameindex() if n != 'lo']\n"
        "v.say(ok={'off': off, 'cards': n, 'core': resource.getrlimit(resource.RLIMIT_CORE)[0],\n"
        " 'env': sorted(os.environ), 'nnp': open('/proc/self/status').read()\n"
        " .split('NoNewPrivs:')[1].split()[0]})\n"
    )
    monkeypatch.setenv("SECRET_TOKEN", "canary")
    monkeypatch.setattr(cell, "BOOT", probe)
    told = sandbox._ask("seal", {}, tmp_path, LIMITS)
    assert told["core"] == 0
    assert told["nnp"] == "1"
    assert "SECRET_TOKEN" not in told["env"]
    assert told["cards"] == [] or not told["off"]


@pytest.fixture
def nursery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cell, "_keeping", False)
    monkeypatch.setattr(cell, "_spare", None)
    yield
    if cell._spare is not None:
        cell.end(cell._spare.result())


THREADED = replace(LIMITS, threads=None)


@pytest.mark.usefixtures("nursery")
def test_a_cell_started_ahead_serves_one_task_and_the_next_waits(
    make_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    cell.keep_spare()
    cell.keep_spare()
    paths = make_series(STORED)
    seen = []
    for number in range(3):
        assert cell._spare is not None
        seen.append(cell._spare.result())
        sandbox.seal(paths=paths, work=tmp_path / str(number), limits=THREADED)
        assert seen[-1].returncode is not None
    assert len({process.pid for process in seen}) == 3
    sandbox.seal(paths=paths, work=tmp_path / "other", limits=LIMITS)  # of other threads: fresh
    assert cell._spare.result().poll() is None


@pytest.mark.usefixtures("nursery")
@pytest.mark.fault
def test_a_spare_that_died_is_no_loss(
    make_series: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell.keep_spare()
    assert cell._spare is not None
    cell.end(cell._spare.result())
    paths = make_series(STORED)
    assert sandbox.seal(paths=paths, work=tmp_path / "a", limits=THREADED).instances
    dying = cell._spare.result()
    monkeypatch.setattr(dying, "poll", lambda: None)  # between the look and the task
    os.killpg(dying.pid, signal.SIGKILL)
    assert sandbox.seal(paths=paths, work=tmp_path / "b", limits=THREADED).instances


@pytest.mark.usefixtures("nursery")
@pytest.mark.fault
def test_no_spare_outlives_whoever_started_it() -> None:
    code = (
        "import os, signal; from models import cell; cell.keep_spare()\n"
        "print(cell._spare.result().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    home = Path(sandbox.__file__).resolve().parent.parent
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False
    )
    spare, until = Path("/proc") / told.stdout.strip(), time.monotonic() + 30
    while spare.exists() and "Z" not in (spare / "stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_answer_of_an_attempt_that_died_is_not_this_ones(
    make_series: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".seal.answer").write_text('{"ok": {}}\n')
    monkeypatch.setattr(cell, "BOOT", "import os; os._exit(3)")
    with pytest.raises(RunFailed, match="exit code 3"):
        sandbox.seal(paths=make_series(STORED), work=tmp_path, limits=LIMITS)
