"""bridge.service: what is true before the worker begins."""

from __future__ import annotations

import pytest
from bench import MODEL

from bridge.service import Service
from bridge.store import catalog
from bridge.store.database import reading
from models import cell, sandbox


@pytest.fixture
def started(desk, monkeypatch):
    """Start a worker at the desk's site; gives the model's state when the engine was launched."""
    monkeypatch.setattr(cell, "keep_spare", lambda: None)

    def start() -> str:
        service = Service(desk.settings, listen=False)
        seen = []

        def launched():
            with reading(desk.rooms.database) as connection:
                seen.append(catalog.find_models(connection, MODEL)[0].state)

        monkeypatch.setattr(service.engine, "launch", launched)
        try:
            service.start()
        finally:
            service.stop()
            service._using.__exit__(None, None, None)
        (state,) = seen
        return state

    return start


def test_a_changed_machine_tests_its_models_before_any_of_them_runs(desk, started, monkeypatch):
    desk.model()
    monkeypatch.setattr(sandbox, "selftest", lambda *_: sandbox.SelfTest(False, "differs"))
    assert started() == "active"  # it passed when it was registered, on this machine
    monkeypatch.setattr("models.machine.cpu_name", lambda: "another processor")
    assert started() == "suspended"
    assert [one["type"] for one in desk.leaves()].count("model.suspended") == 1
