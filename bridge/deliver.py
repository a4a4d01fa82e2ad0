"""Artifacts reach their destinations: once, in order of proof, or as a visible dead letter.

Nothing is sent before a published checkpoint covers its result.composed leaf; what is sent
is the copy that carries the proof of it (bridge/stamp.py). Each destination has its own
workflow, so one that is down delays no other. Consent is asked again before every attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from bridge import metrics
from bridge.compose import compose_fallback
from bridge.engine import ROUTINE, URGENT
from bridge.infer import chain_of
from bridge.peers import dicom
from bridge.permit import Answer, ask, stand_on
from bridge.record import Chain
from bridge.rooms import Rooms
from bridge.site import Destination
from bridge.stamp import stamp
from bridge.store import arrivals, work
from bridge.store.database import reading, writing
from bridge.store.work import ArtifactRow, RouteRow
from bridge.study import DeliveryState, RouteState
from bridge.superseded import say_superseded

__all__ = ["DONE", "backoff", "give_up", "open_deliveries", "priority", "send"]

DONE = -1.0
SOON = 0.05
COVERED_WITHIN = 60.0
SHADOW = "shadow: not delivered"


def backoff(attempt: int) -> float:
    """Seconds to wait after this many attempts: quick at first, then every five minutes."""
    return min(300.0, 1.0 * 2.0 ** min(attempt, 5) if attempt <= 20 else 300.0)


def open_deliveries(rooms: Rooms, run_id: str) -> list[str]:
    """Wait for the checkpoint, then open what each destination wants; returns those with work.

    A newer outcome of the same model takes the place of older, undelivered ones. What a shadow
    found goes nowhere and takes nobody's place.
    """
    with reading(rooms.database) as connection:
        artifacts = work.artifacts_of_run(connection, run_id)
        run = work.run_of(connection, run_id)
        route = work.route(connection, run.route_id)
    if route.shadow:
        _keep_from_all(rooms, route, run)
        return []
    _wait_covered(rooms, artifacts)
    for artifact in artifacts:
        stamp(rooms, artifact)
    wanted = []
    with writing(rooms.database) as connection:
        if work.route(connection, route.id).state is RouteState.CANCELLED:
            return []
        # In one commit with the deliveries, so that nobody sees the route done and them absent.
        if run.state == "completed":
            work.set_route(connection, route.id, RouteState.REPORTED)
        else:
            work.set_route(connection, route.id, RouteState.FAILED, run.reason)
        _supersede(connection, rooms, route, run_id)
        for destination in rooms.site.destinations:
            mine = [a for a in artifacts if _wants(destination, a)]
            for artifact in mine:
                work.add_delivery(connection, artifact, destination.name, rooms.now())
            if mine:
                wanted.append(destination.name)
    return wanted


def priority(connection: Connection, run_id: str) -> int:
    """Give a run's deliveries their place in the queue: what the model calls STAT goes first."""
    found = work.run_of(connection, run_id).findings or {}
    return URGENT if found.get("priority") == "STAT" else ROUTINE


def _keep_from_all(rooms: Rooms, route: RouteRow, run: Any) -> None:
    """End a shadow's route without a delivery, and say so."""
    done = run.state == "completed"
    words = SHADOW if done else f"{run.reason} ({SHADOW})"
    with writing(rooms.database) as connection:
        work.set_route(
            connection, route.id, RouteState.REPORTED if done else RouteState.FAILED, words
        )
        arrivals.tell(
            connection, key=f"shadow/{run.id}", study_id=route.study_id,
            generation_number=route.generation, at=rooms.now(), stage="deliver", code="shadow",
            words=SHADOW, model_id=route.model_id,
        )  # fmt: skip


def _wants(destination: Destination, artifact: ArtifactRow) -> bool:
    return artifact.kind.value in destination.send and (destination.partial or not artifact.partial)


def _supersede(connection: Connection, rooms: Rooms, route: RouteRow, run_id: str) -> None:
    for other in work.undelivered_of_model(connection, route.study_id, route.model_id):
        if other.run_id != run_id:
            work.set_delivery(
                connection, other.sop_instance_uid, other.destination, DeliveryState.CANCELLED,
                "a newer result takes its place", rooms.now(),
            )  # fmt: skip


