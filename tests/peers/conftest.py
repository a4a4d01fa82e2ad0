"""Strangers that judge our log (tests/strangers.py), and logs to judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import strangers as judges


def _built(build: Any, folder: Path) -> Path:
    try:
        made: Path = build(folder)
    except judges.Missing as missing:
        if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
            pytest.fail(f"{missing} (CI installs every peer)", pytrace=False)
        pytest.skip(str(missing))
    return made


@pytest.fixture(scope="session")
def goverify(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """golang.org/x/mod's sumdb."""
    return judges.Go(_built(judges.build_goverify, tmp_path_factory.mktemp("goverify")))


@pytest.fixture(scope="session")
def gomldsa(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Go's crypto/mldsa."""
    return judges.GoMLDSA(_built(judges.build_gomldsa, tmp_path_factory.mktemp("gomldsa")))


@pytest.fixture(scope="session")
def strangers(goverify: Any, gomldsa: Any) -> dict[str, Any]:
    """Everybody, by name."""
    pytest.importorskip("metamorphic_log")
    pytest.importorskip("sigstore")
    return {one.name: one for one in (goverify, judges.Metamorphic(), judges.Sigstore(), gomldsa)}
