"""A model's own known answers, in the layout of the ONNX test suite.

    selftest/test_data_set_N/input_K.pb, output_K.pb    serialized TensorProto

A tensor carries its name, or else K counts the graph's inputs or outputs. It
is within tolerance where |got - want| <= atol + rtol * |want|.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from models.errors import RunFailed
from models.package import Package
from models.runtime import Session, open_session, opened

__all__ = ["data_sets", "generated", "inputs", "record", "run"]

Array = npt.NDArray[Any]
_FOLDER: Final = "selftest"
_MAX_TENSOR: Final = 1024**3


def data_sets(package: Package) -> list[str]:
    """Names of the package's test data sets, in order."""
    names = {Path(f).parts[1] for f in package.files if f.startswith(f"{_FOLDER}/test_data_set_")}
    return sorted(names, key=lambda n: (len(n), n))


def _tensors(folder: Path, kind: str, names: list[str]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for number, path in enumerate(sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: p.name)):
        if path.stat().st_size > _MAX_TENSOR:
            raise RunFailed("bad_model", f"{path.name} is too large")
        proto = onnx.TensorProto()
        try:
            proto.ParseFromString(path.read_bytes())
            if proto.data_location == onnx.TensorProto.EXTERNAL:
                raise RunFailed("bad_model", f"{path.name} refers to another file")
            value = numpy_helper.to_array(proto)
        except (DecodeError, ValueError, TypeError) as error:
            raise RunFailed("bad_model", f"{path.name} is not a tensor") from error
        counted = names[number] if number < len(names) else ""
        name = proto.name if proto.name in names else counted
        if not name:
            raise RunFailed("bad_model", f"{path.name} belongs to no {kind} of the graph")
        found[name] = value
    if not found:
        raise RunFailed("bad_model", f"{folder.name} holds no {kind}_*.pb")
    return found


def _difference(got: Array, want: Array, atol: float, rtol: float) -> str | None:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {got.dtype}{list(got.shape)}, recorded is {want.dtype}{list(want.shape)}"
    off = np.abs(got.astype(np.float64) - want.astype(np.float64))
    worst = float((off - (atol + rtol * np.abs(want.astype(np.float64)))).max(initial=0.0))
    return f"differs by up to {float(off.max()):.3g}" if worst > 0 else None


def _one(
    session: Session, folder: Path, atol: float, rtol: float, *, repeatable: bool
) -> str | None:
    feeds = _tensors(folder, "input", list(session.inputs))
    wanted = _tensors(folder, "output", list(session.outputs))
    got = session.run(feeds, list(wanted))
    for name, want in wanted.items():
        wrong = _difference(got[name], want, atol, rtol)
        if wrong:
            return f"{folder.name}: {name} {wrong} (allowed: atol {atol:g}, rtol {rtol:g})"
    again = session.run(feeds, list(wanted)) if repeatable else {}
    for name, value in again.items():
        if value.tobytes() != got[name].tobytes():
            return f"{folder.name}: {name} is another one when the same input is run again"
    return None


def inputs(package: Package, session: Session) -> dict[str, Array]:
    """Give the first data set's inputs; none where the package has no data. Raises RunFailed."""
    for name in data_sets(package)[:1]:
        return _tensors(package.root / _FOLDER / name, "input", list(session.inputs))
    return {}


def run(package: Package, threads: int) -> tuple[bool, str]:
    """Run all data sets; return (passed, sentence). Raises RunFailed when the graph cannot run.

    The first set is run twice: the same input must give the same bytes, unless the manifest
    says `execution.deterministic: false`.
    """
    sets = data_sets(package)
    if not sets:
        return False, "the package has no selftest/test_data_set_N"
    rules = package.deployment["selftest"]
    session = opened(package, threads, alone=True)
    for name in sets:
        folder = package.root / _FOLDER / name
        wrong = _one(
            session, folder, float(rules.get("atol", 0)), float(rules.get("rtol", 0)),
            repeatable=name == sets[0] and package.execution.get("deterministic", True) is True,
        )  # fmt: skip
        if wrong:
            return False, wrong
    return True, f"{len(sets)} of {len(sets)} data sets repeated within tolerance"


_SIDES: Final = (32, 64, 16, 128, 224, 256, 512)
_RANGES: Final[dict[str, tuple[float, float]]] = {
    "unit": (0.0, 1.0), "byte": (0.0, 255.0), "hu": (-1024.0, 1024.0),
}  # fmt: skip


def generated(shape: Sequence[int], dtype: str, kind: str) -> Array:
    """Make an input of a slope and a pattern, the same on every machine; `kind`: unit, byte, hu."""
    low, high = _RANGES[kind]
    count = int(np.prod(shape))
    steps = np.arange(count, dtype=np.uint64)
    pattern = (steps * np.uint64(2_654_435_761) % np.uint64(65_536)).astype(np.float64) / 65_535
    slope = np.linspace(0, 1, count)
    return (low + (high - low) * (0.7 * slope + 0.3 * pattern)).reshape(shape).astype(dtype)


def record(model: Path, folder: Path, threads: int, kinds: Mapping[str, str]) -> list[int]:
    """Run a bare graph on a generated input; write input_K.pb and output_K.pb into `folder`.

    Dimensions that the graph leaves open become 1 for batch and channel, else the first of a
    few usual sizes that the graph takes. Raises RunFailed of the last size tried.
    """
    session = open_session(model, providers=["CPUExecutionProvider"], threads=threads, volume=True)
    for name, (dtype, _) in session.inputs.items():
        if "(" in dtype:  # the runtime's word for what is no tensor of numbers
            raise RunFailed("bad_model", f"input {name[:64]} is no tensor of numbers")
    failed: RunFailed | None = None
    for side in _SIDES:
        feeds = {
            name: generated(_sized(shape, side), dtype, kinds.get(name, "unit"))
            for name, (dtype, shape) in session.inputs.items()
        }
        try:
            got = session.run(feeds, list(session.outputs))
        except RunFailed as error:
            failed = error
            if error.code != "bad_model":  # another size would not mend it
                break
            continue
        for kind, arrays in (("input", feeds), ("output", got)):
            for number, (name, value) in enumerate(arrays.items()):
                proto = numpy_helper.from_array(value, name)
                (folder / f"{kind}_{number}.pb").write_bytes(proto.SerializeToString())
        return list(next(iter(feeds.values())).shape)
    raise failed or RunFailed("bad_model", "the graph has no input")


def _sized(shape: Sequence[Any], side: int) -> list[int]:
    """Put a number in place of each open dimension; a volume gets half the side."""
    spatial = side if len(shape) <= 4 else max(side // 2, 8)
    return [
        int(d) if isinstance(d, int) and d > 0 else (1 if place < 2 else spatial)
        for place, d in enumerate(shape)
    ]