def send(rooms: Rooms, run_id: str, name: str, attempt: int) -> float:
    """Try once to deliver a run's objects; returns DONE, or seconds until the next attempt."""
    destination = next((d for d in rooms.site.destinations if d.name == name), None)
    with reading(rooms.database) as connection:
        run = work.run_of(connection, run_id)
        route = work.route(connection, run.route_id)
        waiting = [
            d
            for d in work.deliveries_of(connection, run_id=run_id, destination=name)
            if d.state is DeliveryState.WAITING
        ]
        known = {a.sop_instance_uid: a for a in work.artifacts_of_run(connection, run_id)}
        input_leaf = arrivals.leaf_of(connection, f"input/{route.id}")
    batch = [known[d.sop_instance_uid] for d in waiting]
    if not batch:
        return DONE
    if route.shadow:  # it was live when these were composed, and a run of it since is a shadow's
        _settle(rooms, route, batch, name, DeliveryState.CANCELLED, SHADOW)
        return DONE
    chain, _, _ = chain_of(rooms, route)
    if destination is None:
        _settle(rooms, route, batch, name, DeliveryState.DEAD, "no such destination any more")
        return DONE
    answer = ask(rooms, route, moment=f"delivery/{name}", input_sealed=input_leaf)
    if not answer.permitted:
        _settle(rooms, route, batch, name, DeliveryState.HELD, answer.words)
        return DONE
    _wait_covered(rooms, batch)
    files = [(a.sop_instance_uid, stamp(rooms, a)) for a in batch]
    if not all(_say_started(rooms, chain, route, artifact, name, answer) for artifact in batch):
        return SOON  # consent changed between the question and the leaf: ask again
    peer = dicom.Peer(
        destination.ae_title, destination.host, destination.port,
        rooms.site.listener.ae_title,
    )  # fmt: skip
    sent = dicom.store(peer, files)
    again, soon = False, False
    for artifact in batch:
        outcome = sent[artifact.sop_instance_uid]
        metrics.DELIVERIES.labels(name, outcome.outcome).inc()
        again |= outcome.outcome == "transient"
        if outcome.not_taken and _fall_back(rooms, route, artifact, name):
            soon = True
        else:
            _settle_one(rooms, chain, route, artifact, name, outcome, attempt)
    return SOON if soon else backoff(attempt) if again else DONE


def _wait_covered(rooms: Rooms, batch: Sequence[ArtifactRow]) -> None:
    """Wait until a published checkpoint covers the leaf of each: nothing leaves before."""
    with reading(rooms.database) as connection:
        leaves = [arrivals.leaf_of(connection, f"composed/{a.run_id}/{a.kind}") for a in batch]
    rooms.record.wait_covered(leaves, COVERED_WITHIN)


def _fall_back(rooms: Rooms, route: RouteRow, artifact: ArtifactRow, name: str) -> bool:
    """Put the next older SR class in the place of one that the peer does not take."""
    older = compose_fallback(rooms, artifact.run_id, artifact.kind)
    if older is None:
        return False
    words = f"{name} does not take this SR class; {older.kind} takes its place"
    with writing(rooms.database) as connection:
        work.set_delivery(
            connection, artifact.sop_instance_uid, name, DeliveryState.CANCELLED, words,
            rooms.now(), tried=True,
        )  # fmt: skip
        work.add_delivery(connection, older, name, rooms.now())
        arrivals.tell(
            connection, key=f"fallback/{artifact.run_id}/{artifact.kind}/{name}",
            study_id=route.study_id, generation_number=route.generation, at=rooms.now(),
            stage="deliver", code="fallback", words=words, model_id=route.model_id,
        )  # fmt: skip
    return True


