"""Cells: fresh Python processes for one task each, the next one started ahead.

Starting Python with its libraries takes most of a second. A service that calls
`keep_spare` has one cell waiting, which has loaded the libraries, holds nothing of
anybody and has read nothing; it takes its limits before it reads what it is given.
A cell serves one task and ends.
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
from typing import Final

__all__ = ["Process", "end", "keep_spare", "start", "take"]

Process = subprocess.Popen[bytes]

BOOT: Final = (
    "import sys; sys.path.append(sys.argv[1]); from models.child import main; "
    "main(ahead=sys.argv[2] == 'ahead')"
)

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


def start(threads: int) -> Process:
    """Start a fresh cell for so many threads; its standard input awaits one task as JSON."""
    return _nursery.submit(_born, threads, "now").result()


def end(process: Process) -> None:
    """Kill a cell's whole process group and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _born(threads: int, when: str) -> Process:
    home = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-I", "-c", BOOT, home, when],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": str(threads), "MALLOC_ARENA_MAX": "2",
             "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )  # fmt: skip
