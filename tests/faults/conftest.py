"""Loads tests/faults/ward.py (tests/ is no package) for the tests beside it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "ward" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("ward", Path(__file__).parent / "ward.py")
    if _spec is None or _spec.loader is None:
        raise ImportError("tests/faults/ward.py cannot be loaded")
    sys.modules["ward"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["ward"])
