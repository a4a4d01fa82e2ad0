"""What a machine would run a model with, told without starting a runtime.

Outputs repeat only for the same runtime, providers and processor, so a self-test that passed
says something about those alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["cpu_name", "mark"]

RUNTIME = "onnxruntime"


def cpu_name() -> str:
    """Name the processor as the system does; "unknown" where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "unknown"
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def mark(providers: Sequence[str]) -> str:
    """Give one SHA-256 in hex for runtime, version, providers and type of machine.

    Whatever of these changes, the mark does; nothing of the runtime is imported for it.
    """
    try:
        version = metadata.version(RUNTIME)
    except metadata.PackageNotFoundError:
        version = "absent"
    said = [RUNTIME, version, list(providers), cpu_name(), platform.machine()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
