"""The paper house for tests of the HTTP side, the workbench (tests/bench.py) for the stages."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_TESTS = Path(__file__).resolve().parents[2]


def _by_path(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"cannot load {path}")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_bench = _by_path("bench", _TESTS / "bench.py")


@pytest.fixture(scope="session")
def paper() -> ModuleType:
    """The module tests/paper_house.py."""
    return _by_path("paper_house", _TESTS / "paper_house.py")


@pytest.fixture(scope="session")
def results() -> ModuleType:
    """The module tests/paper_results.py."""
    return _by_path("paper_results", _TESTS / "paper_results.py")


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make the test's site: `new_site(toml)` gives a Bench."""
    made: list[Any] = []

    def make(toml: str = "") -> Any:
        made.append(_bench.Bench(tmp_path, toml))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def archive() -> Iterator[Callable[..., Any]]:
    """Start a PACS on loopback: `archive("PACS")` gives a bench.Archive."""
    made: list[Any] = []

    def start(*args: Any, **options: Any) -> Any:
        made.append(_bench.Archive(*args, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def desk(new_site: Callable[..., Any]) -> Any:
    """A site with the settings that `radseal init` writes, at hand for one stage after another."""
    return new_site()
