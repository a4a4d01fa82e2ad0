"""ONNX Runtime, and nowhere else: sessions with written-out settings, checked in and out.

Sessions are made from a path, never from bytes: from bytes, external tensors
would be read relative to the current directory. Providers are named; a session
that silently fell back to another one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from models.errors import RunFailed
from models.machine import cpu_name
from models.package import Package

__all__ = ["Session", "open_session", "opened", "runtime_name"]

Array = npt.NDArray[Any]
_DTYPES: Final = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int16)": "int16",
    "tensor(uint16)": "uint16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}  # fmt: skip
_OPTIMISATION: Final = "all"


def _ort() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise RunFailed("bad_model", "onnxruntime is not installed") from error
    return onnxruntime


def runtime_name(providers: Sequence[str]) -> dict[str, Any]:
    """Name what ran the model: runtime, version, providers, CPU. Outputs repeat only per these."""
    return {
        "name": "onnxruntime",
        "version": str(_ort().__version__),
        "providers": list(providers),
        "cpu": cpu_name(),
    }


def _failed(error: BaseException) -> RunFailed:
    text = str(error)
    if "bad_alloc" in text or "allocat" in text.lower():
        return RunFailed("memory", "the model needs more memory than it is allowed")
    return RunFailed("bad_model", f"the runtime refused the model ({type(error).__name__})")


class Session:
    """One loaded graph. `run` may be called from several threads."""

    def __init__(self, session: Any, threads: int) -> None:
        self._session = session
        self.providers = tuple(session.get_providers())
        self._threads = threads
        self.inputs = {i.name: (_DTYPES.get(i.type, i.type), i.shape) for i in session.get_inputs()}
        self.outputs = {
            o.name: (_DTYPES.get(o.type, o.type), o.shape) for o in session.get_outputs()
        }

    def facts(self) -> dict[str, Any]:
        """Name what runs this graph, with its settings, as a leaf says it."""
        settings = {"threads": self._threads, "optimisation": _OPTIMISATION}
        return {**runtime_name(self.providers), **settings}

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """Run once. Raises RunFailed for a wrong or not finite input or output."""
        for name, array in feeds.items():
            _check_input(name, array, self.inputs)
        try:
            values = self._session.run(list(wanted), dict(feeds))
        except MemoryError as error:
            raise RunFailed("memory", "the model needs more memory than it is allowed") from error
        except _errors() as error:
            raise _failed(error) from error
        found = dict(zip(wanted, values, strict=True))
        for name, value in found.items():
            _check_output(name, value)
        return found


def _errors() -> tuple[type[BaseException], ...]:
    """List the exceptions ONNX Runtime raises: its own tree and plain ones from the binding."""
    state = _ort().capi.onnxruntime_pybind11_state
    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _check_input(name: str, array: Array, declared: Mapping[str, tuple[str, Any]]) -> None:
    if name not in declared:
        raise RunFailed("bad_model", f"the graph has no input {name[:64]}")
    dtype, shape = declared[name]
    if array.dtype != np.dtype(dtype):
        raise RunFailed("bad_input", f"input {name[:64]} is {array.dtype}, the graph wants {dtype}")
    if len(shape) != array.ndim or any(
        isinstance(want, int) and want != have
        for want, have in zip(shape, array.shape, strict=True)
    ):
        raise RunFailed(
            "bad_input", f"input {name[:64]} has shape {list(array.shape)}, the graph wants {shape}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RunFailed("not_finite", "the images hold values that are not finite")


def _check_output(name: str, value: Any) -> None:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise RunFailed("bad_output", f"output {name[:64]} is not a tensor of numbers")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise RunFailed("not_finite", f"output {name[:64]} holds values that are not finite")


def open_session(path: Path, *, providers: Sequence[str], threads: int, volume: bool) -> Session:
    """Load a graph from `path`. `volume`: give memory back after each run instead of keeping it.

    Raises RunFailed("bad_model" or "memory").
    """
    ort = _ort()
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(threads, 1)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = not volume
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=list(providers))
    except MemoryError as error:
        raise RunFailed("memory", "the model needs more memory than it is allowed") from error
    except _errors() as error:
        raise _failed(error) from error
    session.disable_fallback()
    missing = _fallen(providers, session.get_providers())
    if missing:
        raise RunFailed("bad_model", missing)
    return Session(session, options.intra_op_num_threads)


def _fallen(asked: Sequence[str], given: Sequence[str]) -> str:
    """Say which provider that a package asks for is not there; empty where all are, in order.

    ONNX Runtime only warns and takes the next one. The CPU stands last in any session, even
    where nobody asked for it: it takes the nodes that an accelerator does not know.
    """
    rest = [name for name in given if name in asked]
    if rest == list(asked):
        return ""
    gone = [name for name in asked if name not in given] or list(asked)
    return (
        f"the runtime here cannot use {', '.join(gone)} (it has {', '.join(given)}); install the "
        "onnxruntime wheel that brings it, or let the package ask for CPUExecutionProvider"
    )


def opened(package: Package, threads: int, *, alone: bool) -> Session:
    """Load a package's graph; `threads` caps the manifest's `intra_threads`. Raises RunFailed.

    `alone` says that the process ends with this run: a stack of images may keep its memory.
    """
    return open_session(
        package.model_path,
        providers=package.providers,
        threads=min(int(package.execution.get("intra_threads", threads)), threads),
        volume=not alone or str(package.deployment["layout"]) != "NCHW",
    )
