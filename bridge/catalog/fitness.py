"""Whether a model still gives its known answers on this machine: asked when a worker starts.

A self-test that passed is remembered with what it ran on (models.machine), so an unchanged model
costs a look at a row. One that fails is taken out of routing, with a leaf; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy

from bridge.catalog.lifecycle import Lifecycle
from bridge.catalog.shelf import Catalog
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import reading, writing
from models import machine, sandbox
from models.package import Package
from models.sandbox import SelfTest

__all__ = ["FAILED", "Fitness"]

FAILED = "selftest-failed"
"""The reason in the leaf of a model whose self-test failed."""

LIMITS = sandbox.Limits()


class Fitness:
    """Self-tests of a site's models, run in the sandbox and remembered."""

    def __init__(self, database: sqlalchemy.Engine, shelf: Catalog) -> None:
        self._database = database
        self._shelf = shelf

    def passed(self, row: ModelRow) -> bool:
        """Whether this model's self-test ever passed with this runtime on such a machine."""
        mark = _mark(self._shelf.package(row.digest))
        with reading(self._database) as connection:
            return catalog.selftest_passed(connection, row.digest, mark)

    def test(self, row: ModelRow, at: datetime) -> SelfTest:
        """Run a model's self-test now, and remember that it passed."""
        package = self._shelf.package(row.digest)
        verdict = sandbox.selftest(package, LIMITS)
        if verdict.passed:
            with writing(self._database) as connection:
                catalog.note_selftest(connection, row.digest, _mark(package), at)
        return verdict

    def screen(self, lifecycle: Lifecycle, now: Callable[[], datetime]) -> list[str]:
        """Test what is in routing and has not passed here; take out what fails. Gives their ids.

        Where the system had no room for the test, that says nothing about the model: it stays,
        and the next start tests it.
        """
        out = []
        for row, _ in self._shelf.active():
            if self.passed(row):
                continue
            try:
                verdict = self.test(row, now())
            except OSError:
                continue
            if verdict.passed:
                continue
            words = f"its self-test failed on this machine: {verdict.text}"
            if lifecycle.suspend(row.digest, now(), reason=FAILED, words=words):
                out.append(row.id)
        return out


def _mark(package: Package) -> str:
    return machine.mark(package.providers)
