"""models.machine: the mark changes with whatever a self-test's result may depend on."""

from __future__ import annotations

from importlib import metadata

import pytest

from models import machine

CPU = ["CPUExecutionProvider"]


def test_the_same_machine_has_the_same_mark() -> None:
    assert machine.mark(CPU) == machine.mark(CPU)
    assert len(machine.mark(CPU)) == 64


def test_another_runtime_provider_or_processor_is_another_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marks = [machine.mark(CPU), machine.mark(["CUDAExecutionProvider", *CPU])]
    with monkeypatch.context() as changed:
        changed.setattr(machine, "cpu_name", lambda: "another processor")
        marks.append(machine.mark(CPU))
    with monkeypatch.context() as changed:
        changed.setattr(metadata, "version", lambda _name: "99.0.0")
        marks.append(machine.mark(CPU))
    with monkeypatch.context() as changed:
        changed.setattr(machine.platform, "machine", lambda: "aarch64")
        marks.append(machine.mark(CPU))
    assert len(set(marks)) == 5


def test_a_missing_runtime_has_a_mark_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    here = machine.mark(CPU)
    monkeypatch.setattr(metadata, "version", gone)
    assert machine.mark(CPU) != here
