"""The child process: first it gives up what it does not need, then it reads hostile bytes.

Started by `models.cell` as `python -I`, perhaps long before there is a task: until one
comes as a JSON object on its line (standard input) it has loaded libraries and nothing else.
Then it takes its limits, and answers as JSON lines in the file that the task names ({"stage": ...}
while it works, then {"ok": ...} or {"failed": ...}); large results are files in the work
folder. Decoders that write to standard output reach nothing. An uncaught death is
reported by the parent, with the stage in which it happened.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from models.errors import NO_ROOM, ModelError, RunFailed
from models.line import Gone, Line

__all__ = ["main"]

Task = Callable[..., dict[str, Any]]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_MB: Final = 1024 * 1024
_LONGEST: Final = 64 * _MB  # a request names every file of an input


def _limit(kind: int, value: int, most: int | None = None) -> None:
    _, hard = resource.getrlimit(kind)
    most = value if most is None else most
    if hard != resource.RLIM_INFINITY:
        value, most = min(value, hard), min(most, hard)
    resource.setrlimit(kind, (value, most))


def _no_network(libc: ctypes.CDLL) -> bool:
    """Leave the network: an empty network namespace, where the system allows one."""
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def _confine(limits: dict[str, Any], parent: int) -> bool:
    """Set every limit; return whether the network is gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above; its successor starts another child
        os._exit(1)
    offline = _no_network(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, 512)
    _limit(resource.RLIMIT_FSIZE, int(limits["file_mb"]) * _MB)
    # A process that serves one run after another has its parent move the first of the two on.
    spent = max(int(limits["cpu_s"]), 1)
    _limit(resource.RLIMIT_CPU, spent, int(limits.get("cpu_life_s", spent)))
    _limit(resource.RLIMIT_AS, int(limits["address_mb"]) * _MB)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return offline


class _Voice:
    """The only way out: JSON lines in the answer's file, which is new."""

    def __init__(self, answer: str) -> None:
        self._out = open(answer, "w", encoding="utf-8")  # noqa: SIM115  open until the end

    def say(self, **words: Any) -> None:
        self._out.write(json.dumps(words) + "\n")
        self._out.flush()

    def stage(self, name: str) -> None:
        self.say(stage=name)


def _peak_mb() -> int:
    """Read the most memory this process has held (VmHWM; maxrss would include the parent's)."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    return 0


def _no_room(error: OSError) -> bool:
    """Whether a write failed for want of space; numpy's short writes carry no errno."""
    short = error.errno is None and type(error) is OSError
    return error.errno in {errno.ENOSPC, errno.EDQUOT} or (
        short and any(words in str(error) for words in ("requested and", "free space"))
    )


def main(*, ahead: bool = False) -> None:
    """Load the libraries (all, if `ahead` of any task), read the task, confine, do it, answer."""
    from models import tasks

    line = Line(socket.socket(fileno=0))
    if ahead:
        tasks.load_libraries()
    try:
        request, _ = line.hear(most=_LONGEST)
    except Gone:
        return  # whoever might have had a task is gone
    try:
        _serve(request, line)
    except OSError as error:
        if _no_room(error):
            os._exit(NO_ROOM)
        raise


def _task(name: str, line: Line) -> Task:
    """Find a task; a run and a warm graph go on talking on the line."""
    from models import tasks

    if name == "serve":
        from models import serving

        return functools.partial(serving.serve, line=line)
    task: Task = tasks.TASKS[name]
    return functools.partial(task, line=line) if name == "run" else task


def _serve(request: dict[str, Any], line: Line) -> None:
    voice = _Voice(request["answer"])
    voice.stage("start")
    offline = _confine(request["limits"], int(request["parent"]))
    try:
        answer = _task(request["task"], line)(request["params"], voice.stage)
    except RunFailed as failed:
        voice.say(failed={"code": failed.code, "text": failed.text})
        return
    except ModelError as error:
        voice.say(failed={"code": "bad_model", "text": str(error)})
        return
    except MemoryError:
        voice.say(failed={"code": "memory", "text": "more memory was needed than is allowed"})
        return
    voice.say(ok={**answer, "peak_mb": _peak_mb(), "offline": offline})
