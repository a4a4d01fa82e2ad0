"""The site's models as runs and routing see them: opened once, their files checked. One cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy

from bridge.errors import NotFound, Refused
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import reading
from models import package, registry
from models.errors import ModelError
from models.package import Package

__all__ = ["Catalog"]


class Catalog:
    """Models of a site, for reading."""

    def __init__(self, database: sqlalchemy.Engine, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._open: dict[str, Package] = {}
        self._lock = threading.Lock()

    def package(self, digest: str) -> Package:
        """Give a registered package by its model digest, its files checked against the row."""
        with self._lock:
            if digest not in self._open:
                with reading(self._database) as connection:
                    row = next(iter(catalog.find_models(connection, digest)), None)
                if row is None:
                    raise NotFound("no model has this digest; see `radseal model list`")
                opened = package.load(self._folder / row.folder)
                if opened.model_digest != digest or opened.package_digest != row.package_digest:
                    raise Refused("the package's files changed after registration; push it again")
                self._open[digest] = opened
            return self._open[digest]

    def active(self) -> list[tuple[ModelRow, Package]]:
        """List the models in routing, shadows too, whose files can be used; `broken` the others."""
        return [(row, found) for row, found in self._routed() if isinstance(found, Package)]

    def broken(self) -> list[tuple[ModelRow, str]]:
        """List the models in routing whose files cannot be used, and why: they hold up no other."""
        return [(row, found) for row, found in self._routed() if isinstance(found, str)]

    def _routed(self) -> Iterator[tuple[ModelRow, Package | str]]:
        with reading(self._database) as connection:
            rows = catalog.list_models(connection, *registry.ROUTED)
        for row in rows:
            try:
                yield row, self.package(row.digest)
            except (ModelError, Refused) as error:
                yield row, f"it cannot be used: {error}"

    def activated(self, digest: str) -> str:
        """Give the leaf that put a model into routing; raises Refused once it was taken out.

        One whose place a newer version took may finish what was routed to it.
        """
        with reading(self._database) as connection:
            row = next(iter(catalog.find_models(connection, digest)), None)
        if row is not None and row.state == registry.State.RETIRED:
            raise Refused("the model was retired before it could run on this study")
        last = None if row is None else row.newest("activated", "suspended")
        if last is not None and last["act"] == "suspended":
            raise Refused(
                f"the model was taken out of routing before it could run: {last['reason']}"
            )
        leaf = None if row is None else row.leaf_of("activated")
        if leaf is None:
            raise NotFound("this model was never activated")
        return leaf
