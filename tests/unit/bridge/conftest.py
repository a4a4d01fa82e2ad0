"""The paper house for tests of the HTTP side, the workbench (tests/bench.py) for the stages."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from bridge import cli

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


class Said(NamedTuple):
    """What a command printed."""

    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def radseal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """Run a command in this process as the installed program does; `code` is its exit status."""
    monkeypatch.setenv("RADSEAL_SITE", str(tmp_path / "site"))
    monkeypatch.setattr("os.umask", lambda mask: mask)  # of this process, not of the test's

    def run(*words: object, said: str = "", code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["radseal", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        try:
            cli.main()
            found = 0
        except SystemExit as ended:
            found = int(ended.code or 0)
        told = Said(*capsys.readouterr())
        assert found == code, told.out + told.err
        assert "Traceback" not in told.err
        return told

    return run


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
def copy_of(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open this test's copy of a site that its module made once: `copy_of(kept)` gives a Bench."""
    made: list[Any] = []

    def copy(kept: Any) -> Any:
        made.append(kept.copy(tmp_path))
        return made[-1]

    yield copy
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
