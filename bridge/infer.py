"""Seal a route's input, then run its model over it in a child process.

`seal` decodes the pixels once (models.sandbox) and appends input.sealed; `run` starts
the model and appends inference.started, then completed or failed. Whatever a model or
a picture does to the child is the run's outcome, with a reason, and harms nothing else
(design §4.7).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge import metrics, permit
from bridge.catalog.lifecycle import suspension
from bridge.errors import Refused
from bridge.record import Chain, Ref, input_root
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.arrivals import GenerationRow, StudyRow
from bridge.store.database import reading, writing
from bridge.store.work import RouteRow
from bridge.study import RouteState
from models import sandbox
from models.errors import RunFailed
from models.findings import Findings
from models.package import Package

__all__ = [
    "CARRIED", "LIMITS", "MASK", "SEALED", "chain_of", "output_digest", "paths_of", "permitted",
    "run", "run_id", "seal",
]  # fmt: skip

SEALED, CARRIED = "sealed", "carried"
LIMITS = sandbox.Limits()
MASK = "mask.npz"  # models.tasks writes it, bridge.compose reads it


def chain_of(rooms: Rooms, route: RouteRow) -> tuple[Chain, StudyRow, GenerationRow]:
    """Give the chain that a route's leaves belong to, with its study and generation."""
    with reading(rooms.database) as connection:
        study = arrivals.study(connection, route.study_id)
        generation = arrivals.generation(connection, route.study_id, route.generation)
    if generation is None:
        raise KeyError(route.id)
    return rooms.record.chain(generation.subject_ref, study.study_instance_uid), study, generation


def paths_of(rooms: Rooms, study: StudyRow, route: RouteRow) -> dict[str, list[Path]]:
    """Give the files of each role."""
    return {
        role: [rooms.files.instance(study.study_instance_uid, arrival) for arrival in files]
        for role, files in route.arrivals.items()
    }


def run_id(route_id: str, attempt: int) -> str:
    """Name a run: the same route and attempt give the same id."""
    return hashlib.sha256(f"run/{route_id}/{attempt}".encode()).hexdigest()[:32]


def seal(rooms: Rooms, route_id: str) -> str:
    """Fix a route's input; returns sealed, or carried when this model read it before."""
    with reading(rooms.database) as connection:
        route = work.route(connection, route_id)
    chain, study, generation = chain_of(rooms, route)
    paths = paths_of(rooms, study, route)
    reason, digest, decoders = "", None, {}
    try:
        sealed = sandbox.seal(
            paths=[path for files in paths.values() for path in files],
            work=rooms.files.run_folder(route_id),
            limits=LIMITS,
            beside=_beside(rooms, route),
        )
        digest, decoders = sealed.input_digest, dict(sealed.decoders)
    except RunFailed as error:
        reason = f"{error.code}: {error.text}"
    with writing(rooms.database) as connection:
        earlier = work.twin(connection, route, digest) if digest else None
        if earlier is not None:
            _carry(rooms, connection, route, earlier, digest)
            return CARRIED
    leaf = _say_sealed(rooms, chain, study, route, digest, decoders)
    with writing(rooms.database) as connection:
        work.set_route(connection, route_id, RouteState.SEALING, reason, input_digest=digest)
        arrivals.tell(
            connection, key=f"input/{route_id}", study_id=study.id,
            generation_number=generation.generation, at=rooms.now(), stage="assemble",
            code="input.sealed", words=f"input fixed: {route.evidence.words}",
            model_id=route.model_id, leaf=leaf,
        )  # fmt: skip
    return SEALED


def _beside(rooms: Rooms, route: RouteRow) -> list[Path]:
    """Give the folders of this generation's routes that read the very same files."""
    mine = sorted(one for files in route.arrivals.values() for one in files)
    with reading(rooms.database) as connection:
        routes = work.routes_of(connection, route.study_id, route.generation)
    return [
        rooms.files.work / other.id
        for other in routes
        if other.id != route.id
        and sorted(one for files in other.arrivals.values() for one in files) == mine
    ]


def _carry(
    rooms: Rooms, connection: Any, route: RouteRow, earlier: RouteRow, digest: str | None
) -> None:
    words = f"this model read this very input in generation {earlier.generation}: its result stands"
    work.set_route(connection, route.id, RouteState.CARRIED, words, input_digest=digest)
    arrivals.tell(
        connection, key=f"carried/{route.id}", study_id=route.study_id,
        generation_number=route.generation, at=rooms.now(), stage="infer", code="carried",
        words=words, model_id=route.model_id,
    )  # fmt: skip


