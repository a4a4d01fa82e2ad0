"""The parent's side of a model's cell: start a child with limits, wait, and believe little.

Every decode and every run happens in a fresh `python -I` with limits on memory,
CPU, time, files and, where the system allows, without network. A child that
dies, hangs or swells is a RunFailed with a reason, and nothing else; a full disk is an
OSError, for it says nothing about model or picture.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from models import cell
from models.errors import NO_ROOM, RunFailed
from models.fault import Fault
from models.findings import Findings
from models.package import Package

__all__ = [
    "Limits",
    "Outcome",
    "Sealed",
    "SelfTest",
    "admit",
    "card",
    "describe",
    "look",
    "pixel_digest",
    "raw_frames",
    "record",
    "run",
    "seal",
    "selftest",
]

_BASE_MB: Final = 1024  # address space of Python and the libraries, beside what a task may use
_MAX_ANSWER: Final = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use: memory (MB), wall-clock seconds, file size (MB), threads.

    CPU seconds follow: timeout_s for each thread, and a little. `threads` None
    means the cores of this process.
    """

    memory_mb: int = 8192
    timeout_s: float = 600.0
    file_mb: int = 8192
    threads: int | None = None

    def cores(self) -> int:
        """Count the threads a child may use."""
        return max(self.threads or len(os.sched_getaffinity(0)), 1)


@dataclass(frozen=True, slots=True)
class Sealed:
    """An input, decoded once: its digest and each image (SOPInstanceUID, pixel SHA-256, frames).

    `decoders` counts images per decoder name and version; `cached` is the
    folder of decoded pixels, good for `run` of the same files.
    """

    input_digest: str
    instances: tuple[tuple[str, str, int], ...]
    decoders: Mapping[str, int]
    cached: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run. `mask_path` holds `mask` [frame, row, column], fsynced; so is the preview."""

    findings: Findings
    mask_path: Path | None
    preview_path: Path
    runtime: Mapping[str, Any]
    seconds: float
    peak_mb: int


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Whether a model repeats its own recorded outputs here, and in words how far it is off."""

    passed: bool
    text: str


def _dead(code: int, stage: str) -> RunFailed:
    """Name the death of a child that gave no answer."""
    if code == -signal.SIGXCPU:
        return RunFailed("timeout", "the CPU time allowed was used up")
    if code == -signal.SIGKILL:
        return RunFailed("memory", "the process was killed, most likely for want of memory")
    if stage == "decode":
        return RunFailed("undecodable", "a decoder crashed on an image")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return RunFailed("crashed", f"the process ended with {how} (stage {stage})")


def _read(answer: Path) -> tuple[dict[str, Any] | None, str]:
    """Return (last answer or None, last stage) of a child's output file."""
    if not answer.exists():
        return None, "start"
    if answer.stat().st_size > _MAX_ANSWER:
        raise RunFailed("bad_output", "the answer is too large")
    final: dict[str, Any] | None = None
    stage = "start"
    for line in answer.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            break
        if "stage" in words:
            stage = str(words["stage"])
        else:
            final = words
    return final, stage


def _ask(task: str, params: dict[str, Any], work: Path, limits: Limits) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    threads = limits.cores()
    answer = work / f".{task}.answer"
    answer.unlink(missing_ok=True)  # of an attempt that died with its parent
    request = {
        "task": task,
        "parent": os.getpid(),
        "answer": str(answer),
        "params": {**params, "threads": threads},
        "limits": {
            "address_mb": limits.memory_mb + _BASE_MB,
            "cpu_s": int(limits.timeout_s * threads) + 5,
            "file_mb": limits.file_mb,
        },
    }
    spare = cell.take(threads)
    code = _tell(spare, request, limits) if spare is not None else None
    if code is None or not answer.exists():  # a spare that was gone before it began
        code = _tell(cell.start(threads), request, limits)
    final, stage = _read(answer)
    answer.unlink(missing_ok=True)
    if final is None and code == NO_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if final is None:
        raise _dead(code, stage)
    if "failed" in final:
        raise RunFailed(str(final["failed"]["code"]), str(final["failed"]["text"]))
    found: dict[str, Any] = final["ok"]
    return found


def _tell(process: cell.Process, request: Mapping[str, Any], limits: Limits) -> int:
    """Give a cell its task and wait for its end; returns the exit code."""
    try:
        process.communicate(json.dumps(request).encode(), timeout=limits.timeout_s)
    except subprocess.TimeoutExpired as error:
        raise RunFailed("timeout", f"no answer within {limits.timeout_s:g} seconds") from error
    finally:
        cell.end(process)
    return process.returncode


def _ask_alone(task: str, params: dict[str, Any], limits: Limits) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="radseal-") as folder:
        return _ask(task, params, Path(folder), limits)


def _for(package: Package, limits: Limits) -> Limits:
    """Take the tighter of what the site allows and what the manifest asks for."""
    wants = package.execution
    return replace(
        limits,
        memory_mb=min(limits.memory_mb, int(wants.get("memory_mb", limits.memory_mb))),
        timeout_s=min(limits.timeout_s, float(wants.get("timeout_s", limits.timeout_s))),
    )


