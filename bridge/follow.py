"""Following an arrival: look at what is held, ask the source, open routes that are ready.

The decisions are `assemble.judge` and `route.plan`; this is the door between them
and the rows. Each look is a step: it can be repeated at any time to the same end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from sqlalchemy import Connection

from bridge import assemble, route, scope
from bridge.engine import ROUTINE, URGENT
from bridge.errors import BadInstance
from bridge.files import received_ns_of
from bridge.header import dataset_of
from bridge.peers import dicom
from bridge.record import input_root
from bridge.rooms import Rooms
from bridge.store import arrivals, quarantine, work
from bridge.store.arrivals import GenerationRow, HeldRow, StudyRow
from bridge.store.catalog import ModelRow
from bridge.store.database import reading, writing
from bridge.study import StudyState
from models.package import Package

__all__ = ["look", "route_id"]

_AT_ONCE = 0.05
_AFTER_LIVE = 100  # a shadow's route waits for all that are delivered


def route_id(study_id: str, generation: int, model_digest: str) -> str:
    """Name a route: the same study, generation and model give the same id."""
    text = f"{study_id}/{generation}/{model_digest}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def look(rooms: Rooms, study_id: str, generation: int) -> float:
    """Look once at a generation; returns seconds until the next look, 0 when it is sealed."""
    # Asked before the rows are read: what came until then is in the rows.
    now = _known_until(rooms)
    with reading(rooms.database) as connection:
        study = arrivals.study(connection, study_id)
        current = arrivals.generation(connection, study_id, generation)
        held = arrivals.held(connection, study_id)
        own = arrivals.own_series(connection, study_id)
        apart = quarantine.set_apart(connection, study_id)
    if current is None or current.sealed_at is not None:
        return 0.0
    models = rooms.catalog.active()
    rules = _rules(rooms)
    askable = rooms.site.askable(study.calling_ae) is not None
    facts = _arrivals(rooms, current, held, own, apart, now, askable=askable)
    verdict = assemble.judge(facts, rules, now)
    if verdict.ask and askable:
        newest = max((one.received_at for one in held), default=current.opened_at)
        answers = _ask(rooms, study, current, models, newest)
        facts = _arrivals(
            rooms, current, held, own, apart, now, askable=answers is not None, answers=answers
        )
        verdict = assemble.judge(facts, rules, now)
    within, refused = _in_scope(models, study, held)
    ready, unfit = route.plan([package for _, package in within], held, verdict)
    refused += unfit
    modes = {row.digest: row.state for row, _ in within}
    for one in ready:
        if not _open(rooms, study, current, held, one, modes[one.package.model_digest]):
            return _AT_ONCE
    if verdict.study is not None:
        _received(rooms, study, current, held)
    with writing(rooms.database) as connection:
        if verdict.study is None:
            arrivals.set_waiting_words(connection, study_id, verdict.words)
            return max(_AT_ONCE, verdict.look_again_in)
        if _more_came(connection, current, held):
            return _AT_ONCE
        _seal(rooms, connection, study, current, verdict, ready, refused)
    return 0.0


def _in_scope(
    models: Sequence[tuple[ModelRow, Package]], study: StudyRow, held: Sequence[HeldRow]
) -> tuple[list[tuple[ModelRow, Package]], list[route.Refused]]:
    """Part the models by whether this study is within the scope that they were activated for."""
    within, refused = [], []
    for row, package in models:
        reason = scope.outside(row.scope, study.calling_ae, held)
        if reason is None:
            within.append((row, package))
        else:
            refused.append(route.Refused(package, reason))
    return within, refused


def _known_until(rooms: Rooms) -> datetime:
    """Until when the rows tell all: now, or when the oldest file came that nobody has indexed.

    Silence is proven only as far as the indexer has come; a backlog is no quiet period.
    """
    now = rooms.clock.steady()
    oldest = next(iter(rooms.files.arrived(1)), None)
    if oldest is None:
        return now
    return min(now, datetime.fromtimestamp(received_ns_of(oldest.stem) / 1e9, UTC))


def _listening(rooms: Rooms, now: datetime) -> datetime:
    """Since when somebody listens and we watch: `now` while nobody could send anything."""
    started = rooms.clock.started
    return max(started, rooms.files.attention.since(started) or now)


def _more_came(connection: Connection, current: GenerationRow, held: Sequence[HeldRow]) -> bool:
    """Whether images came (or were corrected) since we looked; if not, none can until we commit."""
    arrivals.generation(connection, current.study_id, current.generation, hold=True)
    now_held = arrivals.held(connection, current.study_id)
    return {one.arrival for one in now_held} != {one.arrival for one in held}


def _rules(rooms: Rooms) -> assemble.Rules:
    completion = rooms.site.completion
    return assemble.Rules(
        completion.quiet_seconds, completion.settle_seconds, completion.max_wait_seconds
    )


def _arrivals(
    rooms: Rooms,
    current: GenerationRow,
    held: Sequence[HeldRow],
    own: frozenset[str],
    apart: Mapping[str, int],
    now: datetime,
    *,
    askable: bool,
    answers: Sequence[assemble.Answer] | None = None,
) -> assemble.Arrivals:
    counts: dict[str, int] = {}
    for instance in held:
        uid = instance.series_instance_uid
        counts[uid] = counts.get(uid, 0) + 1
    last = {uid: max(i.received_at for i in held if i.series_instance_uid == uid) for uid in counts}
    if answers is None:
        answers = _kept(current)
    readable = answers[-1].readable if answers else frozenset()
    return assemble.Arrivals(
        held=counts, last=last, opened=current.opened_at, since=_listening(rooms, now),
        declared=current.declared, answers=answers, askable=askable,
        readable=readable, own=own, apart=apart,
    )  # fmt: skip


def _kept(current: GenerationRow) -> list[assemble.Answer]:
    return [
        assemble.Answer(
            datetime.fromisoformat(a["at"]), a["series"], frozenset(a.get("readable", ()))
        )
        for a in current.counts.get("answers", [])
    ]


def _ask(
    rooms: Rooms,
    study: StudyRow,
    current: GenerationRow,
    models: Sequence[tuple[ModelRow, Package]],
    newest: datetime,
) -> list[assemble.Answer] | None:
    """Ask the source for its counts and keep the last two answers; None if it cannot tell."""
    source = rooms.site.askable(study.calling_ae)
    if source is None or source.port is None:
        return None
    peer = dicom.Peer(source.ae_title, source.host, source.port, rooms.site.listener.ae_title)
    asked_at = rooms.clock.steady()
    counted = dicom.counts(peer, study.study_instance_uid)
    if counted is None:
        return None
    wanted = route.modalities([package for _, package in models])
    readable = frozenset(
        uid for uid, modality in counted.modalities.items() if not wanted or modality in wanted
    )
    told = assemble.Answer(asked_at, dict(counted.series), readable)
    answers = assemble.kept(_kept(current), told, newest)
    with writing(rooms.database) as connection:
        arrivals.keep_counts(connection, study.id, current.generation, {
            "source": source.name,
            "answers": [
                {"at": a.at.isoformat(), "series": dict(a.series), "readable": sorted(a.readable)}
                for a in answers
            ],
        })  # fmt: skip
    return answers


def _received(
    rooms: Rooms, study: StudyRow, current: GenerationRow, held: Sequence[HeldRow]
) -> str:
    """Append study.received, once a generation: what is held when its first route opens."""
    chain = rooms.record.chain(current.subject_ref, study.study_instance_uid)
    source = rooms.site.source_of(study.calling_ae)
    root = input_root(chain.key, [(i.sop_instance_uid, i.dataset_sha256) for i in held])
    leaf = rooms.record.say(
        "study.received", f"received/{study.id}/{current.generation}",
        {
            "source": source.name if source is not None else "unlisted",
            "protocol": "C-STORE", "generation": current.generation, "instances": len(held),
            "series": len({i.series_instance_uid for i in held}), "root": rooms.record.text(root),
        },
        chain=chain,
    )  # fmt: skip
    with writing(rooms.database) as connection:
        arrivals.tell(
            connection, key=f"received/{study.id}/{current.generation}", study_id=study.id,
            generation_number=current.generation, at=rooms.now(), stage="receive",
            code="study.received", words=f"{len(held)} images held", leaf=leaf,
        )  # fmt: skip
    return leaf


def _open(
    rooms: Rooms,
    study: StudyRow,
    current: GenerationRow,
    held: Sequence[HeldRow],
    ready: route.Ready,
    mode: str,
) -> bool:
    """Open a route: its row, its story and its workflow in one transaction.

    False where more images came since we looked: then the route is not opened.
    """
    identity = route_id(study.id, current.generation, ready.package.model_digest)
    _received(rooms, study, current, held)
    package, at = ready.package, rooms.now()
    priority = URGENT if _urgent(rooms, study, ready) else ROUTINE
    with writing(rooms.database) as connection:
        if _more_came(connection, current, held):
            return False
        fresh = work.add_route(
            connection, route_id=identity, study_id=study.id, generation=current.generation,
            model=(package.model_digest, package.id, package.version), roles=ready.roles,
            arrivals=ready.arrivals, evidence=asdict(ready.evidence), warnings=ready.warnings,
            at=at, mode=mode,
        )  # fmt: skip
        if not fresh:
            return True
        count = sum(len(files) for files in ready.arrivals.values())
        arrivals.tell(
            connection, key=f"route/{identity}", study_id=study.id,
            generation_number=current.generation, at=at, stage="route", code="wanted",
            words=f"{package.id} {package.version} wants {count} images"
            f"{' as a shadow' if mode == 'shadow' else ''}: {ready.evidence.words}",
            model_id=package.id,
        )  # fmt: skip
        for warning in ready.warnings:
            arrivals.tell(
                connection, key=f"warning/{identity}/{warning[:80]}", study_id=study.id,
                generation_number=current.generation, at=at, stage="route", code="warning",
                words=warning, model_id=package.id,
            )  # fmt: skip
        arrivals.set_state(connection, study.id, StudyState.WORKING, "at work", at)
        rooms.work.enqueue_in(
            connection, "route", "route", f"route/{identity}/1", identity, 1,
            priority=priority + (_AFTER_LIVE if mode == "shadow" else 0),
        )  # fmt: skip
    return True


def _urgent(rooms: Rooms, study: StudyRow, ready: route.Ready) -> bool:
    """Whether the first image of a route says that its study is urgent."""
    first = next(arrival for files in ready.arrivals.values() for arrival in files)
    try:
        header = dataset_of(rooms.files.instance(study.study_instance_uid, first), route.URGENCY)
    except BadInstance:
        return False  # the run will say what is wrong with the file
    return route.is_urgent(header)


def _seal(
    rooms: Rooms,
    connection: Connection,
    study: StudyRow,
    current: GenerationRow,
    verdict: assemble.Verdict,
    ready: Sequence[route.Ready],
    refused: Sequence[route.Refused],
) -> None:
    at = rooms.now()
    words = verdict.study.words if verdict.study is not None else ""
    arrivals.seal_generation(connection, study.id, current.generation, words, at)
    arrivals.tell(
        connection, key=f"sealed/{study.id}/{current.generation}", study_id=study.id,
        generation_number=current.generation, at=at, stage="assemble", code="complete",
        words=words,
    )  # fmt: skip
    for one in refused:
        package = one.package
        _unwanted(connection, study, current, at,
                  (package.model_digest, package.id, package.version), one.reason)  # fmt: skip
    for row, reason in rooms.catalog.broken():
        _unwanted(connection, study, current, at, (row.digest, row.id, row.version), reason)
    if not ready and not work.routes_of(connection, study.id, current.generation):
        reason = "no active model wants this study" if refused else "no model is active"
        arrivals.set_state(connection, study.id, StudyState.UNWANTED, reason, at)


def _unwanted(
    connection: Connection,
    study: StudyRow,
    current: GenerationRow,
    at: datetime,
    model: tuple[str, str, str],
    reason: str,
) -> None:
    """Say why a model (digest, id, version) does not read this study."""
    digest, model_id, _ = model
    work.note_unwanted(connection, study.id, current.generation, model, reason)
    arrivals.tell(
        connection, key=f"unwanted/{study.id}/{current.generation}/{digest}", study_id=study.id,
        generation_number=current.generation, at=at, stage="route", code="not wanted",
        words=f"{model_id}: {reason}", model_id=model_id,
    )  # fmt: skip