def _say_sealed(
    rooms: Rooms,
    chain: Chain,
    study: StudyRow,
    route: RouteRow,
    digest: str | None,
    decoders: Mapping[str, Any],
) -> str:
    with reading(rooms.database) as connection:
        held = {row.arrival: row for row in arrivals.by_arrival(connection, study.id)}
        received = arrivals.leaf_of(connection, f"received/{study.id}/{route.generation}")
    used = [held[arrival] for files in route.arrivals.values() for arrival in files]
    root = input_root(chain.key, [(i.sop_instance_uid, i.dataset_sha256) for i in used])
    evidence = route.evidence
    body: dict[str, Any] = {
        "route": {"model": route.model_digest, "roles": sorted(route.roles)},
        "root": rooms.record.text(root),
        "counts": {role: len(files) for role, files in route.arrivals.items()},
        "evidence": {
            "kind": evidence.kind, "held": evidence.held, "expected": evidence.expected,
            "seconds": evidence.seconds, "incomplete": evidence.incomplete,
        },
        "generation": route.generation,
    }  # fmt: skip
    if decoders:
        body["decoders"] = decoders
    if digest is not None:
        # Keyed, so that nobody can try pictures against the log.
        body["digest"] = rooms.record.text(rooms.record.keyed(chain, "input", digest))
    return rooms.record.say(
        "input.sealed", f"input/{route.id}", body, chain=chain,
        refs=[("study.received", received)],
    )  # fmt: skip


def run(rooms: Rooms, route_id: str, attempt: int) -> str | None:
    """Run the route's model once; returns the run's id, whose row says how it ended.

    None where consent denies it (again) at the last moment, or a person cancelled it: then
    nothing ran.
    """
    with reading(rooms.database) as connection:
        route = work.route(connection, route_id)
    if route.state is RouteState.CANCELLED:
        return None
    chain, study, _ = chain_of(rooms, route)
    identity, at = run_id(route_id, attempt), rooms.now()
    package = rooms.catalog.package(route.model_digest)
    body = {
        "model": route.model_digest, "run": identity, "attempt": attempt,
        "package": package.package_digest,
    }  # fmt: skip
    started = _started(rooms, chain, route, identity, body)
    if started is None:
        return None
    mode = _mode(rooms, route, started)
    with writing(rooms.database) as connection:
        work.start_run(connection, identity, route_id, attempt, at)
        work.set_route(connection, route_id, RouteState.RUNNING, route.reason, mode=mode)
        _tell(rooms, connection, route, identity, "inference.started",
              f"{package.name} {package.version} started", started)  # fmt: skip
        undecided = work.run_of(connection, identity).state == "running"
    if undecided:
        _execute(rooms, study, route, package, identity)
    # A crash here: the row has decided. The leaf is made from it, the model is not asked again.
    _say_ended(rooms, chain, route, identity, started)
    return identity


def _execute(
    rooms: Rooms, study: StudyRow, route: RouteRow, package: Package, identity: str
) -> None:
    """Start the model over its input and write into the run's row how it ended."""
    folder = rooms.files.run_folder(route.id)
    (folder / MASK).unlink(missing_ok=True)  # an earlier attempt's
    try:
        if route.input_digest is None:
            code, _, words = route.reason.partition(": ")
            raise RunFailed(code or "undecodable", words or "the pixels cannot be decoded")
        outcome = sandbox.run(
            package=package, roles=paths_of(rooms, study, route), work=folder, limits=LIMITS,
            cached=folder / "pixels", warnings=tuple(route.warnings),
        )  # fmt: skip
    except RunFailed as error:
        metrics.RUNS.labels(route.model_id, "failed").inc()
        with writing(rooms.database) as connection:
            work.finish_run(
                connection, identity, "failed", rooms.now(), code=error.code, reason=error.text
            )
        return
    metrics.RUNS.labels(route.model_id, "completed").inc()
    metrics.RUN_SECONDS.labels(route.model_id).observe(outcome.seconds)
    with writing(rooms.database) as connection:
        work.finish_run(
            connection, identity, "completed", rooms.now(), seconds=outcome.seconds,
            peak_mb=outcome.peak_mb, findings=outcome.findings.to_json(),
            runtime=dict(outcome.runtime),
        )  # fmt: skip


def _started(
    rooms: Rooms, chain: Chain, route: RouteRow, identity: str, body: Mapping[str, Any]
) -> str | None:
    """Append inference.started on a permit that still holds; None where consent denies it."""
    with reading(rooms.database) as connection:
        input_leaf = arrivals.leaf_of(connection, f"input/{route.id}")
    started = None
    while started is None:
        answer = permit.ask(rooms, route, moment="inference", input_sealed=input_leaf)
        if not answer.permitted:
            _deny(rooms, chain, route, identity, answer.words)
            return None
        refs = [("input.sealed", input_leaf), ("consent.checked", answer.leaf)]
        started = permit.stand_on(
            rooms, route.id, answer,
            functools.partial(_say_started, rooms, chain, route, identity, body, refs),
        )  # fmt: skip
    return started


