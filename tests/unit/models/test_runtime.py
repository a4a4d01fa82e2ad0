"""models.runtime: a provider that is asked for is there, or the model does not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from models import sandbox
from models.errors import RunFailed
from models.package import load
from models.runtime import _fallen, open_session
from models.sandbox import Limits

CPU, CUDA, OPENVINO = (
    f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "OpenVINO")
)  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "given", "missing"),
    [
        ([CPU], [CPU], ""),
        ([CUDA], [CUDA, CPU], ""),  # the CPU is in every session
        ([CUDA, CPU], [CUDA, CPU], ""),
        ([CUDA], [CPU], f"cannot use {CUDA} (it has {CPU})"),
        ([CUDA, CPU], [CPU], f"cannot use {CUDA} (it has {CPU})"),
        ([OPENVINO, CUDA], [CPU], f"cannot use {OPENVINO}, {CUDA} (it has {CPU})"),
        ([CUDA, OPENVINO], [OPENVINO, CUDA, CPU], f"cannot use {CUDA}, {OPENVINO}"),
    ],
)
def test_what_a_session_has_is_compared_with_what_was_asked(
    asked: list[str], given: list[str], missing: str
) -> None:
    found = _fallen(asked, given)
    assert (missing in found) if missing else found == ""


def test_no_silent_fallback(make_package: Callable[..., Path]) -> None:
    change = {"deployment": {"execution": {"providers": [CUDA, CPU]}}}
    package = load(make_package(change=change))
    with pytest.raises(RunFailed, match="let the package ask for CPUExecutionProvider") as failed:
        open_session(package.model_path, providers=[CUDA, CPU], threads=1, volume=False)
    assert failed.value.code == "bad_model"
    told = sandbox.selftest(package, Limits(memory_mb=1024, timeout_s=60, threads=1))
    assert not told.passed
    assert f"cannot use {CUDA}" in told.text


def test_the_facts_of_a_session(make_package: Callable[..., Path]) -> None:
    package = load(make_package())
    session = open_session(package.model_path, providers=[CPU], threads=3, volume=True)
    facts = session.facts()
    assert (facts["threads"], facts["optimisation"]) == (3, "all")
    assert facts["providers"] == [CPU]
    assert facts["version"]
    assert facts["cpu"]
