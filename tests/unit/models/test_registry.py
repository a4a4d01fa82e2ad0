"""States of a model."""

from __future__ import annotations

import contextlib

import pytest

from models.errors import IllegalTransition
from models.registry import Act, State, transition


@pytest.mark.parametrize(
    ("acts", "end"),
    [
        ("approve activate retire", State.RETIRED),
        ("approve shadow activate rollback activate", State.ACTIVE),
        ("approve activate supersede activate", State.ACTIVE),
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