def _say_started(
    rooms: Rooms,
    chain: Chain,
    route: RouteRow,
    identity: str,
    body: Mapping[str, Any],
    refs: Sequence[Ref],
) -> str:
    """Append inference.started; raises Refused where the model is out of routing by now.

    Called under the lock that activations are suspended under; the log is asked, too, because a
    crash may have left a suspension there that no row knows yet.
    """
    activated = rooms.catalog.activated(route.model_digest)
    if rooms.record.find(suspension(activated)) is not None:
        raise Refused("the model was taken out of routing before it could run on this study")
    return rooms.record.say(
        "inference.started", f"started/{identity}", body, chain=chain,
        refs=[*refs, ("model.activated", activated)],
    )  # fmt: skip


def _mode(rooms: Rooms, route: RouteRow, started: str) -> str:
    """Give how a route goes on: as a shadow once it was one, or stands on a shadow's activation."""
    activated = rooms.record.stands_on(started, "model.activated")
    said = {} if activated is None else rooms.record.body(activated)
    return "shadow" if route.shadow or said.get("mode") == "shadow" else "active"


def permitted(rooms: Rooms, route_id: str) -> bool:
    """Ask consent before the run; a denial is the route's end, with its reason."""
    with reading(rooms.database) as connection:
        route = work.route(connection, route_id)
        leaf = arrivals.leaf_of(connection, f"input/{route_id}")
    answer = permit.ask(rooms, route, moment="inference", input_sealed=leaf)
    if not answer.permitted:
        with writing(rooms.database) as connection:
            work.set_route(connection, route_id, RouteState.DENIED, answer.words)
    return answer.permitted


def _deny(rooms: Rooms, chain: Chain, route: RouteRow, identity: str, words: str) -> None:
    """End a route at the last moment; a start that a crash left open is closed in the log."""
    started = rooms.record.find(f"started/{identity}")
    if started is not None:
        rooms.record.say(
            "inference.failed", f"ended/{identity}",
            {"model": route.model_digest, "run": identity, "reason": "consent"},
            chain=chain, refs=[("inference.started", started)],
        )  # fmt: skip
    with writing(rooms.database) as connection:
        work.set_route(connection, route.id, RouteState.DENIED, words)


def _say_ended(rooms: Rooms, chain: Chain, route: RouteRow, identity: str, started: str) -> None:
    """Append inference.completed or failed, as the run's row says."""
    with reading(rooms.database) as connection:
        row = work.run_of(connection, identity)
    code = f"inference.{row.state}"
    body: dict[str, Any] = {"model": route.model_digest, "run": identity}
    if row.state == "failed":
        body["reason"] = row.code
        words = f"failed ({row.code}): {row.reason}"
    else:
        mask = rooms.files.run_folder(route.id) / MASK
        digest = output_digest(row.findings, mask if mask.exists() else None)
        body |= {
            "milliseconds": round(row.seconds * 1000), "peak_mb": round(row.peak_mb),
            "runtime": _facts(row.runtime),
            "output": rooms.record.text(rooms.record.keyed(chain, "output", digest)),
            "parameters": _parameters_digest(row.findings),
        }  # fmt: skip
        words = f"completed in {row.seconds:.1f} s: {Findings.from_json(row.findings).statement}"
    leaf = rooms.record.say(
        code, f"ended/{identity}", body, chain=chain, refs=[("inference.started", started)]
    )
    with writing(rooms.database) as connection:
        _tell(rooms, connection, route, identity, code, words, leaf)


def _tell(
    rooms: Rooms,
    connection: Any,
    route: RouteRow,
    identity: str,
    code: str,
    words: str,
    leaf: str,
) -> None:
    arrivals.tell(
        connection, key=f"{code}/{identity}", study_id=route.study_id,
        generation_number=route.generation, at=rooms.now(), stage="infer", code=code,
        words=words, model_id=route.model_id, leaf=leaf,
    )  # fmt: skip


def _facts(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Give the runtime as a leaf can hold it: labels, whole numbers, lists of labels."""

    def fact(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): fact(v) for k, v in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [fact(v) for v in value]
        return value if isinstance(value, int | bool) or value is None else str(value)[:200] or "-"

    return {str(key): fact(value) for key, value in runtime.items()}


def _parameters_digest(findings: Mapping[str, Any]) -> str:
    """SHA-256 of the algorithm parameters as a JSON array: operating points and thresholds.

    They come from the manifest and name nobody; whoever has the SR can repeat it.
    """
    said = json.dumps(list(findings["parameters"]), separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def output_digest(findings: Mapping[str, Any], mask: Path | None) -> str:
    """SHA-256 of what a run found, in hex: what the leaf commits to under the study's key."""
    digest = hashlib.sha256(repr(sorted(findings.items())).encode())
    if mask is not None:
        digest.update(mask.read_bytes())
    return digest.hexdigest()
