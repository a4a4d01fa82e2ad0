"""The life of a study, on one screen.

receive → assemble → route → consent → infer → report → record → deliver

`study` follows an arrival until its input is complete; `route` takes one model's input
through consent, inference and report, and records each fact; `deliver` brings the
objects to one destination. Each step may be repeated and never runs again once it
has finished; a crash anywhere continues at the step it hit. No model waits for
another, no destination for another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bridge import close, compose, deliver, follow, infer
from bridge.engine import ROUTINE, Engine, StepFailed
from bridge.errors import StorageFull
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.database import AWAY, reading, writing
from bridge.study import RouteState, StudyState
from ledger.errors import LostRace, NotCovered, StorageFailed

__all__ = ["QUEUES", "declare"]

QUEUES = {"study": 64, "route": 2, "deliver": 2}
PATIENCE = 200  # tries, soon five minutes apart: a full disk or an absent database may last a night
POLL = 0.3  # seconds; each queue's polling costs about a percent of a core when idle

Step = Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]]


def declare(engine: Engine, rooms: Rooms) -> None:
    """Declare the three workflows on an engine that is not launched yet."""
    for name, width in QUEUES.items():
        engine.queue(name, width, partitioned=name == "deliver", poll=POLL)  # by destination
    step = functools.partial(engine.step, attempts=PATIENCE, retry_on=_passes)
    _study(engine, rooms, step)
    _route(engine, rooms, step)
    _deliver(engine, rooms, step)


def _study(engine: Engine, rooms: Rooms, step: Step) -> None:
    look = step("look")(_present(rooms, follow.look))
    stuck = step("stuck")(_present(rooms, _stuck))
    finish = step("finish")(_present(rooms, close.finish))

    @engine.workflow("study")
    def study(study_id: str, generation: int) -> None:
        # receive has made the images durable; assemble and route look until all is decided.
        try:
            while (seconds := look(study_id, generation)) > 0:
                engine.wait(seconds)
        except StepFailed as error:
            stuck(study_id, generation, str(error))
            raise  # a dead letter of the engine: `radseal retry` goes on where it stood
        finish(study_id, generation)


def _route(engine: Engine, rooms: Rooms, step: Step) -> None:
    place = step("place")(lambda r: _place(rooms, r))
    seal = step("seal")(_present(rooms, infer.seal, _place))
    consent = step("consent")(_present(rooms, infer.permitted, _place))
    run = step("infer")(_present(rooms, infer.run, _place))
    report = step("report")(_present(rooms, compose.compose, _place))
    record = step("record")(_present(rooms, deliver.open_deliveries, _place))
    priority = step("priority")(lambda r: _priority(rooms, r))
    lost = step("lost")(_present(rooms, _lost, _place))
    finish = step("finish")(_present(rooms, close.finish))

    @engine.workflow("route")
    def route(route_id: str, attempt: int) -> None:
        study_id, generation = place(route_id)
        try:
            if seal(route_id) == infer.SEALED and consent(route_id):
                run_id = run(route_id, attempt)
                wanted = record(report(run_id)) if run_id else ()
                urgency = priority(run_id) if wanted else ROUTINE
                for destination in wanted:
                    engine.enqueue(
                        "deliver", "deliver", f"deliver/{run_id}/{destination}",
                        run_id, destination, partition=destination, priority=urgency,
                    )  # fmt: skip
        except StepFailed as error:
            # The worker's own trouble (an object that fails our check, a fault of ours), not the
            # model's: the study says so, and `radseal retry` starts here again.
            lost(route_id, str(error))
        finish(study_id, generation)


def _deliver(engine: Engine, rooms: Rooms, step: Step) -> None:
    send = step("send")(_present(rooms, deliver.send, _place))
    undelivered = step("undelivered")(_present(rooms, deliver.give_up, _place))
    place = step("place")(lambda r: _place(rooms, r))
    finish = step("finish")(_present(rooms, close.finish))

    @engine.workflow("deliver")
    def deliver_run(run_id: str, destination: str) -> None:
        attempt = 0
        try:
            while (seconds := send(run_id, destination, attempt)) >= 0:
                engine.wait(seconds)
                attempt += 1
        except StepFailed as error:
            undelivered(run_id, destination, str(error))
        finish(*place(run_id))


def _present(
    rooms: Rooms,
    stage: Callable[..., Any],
    place: Callable[[Rooms, str], tuple[str, int]] | None = None,
) -> Callable[..., Any]:
    """Make a stage hold its study for one step: an erasure waits for it, or it for an erasure.

    `place` finds the study of a route or a run; without it the first argument is the study.
    """

    def step(identity: str, *rest: Any) -> Any:
        study_id = identity if place is None else place(rooms, identity)[0]
        with rooms.files.turns.share(study_id):
            return stage(rooms, identity, *rest)

    return step


def _passes(error: Exception) -> bool:
    """Whether it helps to wait: the disk is full, or database or log do not answer."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error, (*AWAY, StorageFull, StorageFailed, LostRace, NotCovered))


def _place(rooms: Rooms, identity: str) -> tuple[str, int]:
    """Give the study and generation of a route or a run."""
    with reading(rooms.database) as connection:
        return work.place(connection, identity)


def _priority(rooms: Rooms, run_id: str) -> int:
    """Give the place of a run's deliveries in their queue."""
    with reading(rooms.database) as connection:
        return deliver.priority(connection, run_id)


def _stuck(rooms: Rooms, study_id: str, generation: int, why: str) -> None:
    words = f"this study cannot be followed any further: {why}; then `radseal retry`"
    with writing(rooms.database) as connection:
        arrivals.set_state(connection, study_id, StudyState.ATTENTION, words, rooms.now())
        arrivals.tell(
            connection, key=f"stuck/{study_id}/{generation}/{why[:80]}", study_id=study_id,
            generation_number=generation, at=rooms.now(), stage="assemble", code="failed",
            words=words,
        )  # fmt: skip


def _lost(rooms: Rooms, route_id: str, why: str) -> None:
    with writing(rooms.database) as connection:
        route = work.route(connection, route_id)
        work.set_route(connection, route_id, RouteState.FAILED, why)
        arrivals.tell(
            connection, key=f"lost/{route_id}/{why[:80]}", study_id=route.study_id,
            generation_number=route.generation, at=rooms.now(), stage="report", code="failed",
            words=why, model_id=route.model_id,
        )  # fmt: skip
