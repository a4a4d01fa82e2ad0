"""Warm graphs: one child for each live model, which keeps its session and serves run after run.

It gets tensors and gives tensors (models.shared), both checked here; a study's files are
opened by that study's own fresh child. It is ended after a run that failed, when it grew
past its memory, when its model leaves, after `RUNS` runs, or by itself when nobody asks for
`IDLE_S` seconds, and replaced when the next run comes. A model whose child dies again and
again rests, longer each time; its runs then happen in their own children.

A model that needs much memory, or whose 3-D input may be of any size, has none: what its
run took goes back to the system only with its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models import cell, shared
from models.errors import RUN_CODES, RunFailed
from models.limits import Limits, request
from models.line import Garbled, Gone, Line
from models.package import Package

__all__ = ["Graph", "Lost", "Ran", "graph", "keep", "pause", "stays"]

IDLE_S: Final = 600.0
RUNS: Final = 1000
MOST: Final = 8
"""So many warm children at once; the one that was asked longest ago makes room."""
BIG_MB: Final = 4096
_MB: Final = 1024 * 1024
_LONGEST_REST: Final = 300.0
_LONGEST_TEXT: Final = 300
_LONGEST_FACTS: Final = 4096


class Lost(Exception):
    """No warm child did this run; `died` if one died under it. The run may be tried alone."""

    def __init__(self, *, died: bool) -> None:
        super().__init__()
        self.died = died


@dataclass(frozen=True, slots=True)
class Ran:
    """What came out: a checked table, its open file (the caller's), what ran it, the wait."""

    table: shared.Table
    file: int
    runtime: dict[str, Any]
    waited: float


def stays(package: Package, limits: Limits) -> bool:
    """Whether a model may have a warm child: 2-D, or 3-D of fixed size, and not big."""
    if limits.memory_mb > BIG_MB:
        return False
    shapes = [
        i["spatial_shape"] for i in package.manifest["network_data_format"]["inputs"].values()
    ]
    fixed = all(isinstance(n, int) for shape in shapes for n in shape)
    return fixed or str(package.deployment["layout"]) == "NCHW"


def pause(deaths: int) -> float:
    """Give the seconds that a model rests after so many deaths in a row."""
    return 0.0 if deaths < 1 else min(2.0 ** (min(deaths, 16) - 1), _LONGEST_REST)


class Graph:
    """One model's warm child, whether it lives or not. One run at a time; others wait."""

    def __init__(self, package: Package, limits: Limits) -> None:
        self._package, self._limits = package, limits
        formats = package.manifest["network_data_format"]
        self._feeds = {name: str(i["dtype"]) for name, i in formats["inputs"].items()}
        wanted = package.tensors
        self._outputs = {name: str(formats["outputs"][name]["dtype"]) for name in wanted}
        self._turn = threading.Lock()
        self._process: cell.Process | None = None
        self._deaths, self._rests_until = 0, 0.0
        self._leaves = False
        self.peak_mb = 0

    def checked(self, file: int | None, table: Any) -> shared.Table:
        """Check the tensors that a study's child prepared; RunFailed("bad_input") if not sound."""
        try:
            return shared.check(file, table, self._feeds, self._limits.memory_mb * _MB)
        except ValueError as error:
            raise RunFailed("bad_input", str(error)) from error

    def run(self, file: int, table: shared.Table, until: float) -> Ran:
        """Run the graph over checked tensors; `until` is a monotonic time, without the wait.

        Raises RunFailed, which is the run's outcome, or Lost.
        """
        asked = time.monotonic()
        with self._turn:
            waited = time.monotonic() - asked
            try:
                return self._run(file, table, until + waited, waited)
            except RunFailed as failed:
                self._end(died=failed.code == "timeout")
                raise
            except Lost as lost:
                self._end(died=lost.died)
                raise
            finally:
                if self._leaves or self._swollen():
                    self._end(died=False)

    def warm_up(self) -> None:
        """Start the child ahead of the first run; a failure is found again by that run."""
        with self._turn, contextlib.suppress(Lost):
            if not self._leaves:
                self._living()

    def leave(self) -> None:
        """End the child, at once or after the run that it serves."""
        self._leaves = True
        if self._turn.acquire(blocking=False):
            self._end(died=False)
            self._turn.release()

    def _run(self, file: int, table: shared.Table, until: float, waited: float) -> Ran:
        for _ in range(2):
            process = self._living()
            try:
                if not process.line.quiet():  # an answer too many would be the next study's
                    raise Garbled
                self._allow(process)
                process.line.tell({"feeds": table}, file, until - time.monotonic())
                _words(process.line, until - time.monotonic())
            except TimeoutError:
                raise self._late() from None
            except (Gone, OSError):  # it had just ended for want of work: another one
                self._end(died=False)
                continue
            except Garbled:
                raise Lost(died=True) from None
            return self._answer(process, until, waited)
        raise Lost(died=False)

    def _answer(self, process: cell.Process, until: float, waited: float) -> Ran:
        try:
            words, file = process.line.hear(until - time.monotonic())
        except TimeoutError:
            raise self._late() from None
        except Gone:
            raise Lost(died=True) from None
        except Garbled:
            raise RunFailed("bad_output", "the child's words cannot be read") from None
        if file is None:
            raise _said(words)
        try:
            most = self._limits.memory_mb * _MB
            found = shared.check(file, words.get("outputs"), self._outputs, most)
            runtime = _facts(words.get("runtime"))
        except ValueError as error:
            os.close(file)
            raise RunFailed("bad_output", str(error)) from error
        self._deaths = 0
        self.peak_mb = _memory(process, "VmHWM")
        return Ran(found, file, {**runtime, "process": "warm"}, waited)

    def _late(self) -> RunFailed:
        return RunFailed("timeout", f"no answer within {self._limits.timeout_s:g} seconds")

    def _living(self) -> cell.Process:
        """Give the child, started if there is none; raises Lost where it does not start."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end(died=False)
        if time.monotonic() < self._rests_until:
            raise Lost(died=False)
        named = {"package": str(self._package.root), "package_digest": self._package.package_digest}
        params = {**named, "idle_s": IDLE_S, "runs": RUNS}
        self._process = process = cell.start(self._limits.cores(), forgetful=True)
        try:
            process.line.tell(request("serve", params, os.devnull, self._limits, runs=RUNS))
            words = _words(process.line, self._limits.timeout_s)
        except (Gone, Garbled, TimeoutError):
            words = {}
        if not words.get("ready"):
            self._end(died=True)
            raise Lost(died=False)  # the graph has not met this input yet
        return process

    def _allow(self, process: cell.Process) -> None:
        """Give the child CPU time for one more run."""
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
        ticks = sum(int(n) for n in fields.split()[11:13])
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_CPU)
        soft = ticks // os.sysconf("SC_CLK_TCK") + self._limits.cpu_s()
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (min(soft, hard), hard))

    def _swollen(self) -> bool:
        alive = self._process is not None and self._process.poll() is None
        return alive and _memory(self._process, "VmRSS") > self._limits.memory_mb

    def _end(self, *, died: bool) -> None:
        if self._process is not None:
            cell.end(self._process)
            self._process = None
        if died:
            self._deaths += 1
            self._rests_until = time.monotonic() + pause(self._deaths)


def _memory(process: cell.Process | None, key: str) -> int:
    """Read a process's memory in MB; 0 where it is gone."""
    try:
        text = Path(f"/proc/{process.pid if process else 0}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")]
    return int(found[0]) // 1024 if found else 0


