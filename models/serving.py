"""The warm child's side: one graph, loaded once, run for one study after another.

It meets tensors only: no file of a study, no DICOM, no decoder. What it is given it reads
in place and lets go before it answers; what it computed leaves in a sealed memory file.
It ends by itself when nobody asks for long, and after a run that failed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from models import infer, runtime, selftest, shared
from models.errors import RunFailed
from models.line import Gone, Line
from models.tasks import registered

__all__ = ["serve"]


def serve(params: dict[str, Any], stage: Callable[[str], None], line: Line) -> dict[str, Any]:
    """Load the graph, warm it up with the self-test's input, then serve until nobody asks."""
    package = registered(params)
    stage("load")
    try:
        session = runtime.opened(package, int(params["threads"]), alone=False)
        feeds = selftest.inputs(package, session)
        if feeds:
            session.run(feeds, package.tensors)
        del feeds
        line.tell({"ready": True})
        for _ in range(int(params["runs"])):
            words, file = line.hear(float(params["idle_s"]))
            if file is None:
                break
            _one(package, session, words["feeds"], file, line)
    except RunFailed as failed:
        line.tell({"failed": {"code": failed.code, "text": failed.text}})
    except MemoryError:
        text = "more memory was needed than is allowed"
        line.tell({"failed": {"code": "memory", "text": text}})
    except (Gone, TimeoutError):  # the parent ended, or nobody asks
        pass
    return {}


def _one(package: Any, session: Any, table: Any, file: int, line: Line) -> None:
    """Serve one run. Nothing of it is kept: names end here, and memory goes with them."""
    line.tell({"begun": True})
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as note:
        note.write("5")  # the peak is counted from here
    began = time.perf_counter()
    tensors, runtime = infer.through(package, session, shared.view(file, table))
    seconds = time.perf_counter() - began
    answer, rows = shared.put(tensors)
    tensors.clear()
    line.tell({"outputs": rows, "runtime": runtime, "seconds": seconds}, answer)
    os.close(answer)
