"""One of two destinations is away: the other notices nothing, and in the end both have it once.

Two minutes with RADSEAL_SOAK=full, some seconds otherwise.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
import ward as w

FULL = os.environ.get("RADSEAL_SOAK") == "full"
AWAY = 120.0 if FULL else 8.0
STUDIES = 12 if FULL else 4

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900 if FULL else 240)]


@contextmanager
def _two(tmp_path: Path) -> Iterator[tuple[w.Ward, w.PACS, w.PACS]]:
    near, far = w.PACS("NEAR"), w.PACS("FAR")
    near.up()
    try:
        with w.ward(tmp_path, [near, far]) as ward:
            yield ward, near, far
    finally:
        near.down()
        far.down()


def _uid(number: int) -> str:
    return str(w.study(number)[0].StudyInstanceUID)


def _send(ward: w.Ward, number: int) -> float:
    w.insist(w.study(number), ward.port, until=time.monotonic() + 60)
    return time.monotonic()


def _complete(pacs: w.PACS, number: int) -> bool:
    return len(pacs.of(_uid(number))) == w.KINDS


def _await(ward: w.Ward, number: int, *pacs: w.PACS, seconds: float) -> None:
    try:
        servers.wait_until(
            lambda: all(_complete(one, number) for one in pacs), seconds=seconds, what="delivery"
        )
    except TimeoutError as error:
        raise AssertionError(f"{error}: {ward.why(_uid(number))}\n{ward.last_words()}") from None


def _once(pacs: w.PACS) -> None:
    assert set(pacs.of_study) == {_uid(number) for number in range(STUDIES)}
    assert {len(uids) for uids in pacs.of_study.values()} == {w.KINDS}
    assert all(len(digests) == 1 for digests in pacs.received.values())


@pytest.mark.soak
def test_a_destination_that_is_away_delays_no_other_and_gets_everything_later(
    tmp_path: Path,
) -> None:
    with _two(tmp_path) as (ward, near, far):
        ward.serve()
        began = time.monotonic()
        for number in range(STUDIES):
            _send(ward, number)
            _await(ward, number, near, seconds=60)  # long before the other one is back
        assert not far.received
        time.sleep(max(0.0, began + AWAY - time.monotonic()))
        told = ward.why(_uid(0))
        assert told["line"]["state"] == "working"
        assert "retrying" in [line["code"] for line in told["lines"]]
        ward.kill()  # what waits is durable
        far.up()
        ward.serve()
        for number in range(STUDIES):
            _await(ward, number, far, seconds=AWAY + 120)
        servers.wait_until(
            lambda: set(ward.states().values()) == {"delivered"}, seconds=60, what="the end"
        )
        _once(near)
        _once(far)
        assert near.received == far.received
        ward.stop()
        report = ward.verify()
        assert report.counts["result.delivered"] == 2 * w.KINDS * STUDIES
        assert not report.open_studies


@pytest.mark.parametrize("status", [0xA700, None], ids=["out of resources", "breaks off"])
def test_a_destination_in_trouble_is_tried_again(tmp_path: Path, status: int | None) -> None:
    near = w.PACS("NEAR")
    troubles: list[str] = []

    def answer(uid: str) -> int | None:
        if len(troubles) < 2:
            troubles.append(uid)
            return status
        return 0x0000

    near.answer = answer
    near.up()
    try:
        with w.ward(tmp_path, [near]) as ward:
            ward.serve()
            _send(ward, 0)
            _await(ward, 0, near, seconds=60)
            assert troubles
            assert all(len(digests) == 1 for digests in near.received.values())
    finally:
        near.down()


def test_a_refusal_for_good_is_a_visible_dead_letter_that_retry_sends(tmp_path: Path) -> None:
    with _two(tmp_path) as (ward, near, far):
        far.answer = lambda _uid: 0xA900  # data set does not match SOP class
        far.up()
        ward.serve()
        _send(ward, 0)
        servers.wait_until(
            lambda: ward.states().get(_uid(0)) == "attention", seconds=60, what="the dead letter"
        )
        assert _complete(near, 0)
        told = ward.why(_uid(0))
        dead = [line["words"] for line in told["lines"] if line["code"] == "dead"]
        assert len(dead) == w.KINDS
        assert all("0xA900" in words for words in dead)
        listed = {one["state"] for one in json.loads(ward.radseal("studies", "--json"))}
        assert listed == {"attention"}
        ward.radseal("retry", _uid(0))  # still refused: again a dead letter
        servers.wait_until(
            lambda: ward.states().get(_uid(0)) == "attention", seconds=60, what="a second one"
        )
        far.answer = lambda _uid: 0x0000
        ward.radseal("retry", _uid(0))
        _await(ward, 0, far, seconds=60)
        servers.wait_until(
            lambda: ward.states().get(_uid(0)) == "delivered", seconds=60, what="the end"
        )
        assert near.received == far.received  # nothing went to NEAR twice
        ward.radseal("retry", _uid(0), code=1)
        ward.stop()
        assert not ward.verify().open_studies