def _words(line: Line, seconds: float) -> dict[str, Any]:
    """Hear words with which no file should come."""
    words, file = line.hear(seconds)
    if file is not None:
        os.close(file)
    return words


def _said(words: dict[str, Any]) -> RunFailed:
    """Read a refusal of the child, which may say anything."""
    failed = words.get("failed")
    if isinstance(failed, dict) and failed.get("code") in RUN_CODES:
        return RunFailed(failed["code"], str(failed.get("text", ""))[:_LONGEST_TEXT])
    return RunFailed("bad_output", "the child's words cannot be read")


def _facts(runtime: Any) -> dict[str, Any]:
    if not isinstance(runtime, dict) or len(json.dumps(runtime)) > _LONGEST_FACTS:
        raise ValueError("what ran the model is not said")
    return runtime


_lock = threading.Lock()
_graphs: dict[tuple[str, Limits], Graph] = {}
_kept: frozenset[str] | None = None


def keep(models: Iterable[tuple[Package, Limits]]) -> None:
    """Keep warm children for these models and end all others; started in the background."""
    global _kept
    wanted = [(package, limits) for package, limits in models if stays(package, limits)]
    with _lock:
        _kept = frozenset(package.package_digest for package, _ in wanted)
        for key in [key for key in _graphs if key[0] not in _kept]:
            _graphs.pop(key).leave()
        fresh = [pair for pair in wanted if (pair[0].package_digest, pair[1]) not in _graphs]
    ahead = [found for pair in fresh[:MOST] if (found := graph(*pair)) is not None]
    if ahead:
        threading.Thread(target=_warm_up, args=(ahead,), name="warm-up", daemon=True).start()


def _warm_up(graphs: list[Graph]) -> None:
    for one in graphs:
        one.warm_up()


def graph(package: Package, limits: Limits) -> Graph | None:
    """Give a model's warm graph; None where the model has, or may have, none."""
    key = (package.package_digest, limits)
    with _lock:
        if _kept is None or package.package_digest not in _kept or not stays(package, limits):
            return None
        found = _graphs.pop(key, None) or Graph(package, limits)
        _graphs[key] = found  # the last of them was asked last
        while len(_graphs) > MOST:
            _graphs.pop(next(iter(_graphs))).leave()
    return found
