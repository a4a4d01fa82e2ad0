"""The paper house (tests/paper_house.py), for tests of the HTTP side."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_PATH = Path(__file__).resolve().parents[2] / "paper_house.py"


@pytest.fixture(scope="session")
def paper() -> ModuleType:
    """The module tests/paper_house.py."""
    if "paper_house" not in sys.modules:
        spec = importlib.util.spec_from_file_location("paper_house", _PATH)
        module = importlib.util.module_from_spec(spec)
        sys.modules["paper_house"] = module
        spec.loader.exec_module(module)
    return sys.modules["paper_house"]
