"""Cells: fresh Python processes, the next one started ahead; who serves what is models.warm's.

Starting Python with its libraries takes most of a second. A service that calls
`keep_spare` has one cell waiting, which has loaded the libraries, holds nothing of
anybody and has read nothing; it takes its limits before it reads what it is given.
A cell serves one task and ends. Its standard input is a line (models.line), so that tensors
can be handed to it while it works.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from models import line

__all__ = ["Process", "end", "keep_spare", "start", "take"]


class Process(subprocess.Popen[bytes]):
    """A cell's process, and the line to it."""

    def __init__(self, command: list[str], **options: Any) -> None:
        self.line, theirs = line.pair()
        try:
            super().__init__(command, stdin=theirs.fileno(), **options)
        except OSError:
            self.line.close()
            raise
        finally:
            theirs.close()


BOOT: Final = (
    "import sys; sys.path.append(sys.argv[1]); from models.child import main; "
    "main(ahead=sys.argv[2] == 'ahead')"
)

# glibc's own words: memory is overwritten when it is freed, without a cache of small pieces
# that would escape this. Pieces above 32 MB go back to the system, which clears them.
_FORGETFUL: Final = {
    "GLIBC_TUNABLES": "glibc.malloc.perturb=85:glibc.malloc.tcache_count=0:"
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864"
}

# A child asks to die with the *thread* that started it, so one thread that lives as long as
# this process starts all of them.
_nursery = ThreadPoolExecutor(1, thread_name_prefix="nursery")
_lock = threading.Lock()
_spare: Future[Process] | None = None
_keeping = False


def keep_spare() -> None:
    """From now on have one cell waiting; for a process that runs models again and again."""
    global _keeping, _spare
    with _lock:
        _keeping = True
        if _spare is None:
            _spare = _nursery.submit(_born, all_cores(), "ahead")


def all_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def take(threads: int) -> Process | None:
    """Give the waiting cell if it lives and was made for so many threads, and start another."""
    global _spare
    with _lock:
        if not _keeping or threads != all_cores():
            return None
        waiting, _spare = _spare, _nursery.submit(_born, threads, "ahead")
    process = waiting.result() if waiting is not None else None
    if process is not None and process.poll() is not None:
        end(process)
        return None
    return process


def start(threads: int, *, forgetful: bool = False) -> Process:
    """Start a fresh cell for so many threads; its line awaits one task as JSON.

    A `forgetful` one overwrites memory when it frees it, or gives it back to the system.
    """
    return _nursery.submit(_born, threads, "now", forgetful=forgetful).result()


def end(process: Process) -> None:
    """Kill a cell's whole process group and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.line.close()


def _born(threads: int, when: str, *, forgetful: bool = False) -> Process:
    home = str(Path(__file__).resolve().parent.parent)
    return Process(
        [sys.executable, "-I", "-c", BOOT, home, when],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "2",
             "OPENBLAS_NUM_THREADS": "1", **(_FORGETFUL if forgetful else {})},
        start_new_session=True,
    )  # fmt: skip
