"""What people do with a registered model: each act is a leaf, and says who."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import sqlalchemy

from bridge.access import is_same_person
from bridge.errors import NotFound, Refused
from bridge.record import Recorder
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import reading, writing
from models import registry
from models.errors import ModelError

__all__ = ["Lifecycle"]


class Lifecycle:
    """The acts on a site's models."""

    def __init__(self, database: sqlalchemy.Engine, recorder: Recorder) -> None:
        self._database = database
        self._record = recorder

    def act(self, name: str, act: str, at: datetime, *, by: str) -> ModelRow:
        """Approve, activate or retire a model; a second person approves what one registered."""
        with reading(self._database) as connection:
            rows = catalog.find_models(connection, name)
        if not rows:
            raise NotFound(f"no model is called {name}; see `radseal model list`")
        row = rows[0]
        registrant = next(a["by"] for a in row.acts if a["act"] == "registered")
        if act == "approve" and is_same_person(by, registrant):
            raise Refused("the person who registered a model cannot approve it; ask a second one")
        try:
            state = registry.transition(registry.State(row.state), registry.Act(act))
        except ModelError as error:
            raise Refused(str(error)) from None
        leaf = self._leaf(row, act, by)
        acts = [
            *row.acts,
            {"act": _PAST[act], "by": by, "authn": "asserted", "at": at.isoformat(), "leaf": leaf},
        ]
        with writing(self._database) as connection:
            if act == "activate":
                for other in catalog.list_models(connection, registry.State.ACTIVE):
                    if other.id == row.id and other.digest != row.digest:
                        catalog.set_model(
                            connection, other.digest, registry.State.APPROVED, other.acts
                        )
            catalog.set_model(connection, row.digest, state, acts)
        return row

    def _leaf(self, row: ModelRow, act: str, by: str) -> str:
        rel = {"approve": "model.registered", "activate": "model.approved",
               "retire": "model.registered"}[act]  # fmt: skip
        stands_on = row.leaf_of("approved") if rel == "model.approved" else None
        if stands_on is None:
            rel, stands_on = "model.registered", row.leaf_of("registered")
        return self._record.say(
            f"model.{_PAST[act]}", f"model/{row.digest}/{len(row.acts)}/{act}",
            {"model": row.digest, "id": row.id, "version": row.version, "by": by,
             "authn": "asserted"},
            refs=[(rel, stands_on or "")],
        )  # fmt: skip


_PAST: Mapping[str, str] = {"approve": "approved", "activate": "activated", "retire": "retired"}
