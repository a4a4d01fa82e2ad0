"""What a cell may use, how it is asked, and how its death is called."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from models.errors import RunFailed

__all__ = ["Limits", "death", "request"]

_BASE_MB: Final = 1024  # address space of Python and the libraries, beside what a task may use


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

    def cpu_s(self) -> int:
        """Give the CPU seconds that go with one task."""
        return int(self.timeout_s * self.cores()) + 5


def death(code: int, stage: str) -> RunFailed:
    """Name the death of a child that gave no answer."""
    if code == -signal.SIGXCPU:
        return RunFailed("timeout", "the CPU time allowed was used up")
    if code == -signal.SIGKILL:
        return RunFailed("memory", "the process was killed, most likely for want of memory")
    if stage == "decode":
        return RunFailed("undecodable", "a decoder crashed on an image")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return RunFailed("crashed", f"the process ended with {how} (stage {stage})")


def request(
    task: str, params: Mapping[str, Any], answer: str, limits: Limits, *, runs: int = 1
) -> dict[str, Any]:
    """Write a cell's task with its limits; CPU time is for so many `runs` in all."""
    threads = limits.cores()
    return {
        "task": task,
        "parent": os.getpid(),
        "answer": answer,
        "params": {**params, "threads": threads},
        "limits": {
            "address_mb": limits.memory_mb + _BASE_MB,
            "cpu_s": limits.cpu_s(),
            "cpu_life_s": limits.cpu_s() * runs,
            "file_mb": limits.file_mb,
        },
    }
