"""Who arrives together is committed together; nobody waits for ever."""

from __future__ import annotations

import threading

import pytest

from ledger.errors import StorageFailed
from ledger.together import Together


class Crash(BaseException):
    """The thread is gone."""


def crowd(together, count, first):
    """`count` callers that arrive while `first` commits; what each was told."""
    told = {}

    def ask(number):
        try:
            told[number] = together.ask(number)
        except (StorageFailed, Crash) as error:
            told[number] = error

    threads = [threading.Thread(target=ask, args=(0,))]
    threads[0].start()
    first.wait()
    for number in range(1, count):
        threads.append(threading.Thread(target=ask, args=(number,)))
        threads[-1].start()
        while len(together._waiting) < number:
            pass
    return threads, told


def gated(act):
    """A commit whose first call waits for a sign."""
    busy, go, batches = threading.Event(), threading.Event(), []

    def commit(asked):
        batches.append(list(asked))
        if len(batches) == 1:
            busy.set()
            go.wait()
        return act(len(batches), asked)

    return Together(commit), busy, go, batches


def test_those_who_wait_are_one_group_in_their_order():
    together, busy, go, batches = gated(lambda _, asked: [number * 10 for number in asked])
    threads, told = crowd(together, 9, busy)
    go.set()
    for thread in threads:
        thread.join()
    assert batches == [[0], list(range(1, 9))]
    assert told == {number: number * 10 for number in range(9)}
    assert together.ask(5) == 50
    assert batches[2:] == [[5]]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_is_told_to_its_group_and_no_other(failing):
    def act(call, asked):
        if call == failing:
            raise StorageFailed("full")
        return list(asked)

    together, busy, go, _ = gated(act)
    threads, told = crowd(together, 4, busy)
    go.set()
    for thread in threads:
        thread.join()
    groups = {1: [0], 2: [1, 2, 3]}
    for call, numbers in groups.items():
        for number in numbers:
            assert isinstance(told[number], StorageFailed) is (call == failing)
    assert together.ask(7) == 7


@pytest.mark.parametrize("dying", [1, 2])
def test_a_leader_that_is_gone_keeps_nobody_waiting(dying):
    def act(call, asked):
        if call == dying:
            raise Crash
        return list(asked)

    together, busy, go, _ = gated(act)
    threads, told = crowd(together, 4, busy)
    go.set()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    leader, others = (0, []) if dying == 1 else (1, [2, 3])
    assert isinstance(told[leader], Crash)
    assert all(isinstance(told[number], StorageFailed) for number in others)
    assert together.ask(7) == 7


def test_many_threads_are_each_told_their_own():
    together, told = Together(lambda asked: [str(one) for one in asked]), {}

    def work(start):
        for number in range(start, start + 300):
            told[number] = together.ask(number)

    threads = [threading.Thread(target=work, args=(at * 300,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {number: str(number) for number in range(16 * 300)}
