"""The life of a study, on one screen.

receive → assemble → route → consent → infer → report → record → deliver

`study` follows an arrival until its input is complete; `route` takes one model's input
through consent, inference and report, and records each fact; `deliver` brings the
objects to one destination. Each step may be repeated and never runs again once it
has finished; a crash anywhere continues at the step it hit. No model waits for
another, no destination for another.
"""

from __future__ import annotations

from bridge import close, compose, deliver, follow, infer
from bridge.engine import Engine, StepFailed
from bridge.rooms import Rooms
from bridge.store import arrivals, work
from bridge.store.database import reading, writing
from bridge.study import RouteState

__all__ = ["QUEUES", "declare"]

QUEUES = {"study": 64, "route": 2, "deliver": 2}
POLL = 0.3  # seconds; each queue's polling costs about a percent of a core when idle


def declare(engine: Engine, rooms: Rooms) -> None:
    """Declare the three workflows on an engine that is not launched yet."""
    for name, width in QUEUES.items():
        engine.queue(name, width, partitioned=name == "deliver", poll=POLL)  # by destination

    look = engine.step("look", attempts=20, interval=0.5)(lambda s, g: follow.look(rooms, s, g))
    seal = engine.step("seal", attempts=5)(lambda r: infer.seal(rooms, r))
    consent = engine.step("consent", attempts=20)(lambda r: infer.permitted(rooms, r))
    run = engine.step("infer", attempts=3)(lambda r, n: infer.run(rooms, r, n))
    report = engine.step("report", attempts=3)(lambda r: compose.compose(rooms, r))
    record = engine.step("record", attempts=20)(lambda r: deliver.open_deliveries(rooms, r))
    send = engine.step("send", attempts=5)(lambda r, d, n: deliver.send(rooms, r, d, n))
    finish = engine.step("finish", attempts=20)(lambda s, g: close.finish(rooms, s, g))
    lost = engine.step("lost", attempts=20)(lambda r, why: _lost(rooms, r, why))
    place = engine.step("place")(lambda r: _place(rooms, r))

    @engine.workflow("study")
    def study(study_id: str, generation: int) -> None:
        # receive has made the images durable; assemble and route look until all is decided.
        while (seconds := look(study_id, generation)) > 0:
            engine.wait(seconds)
        finish(study_id, generation)

    @engine.workflow("route")
    def route(route_id: str, attempt: int) -> None:
        study_id, generation = place(route_id)
        try:
            if seal(route_id) == infer.SEALED and consent(route_id):
                run_id = run(route_id, attempt)
                for destination in record(report(run_id)) if run_id else ():
                    engine.enqueue(
                        "deliver", "deliver", f"deliver/{run_id}/{destination}",
                        run_id, destination, partition=destination,
                    )  # fmt: skip
        except StepFailed as error:
            # The worker's own trouble (a full disk, an object that fails our check), not the
            # model's: the study says so, and `radseal retry` starts here again.
            lost(route_id, str(error))
        finish(study_id, generation)

    @engine.workflow("deliver")
    def deliver_run(run_id: str, destination: str) -> None:
        attempt = 0
        while (seconds := send(run_id, destination, attempt)) >= 0:
            engine.wait(seconds)
            attempt += 1
        finish(*place(run_id))


def _place(rooms: Rooms, identity: str) -> tuple[str, int]:
    """Give the study and generation of a route or a run."""
    with reading(rooms.database) as connection:
        return work.place(connection, identity)


def _lost(rooms: Rooms, route_id: str, why: str) -> None:
    with writing(rooms.database) as connection:
        route = work.route(connection, route_id)
        work.set_route(connection, route_id, RouteState.FAILED, why)
        arrivals.tell(
            connection, key=f"lost/{route_id}/{why[:80]}", study_id=route.study_id,
            generation_number=route.generation, at=rooms.now(), stage="report", code="failed",
            words=why, model_id=route.model_id,
        )  # fmt: skip
