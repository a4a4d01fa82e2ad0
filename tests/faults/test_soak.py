"""Killed at random moments, again and again: nothing acknowledged is lost, nothing comes twice.

`radseal serve` (and on PostgreSQL a second process, `radseal worker`) is ended by kill -9 while
studies arrive, are read and are delivered. What the modality heard, what the PACS received and
what the log says must agree in the end. The seed is printed; RADSEAL_SOAK=full makes it long.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ward as w

from ledger.tiles import WIDTH, Tile, unpack

FULL = os.environ.get("RADSEAL_SOAK") == "full"
STUDIES, KILLS = (110, 24) if FULL else (12, 4)
SECONDS = 3000 if FULL else 200
QUIET = 3.0  # longer than a modality needs to come back after a crash
SEED = int(os.environ.get("RADSEAL_SOAK_SEED", "20261124"))

pytestmark = [pytest.mark.fault, pytest.mark.soak, pytest.mark.timeout(SECONDS + 200)]

# What one study leaves behind, whatever happened on the way.
LEAVES = {
    "study.received": 1, "input.sealed": 1, "consent.checked": 1, "inference.started": 1,
    "inference.completed": 1, "result.composed": w.KINDS, "delivery.started": w.KINDS,
    "result.delivered": w.KINDS, "study.closed": 1,
}  # fmt: skip


class Modality(threading.Thread):
    """Sends its studies one after the other, each image until it is acknowledged."""

    def __init__(self, port: int, numbers: list[int], until: float) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.error: BaseException | None = None
        self._port, self._numbers, self._until = port, numbers, until

    def run(self) -> None:
        try:
            for number in self._numbers:
                self.acknowledged |= w.insist(w.study(number), self._port, until=self._until)
        except BaseException as error:  # noqa: BLE001 - told by the test, not by the thread
            self.error = error


def _studies() -> set[str]:
    return {str(w.study(number)[0].StudyInstanceUID) for number in range(STUDIES)}


def _over(ward: w.Ward) -> bool:
    told = ward.states()
    return set(told) == _studies() and all(state == "delivered" for state in told.values())


def _rampage(ward: w.Ward, pacs: w.PACS, dice: random.Random, *, worker: bool) -> None:
    """Kill and start again, KILLS times; the last start is left alone."""
    for number in range(KILLS):
        moment = dice.random()
        if moment > 0.2:  # in the midst of work; else already while it starts
            with contextlib.suppress(AssertionError):
                ward.wait_ready(20)
        time.sleep(dice.uniform(0.0, 3.0))
        if moment > 0.6:  # while an object is on its way
            pacs.arriving.clear()
            pacs.arriving.wait(20)
        victim = dice.choice(["serve", "serve", "worker"]) if worker else "serve"
        alone = dice.random() < 0.3  # its listener and model children are left to notice
        print(f"kill {number + 1}: {victim}{' alone' if alone else ''}", flush=True)
        ward.kill(victim, group=not alone)
        time.sleep(dice.choice([0.0, 0.0, 2.0]))
        ward.worker() if victim == "worker" else ward.serve(wait=False)


def _keep_up(ward: w.Ward, *, worker: bool) -> None:
    """Be the supervisor: start again what ended by itself (its port was still taken, say)."""
    if not ward.alive("serve"):
        ward.serve(wait=False)
    if worker and not ward.alive("worker"):
        ward.worker()


def _leaves(folder: Path, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, size, WIDTH):
        count = min(WIDTH, size - start)
        data = (folder / Tile(-1, start // WIDTH, count).path()).read_bytes()
        yield from (json.loads(entry) for entry in unpack(data, count))


def _slowly(_uid: str) -> int:
    """Answer like a PACS that takes its time, so that crashes hit objects on their way, too."""
    time.sleep(0.2)
    return 0x0000


def _soak(ward: w.Ward, pacs: w.PACS, *, worker: bool) -> None:
    print(f"seed {SEED}: {STUDIES} studies, {KILLS} kills", flush=True)
    pacs.answer = _slowly
    dice = random.Random(SEED)
    until = time.monotonic() + SECONDS
    ward.serve(wait=False)
    if worker:
        ward.worker()
    numbers = list(range(STUDIES))
    modalities = [Modality(ward.port, numbers[half::2], until) for half in (0, 1)]
    for modality in modalities:
        modality.start()
    _rampage(ward, pacs, dice, worker=worker)
    while not _over(ward):
        if time.monotonic() > until:
            raise AssertionError(f"not over: {ward.states()}\n{ward.last_words()}")
        _keep_up(ward, worker=worker)
        time.sleep(0.5)
    for modality in modalities:
        modality.join()
        assert modality.error is None
    ward.wait_ready()
    assert ward.stop() == 0
    if worker:
        ward.stop("worker")  # it may have been starting just then
    acknowledged = {k: v for m in modalities for k, v in m.acknowledged.items()}
    _check_images(ward, acknowledged)
    _check_results(ward, pacs)
    _check_log(ward)


def _check_images(ward: w.Ward, acknowledged: dict[str, str]) -> None:
    """Every acknowledged image is held, once, byte for byte."""
    assert len(acknowledged) == 3 * STUDIES
    assert ward.held() == {uid: [digest] for uid, digest in acknowledged.items()}
    assert not list((ward.folder / "instances" / "inbox").iterdir())
    assert not list((ward.folder / "instances" / "parts").iterdir())
    assert not list((ward.folder / "work").iterdir())


def _check_results(ward: w.Ward, pacs: w.PACS) -> None:
    """Every study has its objects in the PACS: no more, no less, no other bytes than stored."""
    assert set(pacs.of_study) == _studies()
    assert {len(uids) for uids in pacs.of_study.values()} == {w.KINDS}
    differing = {uid for uid, digests in pacs.received.items() if len(set(digests)) != 1}
    assert not differing
    assert {uid: digests[0] for uid, digests in pacs.received.items()} == ward.artifacts()
    again = sum(len(digests) - 1 for digests in pacs.received.values())
    print(f"{len(pacs.received)} objects delivered, {again} of them sent again")


def _check_log(ward: w.Ward) -> None:
    """Every leaf once; the whole log verifies, its trace rules included."""
    report = ward.verify()
    expected = {kind: number * STUDIES for kind, number in LEAVES.items()}
    assert {kind: report.counts.get(kind, 0) for kind in expected} == expected
    assert not report.open_studies
    assert not report.ahead
    assert ward.quiet_log(), ward.last_words()
    told = collections.Counter(
        leaf["idem"] for leaf in _leaves(ward.folder / "ledger", report.size)
    )
    assert not [idem for idem, times in told.items() if times > 1]


def test_a_service_on_sqlite_is_killed_again_and_again(tmp_path: Path) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path, [pacs], quiet_seconds=QUIET) as ward:
            _soak(ward, pacs, worker=False)
    finally:
        pacs.down()


def test_a_service_and_a_worker_on_postgresql_are_killed_again_and_again(
    tmp_path: Path, database_url: str
) -> None:
    pacs = w.PACS()
    pacs.up()
    try:
        with w.ward(tmp_path, [pacs], database_url=database_url, quiet_seconds=QUIET) as ward:
            _soak(ward, pacs, worker=True)
    finally:
        pacs.down()