def _named(package: Package) -> dict[str, Any]:
    return {"package": str(package.root), "package_digest": package.package_digest}


def seal(*, paths: Sequence[Path], work: Path, limits: Limits) -> Sealed:
    """Decode every image in a child; digest pixels and the attributes that models can see.

    The digest does not change with transfer syntax or patient data. Raises
    RunFailed("undecodable", "memory", "timeout" ...).
    """
    cache = work / "pixels"
    params = {"paths": [str(p) for p in paths], "cache": str(cache)}
    found = _ask("seal", params, work, limits)
    return Sealed(
        input_digest=found["input_digest"],
        instances=tuple((str(u), str(s), int(n)) for u, s, n in found["instances"]),
        decoders=dict(found["decoders"]),
        cached=cache,
    )


def pixel_digest(path: Path, limits: Limits) -> str:
    """SHA-256 of one file's decoded pixels, equal across lossless transfer syntaxes; hex.

    Objects that have no pixels at all are equal in this.
    """
    return str(_ask_alone("pixel_digest", {"path": str(path)}, limits)["sha256"])


def raw_frames(path: Path, limits: Limits) -> bytes:
    """Decode the frames of a file as they were encoded: little-endian, samples together.

    Raises RunFailed("undecodable", "memory", "timeout" ...).
    """
    with tempfile.TemporaryDirectory(prefix="radseal-") as folder:
        frames = Path(folder) / "frames"
        _ask("raw_frames", {"path": str(path), "frames": str(frames)}, Path(folder), limits)
        return frames.read_bytes()


def run(
    *,
    package: Package,
    roles: Mapping[str, Sequence[Path]],
    work: Path,
    limits: Limits,
    cached: Path | None = None,
    warnings: Sequence[str] = (),
) -> Outcome:
    """Run a model on the files of each role, in the manifest's order of roles.

    `cached` is a `Sealed.cached` of the same files; pixels whose file or digest
    changed are decoded anew. `warnings` are carried into the findings. Files of
    the outcome lie in `work`. Raises RunFailed.
    """
    order = [role["role"] for role in package.input["series"] if role["role"] in roles]
    params = {
        **_named(package),
        "roles": {role: [str(p) for p in roles[role]] for role in order},
        "work": str(work),
        "cache": str(cached) if cached is not None else None,
        "warnings": list(warnings),
    }
    if not order:
        raise RunFailed("bad_input", "no series was given for the model's roles")
    found = _ask("run", params, work, _for(package, limits))
    return Outcome(
        findings=Findings.from_json(found["findings"]),
        mask_path=Path(found["mask"]) if found["mask"] else None,
        preview_path=Path(found["preview"]),
        runtime=found["runtime"],
        seconds=float(found["seconds"]),
        peak_mb=int(found["peak_mb"]),
    )


def selftest(package: Package, limits: Limits) -> SelfTest:
    """Run the package's own test data in a child; a failure is an answer, not an exception."""
    try:
        found = _ask_alone("selftest", _named(package), _for(package, limits))
    except RunFailed as failed:
        return SelfTest(False, failed.text)
    return SelfTest(bool(found["passed"]), str(found["text"]))


def admit(package: Package, limits: Limits) -> list[Fault]:
    """`models.admission.check` in a child, as a graph from outside deserves. Raises RunFailed."""
    found = _ask_alone("admit", _named(package), _for(package, limits))
    return _faults(found)


def look(root: Path, limits: Limits) -> list[Fault]:
    """Everything we would not run of a graph whose manifest cannot be read. Raises RunFailed."""
    return _faults(_ask_alone("admit", {"package": str(root), "package_digest": None}, limits))


def _faults(found: Mapping[str, Any]) -> list[Fault]:
    return [Fault(str(a), str(b), str(c), str(d), bool(e)) for a, b, c, d, e in found["faults"]]


def describe(model: Path, limits: Limits) -> dict[str, Any]:
    """Give what a graph says of itself (`models.graph.describe`), read in a child.

    Raises RunFailed.
    """
    return _ask_alone("describe", {"model": str(model)}, limits)


def record(model: Path, folder: Path, kinds: Mapping[str, str], limits: Limits) -> list[int]:
    """Run a bare graph on a generated input, write input and output as a test data set.

    `folder` must exist; `kinds` maps an input's name to the kind of numbers it is made of
    (`models.selftest.record`). Returns the first input's shape. Raises RunFailed.
    """
    params = {"model": str(model), "folder": str(folder), "kinds": dict(kinds)}
    return [int(n) for n in _ask_alone("record", params, limits)["shape"]]


def card(package: Package, limits: Limits) -> list[tuple[str, str]]:
    """Give the model card's headings and texts, read in a child; empty without a card.

    Raises RunFailed, also for a card that is not plain XML.
    """
    if package.card is None:
        return []
    params = {"package": str(package.root), "card": str(package.card.relative_to(package.root))}
    return [(str(a), str(b)) for a, b in _ask_alone("card", params, limits)["lines"]]
