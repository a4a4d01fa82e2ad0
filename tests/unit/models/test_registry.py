"""States of a model."""

from __future__ import annotations

import contextlib

import pytest

from models.errors import IllegalTransition
from models.registry import Act, State, approval, transition


@pytest.mark.parametrize(
    ("acts", "end"),
    [
        ("approve activate retire", State.RETIRED),
        ("approve shadow activate rollback activate", State.ACTIVE),
        ("approve activate supersede activate", State.ACTIVE),
        ("approve activate suspend shadow suspend activate", State.ACTIVE),
        ("approve shadow supersede activate suspend retire", State.RETIRED),
        ("retire", State.RETIRED),
    ],
)
def test_lives(acts: str, end: State) -> None:
    state = State.REGISTERED
    for act in acts.split():
        state = transition(state, act)
    assert state is end


def test_nothing_is_active_without_approval() -> None:
    reachable = {State.REGISTERED}
    for act in set(Act) - {Act.APPROVE}:
        with contextlib.suppress(IllegalTransition):
            reachable.add(transition(State.REGISTERED, act))
    assert reachable == {State.REGISTERED, State.RETIRED}


def test_retired_is_the_end() -> None:
    for act in Act:
        with pytest.raises(IllegalTransition, match="nothing"):
            transition("retired", act)
    with pytest.raises(IllegalTransition, match="unknown"):
        transition("active", "explode")


@pytest.mark.parametrize("state", [State.REGISTERED, State.APPROVED, State.RETIRED])
def test_only_what_is_in_routing_is_suspended(state: State) -> None:
    with pytest.raises(IllegalTransition):
        transition(state, Act.SUSPEND)


@pytest.mark.parametrize(
    ("state", "before", "needed", "after"),
    [
        (State.REGISTERED, 0, 1, State.APPROVED),
        (State.REGISTERED, 0, 2, State.REGISTERED),
        (State.REGISTERED, 1, 2, State.APPROVED),
        (State.REGISTERED, 2, 2, State.APPROVED),  # the site asked for more once
        (State.APPROVED, 1, 2, State.APPROVED),  # it asks for more now
    ],
)
def test_as_many_persons_approve_as_are_asked_for(
    state: State, before: int, needed: int, after: State
) -> None:
    assert approval(state, before=before, needed=needed) is after


@pytest.mark.parametrize("state", [State.APPROVED, State.ACTIVE, State.RETIRED, State.SUSPENDED])
def test_who_is_approved_enough_is_not_approved_again(state: State) -> None:
    with pytest.raises(IllegalTransition, match="possible"):
        approval(state, before=1, needed=1)
