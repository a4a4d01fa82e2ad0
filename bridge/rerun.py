"""Run a model again on the same stored input, and compare with what the log holds of the run.

Nothing is delivered and no row of the run changes. The leaf inference.completed commits to
findings and mask under the study's key; where both come out bit for bit the same, the
commitment made from them is the leaf's. Outputs repeat only on the same runtime, version,
provider and CPU, so both sides are named.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bridge import permit
from bridge.errors import NotFound, Refused
from bridge.infer import LIMITS, MASK, chain_of, output_digest, paths_of
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.database import reading
from bridge.store.work import RouteRow
from bridge.vault import SubjectErased
from models import sandbox
from models.errors import PackageError, RunFailed

__all__ = ["COMMITMENT", "FINDINGS", "Rerun", "changed", "rerun"]

COMMITMENT: Final = "commitment"
FINDINGS: Final = "findings"


@dataclass(frozen=True, slots=True)
class Rerun:
    """What came out the second time.

    `basis` says what was compared: the leaf's commitment to findings and mask, or, where the
    log holds none, the stored findings only. `differs` names what is not the same; empty where
    all is equal. `then` and `now` are what ran it.
    """

    run_id: str
    statement: str
    basis: str
    leaf: str | None
    differs: tuple[str, ...]
    then: Mapping[str, Any]
    now: Mapping[str, Any]

    @property
    def words(self) -> str:
        """Say it in a sentence."""
        what = {
            COMMITMENT: "findings and mask, bit for bit, by the commitment in the log",
            FINDINGS: "the stored findings only: the log holds no commitment of this run",
        }[self.basis]
        told = f"differs in {', '.join(self.differs)}" if self.differs else "equal"
        machine = changed(self.then, self.now)
        here = f"; it ran elsewhere then: other {', '.join(machine)}" if machine else ""
        return f"{told} (compared: {what}){here}"


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what of the runtime is not as it was; which process of ours ran it does not count."""
    keys = (set(then) & set(now)) - {"process"}
    return sorted(key for key in keys if then[key] != now[key])


def rerun(rooms: Rooms, run_id: str) -> Rerun:
    """Run it again and compare. Raises NotFound or Refused, with the reason, where it cannot be."""
    with reading(rooms.database) as connection:
        before = work.find_run(connection, run_id)
        if before is None:
            raise NotFound("no such run here; see `radseal runs`")
        study_id, _ = work.place(connection, run_id)
    if before.state != "completed":
        raise Refused(f"this run {before.state} ({before.code or 'now'}): nothing to compare with")
    with rooms.files.turns.share(study_id):
        with reading(rooms.database) as connection:
            route = work.route(connection, before.route_id)
        # In the route's folder: what a crash leaves behind goes with it, by erasure at the latest.
        beside = rooms.files.run_folder(route.id)
        folder = Path(tempfile.mkdtemp(prefix="rerun-", dir=beside))
        try:
            _permitted(rooms, route)
            return _compared(rooms, route, before, folder)
        except SubjectErased as error:
            raise Refused(str(error)) from None
        except PackageError as error:
            raise Refused(f"the model's package is not usable any more: {error}") from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # the run's own files are still there
                beside.rmdir()


def _permitted(rooms: Rooms, route: RouteRow) -> None:
    with reading(rooms.database) as connection:
        leaf = arrivals.leaf_of(connection, f"input/{route.id}")
    answer = permit.ask(rooms, route, moment="inference", input_sealed=leaf)
    if not answer.permitted:
        raise Refused(f"this study may not be read again: {answer.words}")


def _compared(rooms: Rooms, route: RouteRow, before: Any, folder: Path) -> Rerun:
    chain, study, _ = chain_of(rooms, route)
    roles = paths_of(rooms, study, route)
    paths = [path for files in roles.values() for path in files]
    missing = sum(not path.exists() for path in paths)
    if missing:
        raise Refused(f"{missing} of {len(paths)} images of this run are no longer stored here")
    package = rooms.catalog.package(route.model_digest)
    try:
        sealed = sandbox.seal(paths=paths, work=folder, limits=LIMITS)
        if sealed.input_digest != route.input_digest:
            raise Refused("the stored images are not the ones that were sealed for this run")
        outcome = sandbox.run(
            package=package, roles=roles, work=folder, limits=LIMITS, cached=sealed.cached,
            warnings=tuple(route.warnings),
        )  # fmt: skip
    except RunFailed as error:
        raise Refused(f"it completed then and failed now ({error.code}): {error.text}") from None
    found = json.loads(json.dumps(outcome.findings.to_json()))
    differs = _different(before.findings, found)
    leaf = rooms.record.find(f"ended/{before.id}")
    said = rooms.record.body(leaf).get("output") if leaf is not None else None
    if said is not None and not differs:
        # The row's own order of keys, which is the one that was digested.
        mask = folder / MASK
        digest = output_digest(before.findings, mask if mask.exists() else None)
        now = rooms.record.text(rooms.record.keyed(chain, "output", digest))
        differs = () if now == said else ("the mask, or the findings as they were stored",)
    return Rerun(
        run_id=before.id, statement=outcome.findings.statement,
        basis=FINDINGS if said is None else COMMITMENT, leaf=leaf, differs=differs,
        then=dict(before.runtime or {}), now=dict(outcome.runtime),
    )  # fmt: skip


def _different(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the parts of the findings that are not the same; never their values."""
    return tuple(sorted(key for key in {*then, *now} if then.get(key) != now.get(key)))