def give_up(rooms: Rooms, run_id: str, name: str, why: str) -> None:
    """Make a dead letter of what could not even be tried (a fault of ours); `retry` sends it."""
    with reading(rooms.database) as connection:
        route = work.route(connection, work.run_of(connection, run_id).route_id)
        waiting = {
            d.sop_instance_uid
            for d in work.deliveries_of(connection, run_id=run_id, destination=name)
            if d.state is DeliveryState.WAITING
        }
        batch = [
            a for a in work.artifacts_of_run(connection, run_id) if a.sop_instance_uid in waiting
        ]
    if batch:
        _settle(rooms, route, batch, name, DeliveryState.DEAD, f"it could not be sent: {why}")


def _settle(
    rooms: Rooms,
    route: RouteRow,
    batch: Sequence[ArtifactRow],
    name: str,
    state: DeliveryState,
    words: str,
) -> None:
    with writing(rooms.database) as connection:
        for artifact in batch:
            work.set_delivery(
                connection, artifact.sop_instance_uid, name, state, words, rooms.now()
            )
        arrivals.tell(
            connection, key=f"{state}/{batch[0].run_id}/{name}", study_id=route.study_id,
            generation_number=route.generation, at=rooms.now(), stage="deliver", code=state,
            words=f"{name}: {words}", model_id=route.model_id,
        )  # fmt: skip


def _say_started(
    rooms: Rooms, chain: Chain, route: RouteRow, artifact: ArtifactRow, name: str, answer: Answer
) -> bool:
    """Append delivery.started on this permit; False where consent changed since."""
    key = f"started/{artifact.run_id}/{artifact.kind}/{name}"
    body = {
        "destination": name, "kind": artifact.kind.value, "attempt": 1, "protocol": "C-STORE",
    }  # fmt: skip
    with reading(rooms.database) as connection:
        composed = arrivals.leaf_of(connection, f"composed/{artifact.run_id}/{artifact.kind}")
    refs = [("result.composed", composed), ("consent.checked", answer.leaf)]
    leaf = stand_on(
        rooms,
        route.id,
        answer,
        lambda: rooms.record.say("delivery.started", key, body, chain=chain, refs=refs),
    )
    if leaf is None:
        return False
    with writing(rooms.database) as connection:
        arrivals.tell(
            connection, key=key, study_id=route.study_id, generation_number=route.generation,
            at=rooms.now(), stage="deliver", code="delivery.started",
            words=f"{artifact.kind} is on its way to {name}", model_id=route.model_id, leaf=leaf,
        )  # fmt: skip
    return True


def _settle_one(
    rooms: Rooms,
    chain: Chain,
    route: RouteRow,
    artifact: ArtifactRow,
    name: str,
    outcome: dicom.Sent,
    attempt: int,
) -> None:
    leaf, state = None, DeliveryState.WAITING
    if outcome.outcome == "stored":
        state = DeliveryState.STORED
        with reading(rooms.database) as connection:
            started = arrivals.leaf_of(
                connection, f"started/{artifact.run_id}/{artifact.kind}/{name}"
            )
        leaf = rooms.record.say(
            "result.delivered", f"delivered/{artifact.run_id}/{artifact.kind}/{name}",
            {"destination": name, "kind": artifact.kind.value, "attempt": attempt + 1,
             "ack": {"status": f"0x{outcome.status or 0:04X}"}},
            chain=chain, refs=[("delivery.started", started)],
        )  # fmt: skip
        say_superseded(rooms, route, artifact, name)
    elif outcome.outcome == "permanent":
        state = DeliveryState.DEAD
    with writing(rooms.database) as connection:
        tries = work.set_delivery(
            connection, artifact.sop_instance_uid, name, state, outcome.words, rooms.now(),
            tried=True,
        )  # fmt: skip
        if state is not DeliveryState.WAITING or attempt == 0:
            code = "result.delivered" if leaf else "dead" if state == "dead" else "retrying"
            arrivals.tell(
                connection,
                key=f"{code}/{artifact.run_id}/{artifact.kind}/{name}/{'' if leaf else tries}",
                study_id=route.study_id, generation_number=route.generation, at=rooms.now(),
                stage="deliver", code=code,
                words=f"{artifact.kind} to {name}: {outcome.words}", model_id=route.model_id,
                leaf=leaf,
            )  # fmt: skip
