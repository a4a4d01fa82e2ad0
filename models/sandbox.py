"""The parent's side of a model's cell: start a child with limits, wait, and believe little.

Every decode happens in a fresh `python -I` with limits on memory, CPU, time, files and,
where the system allows, without network; so does every run, but for the graph itself where
a warm child keeps it (models.warm). A child that
dies, hangs or swells is a RunFailed with a reason, and nothing else; a full disk is an
OSError, for it says nothing about model or picture.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from models import cell, decoded, warm
from models.errors import NO_ROOM, RunFailed
from models.fault import Fault
from models.findings import Findings
from models.limits import Limits, death, request
from models.line import Garbled, Gone, Line
from models.package import Package

__all__ = [
    "Limits",
    "Outcome",
    "Sealed",
    "SelfTest",
    "admit",
    "card",
    "describe",
    "keep_warm",
    "look",
    "pixel_digest",
    "raw_frames",
    "record",
    "run",
    "seal",
    "selftest",
]

_TWICE: Final = (
    "; it died twice on this input, in the model's warm process and alone, and is not tried again"
)
_SOON: Final = 10.0  # seconds for a study's child to read what came out
_MAX_ANSWER: Final = 64 * 1024**2


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


def _ask(
    task: str, params: dict[str, Any], work: Path, limits: Limits, via: warm.Graph | None = None
) -> dict[str, Any]:
    work.mkdir(parents=True, exist_ok=True)
    answer = work / f".{task}.answer"
    answer.unlink(missing_ok=True)  # of an attempt that died with its parent
    asked = request(task, params, str(answer), limits)
    spare = cell.take(limits.cores())
    told = _tell(spare, asked, limits, via) if spare is not None else None
    if told is None or not answer.exists():  # a spare that was gone before it began
        told = _tell(cell.start(limits.cores()), asked, limits, via)
    code, lost = told
    final, stage = _read(answer)
    answer.unlink(missing_ok=True)
    if final is None and code == NO_ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if final is None:
        died = death(code, stage)
        raise RunFailed(died.code, died.text + (_TWICE if lost else ""))
    if "failed" in final:
        raise RunFailed(str(final["failed"]["code"]), str(final["failed"]["text"]))
    found: dict[str, Any] = final["ok"]
    return found


def _tell(
    process: cell.Process, asked: Mapping[str, Any], limits: Limits, via: warm.Graph | None
) -> tuple[int, bool]:
    """Give a cell its task and wait for its end: exit code, and whether a warm graph was lost."""
    until, lost = time.monotonic() + limits.timeout_s, False
    try:
        with contextlib.suppress(Gone):
            process.line.tell(asked, seconds=limits.timeout_s)
            if via is None:
                process.line.no_more()
            else:
                waited, lost = _mediate(process.line, via, until)
                until += waited
        process.wait(max(until - time.monotonic(), 0.01))
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        twice = _TWICE if lost else ""
        text = f"no answer within {limits.timeout_s:g} seconds{twice}"
        raise RunFailed("timeout", text) from error
    except Garbled as error:
        raise RunFailed("bad_output", "the child's words cannot be read") from error
    finally:
        cell.end(process)
    return process.returncode, lost


def _mediate(line: Line, via: warm.Graph, until: float) -> tuple[float, bool]:
    """Carry checked tensors from a study's child to the model's, and what came out back.

    Returns (seconds that do not count as the study's child's own, whether the model's child
    died). Then the study's child runs the graph itself: that is the second try, and the last.
    """
    words, file = line.hear(until - time.monotonic())
    if file is None:
        raise Garbled
    asked = time.monotonic()
    try:
        table = via.checked(file, words.get("feeds"))
        ran = via.run(file, table, until)
    except warm.Lost as lost:
        with contextlib.suppress(Gone):  # it died, too: that is told with the first death
            line.tell({"alone": True}, seconds=_SOON)
        return time.monotonic() - asked, lost.died
    except RunFailed as failed:
        line.tell({"failed": {"code": failed.code, "text": failed.text}}, seconds=_SOON)
        return time.monotonic() - asked, False
    finally:
        os.close(file)
    try:
        line.tell({"outputs": ran.table, "runtime": ran.runtime}, ran.file, _SOON)
    finally:
        os.close(ran.file)
    return ran.waited, False


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


def seal(
    *, paths: Sequence[Path], work: Path, limits: Limits, beside: Sequence[Path] = ()
) -> Sealed:
    """Decode every image in a child; digest pixels and the attributes that models can see.

    The digest does not change with transfer syntax or patient data. What was sealed before
    of these very files is taken, from `work` or from a folder `beside` it: two models on one
    series decode it once. Raises RunFailed("undecodable", "memory", "timeout" ...).
    """
    with decoded.turn(paths):
        found = decoded.take(paths, work, beside)
        if found is None:
            cache = str(work / decoded.PIXELS)
            found = _ask("seal", {"paths": [str(p) for p in paths], "cache": cache}, work, limits)
            decoded.note(paths, work, found)
    return Sealed(
        input_digest=found["input_digest"],
        instances=tuple((str(u), str(s), int(n)) for u, s, n in found["instances"]),
        decoders=dict(found["decoders"]),
        cached=work / decoded.PIXELS,
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
    tight = _for(package, limits)
    via = warm.graph(package, tight)
    more: dict[str, Any] = {} if via is None else {"via": via}
    found = _ask("run", {**params, "warm": via is not None}, work, tight, **more)
    return Outcome(
        findings=Findings.from_json(found["findings"]),
        mask_path=Path(found["mask"]) if found["mask"] else None,
        preview_path=Path(found["preview"]),
        runtime=found["runtime"],
        seconds=float(found["seconds"]),
        peak_mb=max(int(found["peak_mb"]), via.peak_mb if via is not None else 0),
    )


def keep_warm(packages: Iterable[Package], limits: Limits) -> None:
    """Keep a child with its graph loaded for each of these models that may have one, and no other.

    They are started ahead, one after another, in the background. Before the first call every
    run has its own child only.
    """
    warm.keep([(package, _for(package, limits)) for package in packages])


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
