"""Fixtures for every test: the shared corpus, real servers, Hypothesis profiles."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import hypothesis
import pytest
import structlog

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
Server = TypeVar("Server")

hypothesis.settings.register_profile("dev", max_examples=50, deadline=None)
hypothesis.settings.register_profile(
    "ci",
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("night", max_examples=10_000, deadline=None)
hypothesis.settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if IN_CI else "dev"),
)


def _by_path(name: str, path: Path) -> ModuleType:
    """Load a module of tests/ by its path (tests/ is no package); later `import name` finds it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Minutes each: where two processes share the files, these begin first and nobody waits at the end.
_LONG = (
    "test_arrivals_end_to_end.py", "test_continuity.py", "test_witnesses.py",
    "test_bundle_for_a_stranger.py", "test_bad_input.py", "test_report_validators.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, after the shuffle of pytest-randomly."""
    items.sort(key=lambda item: item.path.name not in _LONG)


_servers = _by_path("servers", ROOT / "tests" / "servers.py")
_by_path("house", ROOT / "tests" / "house.py")
_by_path("validators", ROOT / "tests" / "validators.py")
_by_path("sender", ROOT / "tests" / "sender.py")
for _name in ("paper_log", "tall_log", "crashes", "strangers"):
    _by_path(_name, ROOT / "tests" / f"{_name}.py")


def _entered(stack: ExitStack, context: AbstractContextManager[Server]) -> Server:
    """Enter a server's context; a missing program is a skip here and a failure in CI."""
    try:
        return stack.enter_context(context)
    except _servers.MissingError as missing:
        if IN_CI:
            pytest.fail(f"{missing} (CI installs every peer)", pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(autouse=True)
def _logs_afresh() -> Iterator[None]:
    """Forget a log stream that a test captured: it is closed when the next test speaks."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def servers() -> ModuleType:
    """The module tests/servers.py."""
    return _servers


@pytest.fixture(scope="session")
def workbench() -> ModuleType:
    """The module tests/bench.py, for tests that do not stand beside its own conftest."""
    return _by_path("bench", ROOT / "tests" / "bench.py")


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository: corpus, example models, consent cases."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder ../shared beside this repository: its corpus is not part of it")
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start any server of tests/servers.py for this test: `start("orthanc", ae_title="A")`."""
    with ExitStack() as stack:
        yield lambda name, **options: _entered(stack, getattr(_servers, name)(**options))


@pytest.fixture(scope="session")
def orthanc_server() -> Iterator[Any]:
    """One Orthanc for the whole run; `orthanc` below gives it empty."""
    with ExitStack() as stack:
        yield _entered(stack, _servers.orthanc())


@pytest.fixture
def orthanc(orthanc_server: Any) -> Any:
    """An Orthanc that holds nothing yet."""
    for patient in orthanc_server.get("/patients"):
        orthanc_server.delete(f"/patients/{patient}")
    return orthanc_server


@pytest.fixture(scope="module")
def enter() -> Iterator[Callable[[AbstractContextManager[Any]], Any]]:
    """Keep a server for this module: `enter(house.served(...))` (tests/servers.py, house.py)."""
    with ExitStack() as stack:
        yield lambda context: _entered(stack, context)


@pytest.fixture
def storescp() -> Iterator[Any]:
    """A dcmtk storescp with an empty folder."""
    with ExitStack() as stack:
        yield _entered(stack, _servers.storescp())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """One PostgreSQL cluster for the whole run."""
    with ExitStack() as stack:
        yield _entered(stack, _servers.postgres())


@pytest.fixture
def database_url(postgres: Any) -> Iterator[str]:
    """The address of an empty PostgreSQL database, removed afterwards."""
    url = postgres.create()
    yield url
    postgres.drop(url)
