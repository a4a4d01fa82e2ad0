"""A shadow trial at a site: its rows read, judged, and the report's digest said in the log."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from bridge.access import is_person
from bridge.errors import Refused, WrongUse
from bridge.rooms import Rooms
from bridge.store import catalog
from bridge.store.catalog import ModelRow
from bridge.store.database import hold, reading, writing
from bridge.store.decisions import CONSENT
from bridge.store.trials import Outcome, outcomes
from bridge.study import RouteState
from bridge.trial import READ, Model, Reading, age_band, is_positive, measured, trial
from models import registry
from models.findings import Findings

__all__ = ["Report", "assess", "say"]

_STATES = {
    RouteState.REPORTED: READ,
    RouteState.CARRIED: "read before",
    RouteState.SEALING: "waiting",
    RouteState.RUNNING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Report:
    """A trial's report: `data` is the JSON file, whose SHA-256 is `digest`."""

    model: ModelRow
    against: ModelRow | None
    readings: tuple[Reading, ...]
    told: dict[str, object]
    data: bytes

    @property
    def read(self) -> int:
        """How many inputs the model read: a report on none says nothing of it."""
        return sum(one.state == READ for one in self.readings)

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON file, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def assess(
    rooms: Rooms, name: str, against: str | None, since: datetime, until: datetime
) -> Report:
    """Judge what a model did in [since, until); beside it the live version of the same id.

    `against` names another model. Raises NotFound for names, Refused where it read nothing.
    """
    if since >= until:
        raise WrongUse("the period ends before it begins")
    with reading(rooms.database) as connection:
        model = catalog.named_models(connection, name)[0]
        other = (
            _live(catalog.list_models(connection, registry.State.ACTIVE), model)
            if against is None
            else catalog.named_models(connection, against)[0]
        )
        mine, theirs = (
            [_reading(one) for one in outcomes(connection, row.digest, since, until)] if row else []
            for row in (model, other)
        )
    if not mine:
        raise Refused(f"{model.id}@{model.version} was given no study in that time")
    told = trial(
        _named(model), _named(other) if other else None, mine, theirs, since=since, until=until
    )
    text = json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return Report(model, other, tuple(mine), told, text.encode())


def say(rooms: Rooms, report: Report, by: str) -> str:
    """Say in the log, once, that there is such a report; gives the leaf. Raises WrongUse."""
    if not is_person(by):
        raise WrongUse("--by: write who asks with letters, digits, space . @ -, at most 60")
    row = report.model
    leaf = rooms.record.say(
        "model.assessed", f"model/{row.digest}/assessed/{report.digest}",
        {
            "model": row.digest, "id": row.id, "version": row.version, "by": by,
            "authn": "asserted", "report": report.digest,
            **({"against": report.against.digest} if report.against else {}),
        },
        refs=[("model.registered", row.leaf_of("registered") or "")],
    )  # fmt: skip
    with writing(rooms.database) as connection:
        hold(connection, CONSENT)  # as every act on a model
        (now,) = catalog.find_models(connection, row.digest)
        if all(act["leaf"] != leaf for act in now.acts):
            act = {
                "act": "assessed", "by": by, "authn": "asserted", "at": rooms.now().isoformat(),
                "leaf": leaf, "report": report.digest, "read": report.read,
            }  # fmt: skip
            catalog.set_model(connection, row.digest, registry.State(now.state), [*now.acts, act])
    return leaf


def _live(live: Sequence[ModelRow], model: ModelRow) -> ModelRow | None:
    """Find the live version of the same id, if it is another one."""
    return next((r for r in live if r.id == model.id and r.digest != model.digest), None)


def _named(row: ModelRow) -> Model:
    return Model(row.id, row.version, row.digest)


def _reading(one: Outcome) -> Reading:
    findings = Findings.from_json(dict(one.findings)) if one.findings else None
    state = RouteState(one.state)
    age = one.attributes.get("AgeYears")
    return Reading(
        input=f"{one.study_id}/{one.generation}/{sorted(one.roles.values())}",
        state=_STATES.get(state, str(state)), at=one.opened_at, code=one.code,
        seconds=one.seconds,
        waited=(one.finished_at - one.opened_at).total_seconds() if one.finished_at else None,
        positive=is_positive(findings) if findings else None,
        measures=measured(findings) if findings else {},
        groups={
            "age": age_band(None if age is None else float(age)),
            "sex": str(one.attributes.get("PatientSex") or "unknown"),
            "source": one.calling_ae,
            "manufacturer": str(one.attributes.get("Manufacturer") or "unknown"),
        },
    )  # fmt: skip
