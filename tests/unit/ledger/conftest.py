"""A paper site (tests/paper_log.py) for tests of the ledger."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_TESTS = Path(__file__).resolve().parents[2]
for _name in ("paper_log", "forger"):
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, _TESTS / f"{_name}.py")
        assert _spec is not None
        assert _spec.loader is not None
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])


@pytest.fixture
def paper() -> ModuleType:
    """The module tests/paper_log.py."""
    return sys.modules["paper_log"]


@pytest.fixture
def site(tmp_path: Path, paper: ModuleType) -> Iterator[Any]:
    """A site whose log is opened, nothing published."""
    made = paper.Site(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def vectors() -> Path:
    """Others' answers."""
    return Path(__file__).resolve().parents[2] / "vectors"
