"""The life of a model at a site: states and the acts that change them. Pure.

    registered --approve--> approved --activate--> active --retire--> retired
                            approved --shadow--> shadow --activate--> active
    active --supersede--> approved   (a newer version took over)
    active, shadow --rollback--> approved

Who may act, with which signature, and that one version of a model is active at
a time, is the site's business; the rows live there too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from models.errors import IllegalTransition

__all__ = ["Act", "State", "transition"]


class State(StrEnum):
    """Where a model stands; only `active` and `shadow` are routed, only `active` is delivered."""

    REGISTERED = "registered"
    APPROVED = "approved"
    ACTIVE = "active"
    SHADOW = "shadow"
    RETIRED = "retired"


class Act(StrEnum):
    """What a person, or a newer version, does to a model."""

    APPROVE = "approve"
    ACTIVATE = "activate"
    SHADOW = "shadow"
    SUPERSEDE = "supersede"
    ROLLBACK = "rollback"
    RETIRE = "retire"


_TABLE: Final[dict[tuple[State, Act], State]] = {
    (State.REGISTERED, Act.APPROVE): State.APPROVED,
    (State.APPROVED, Act.ACTIVATE): State.ACTIVE,
    (State.APPROVED, Act.SHADOW): State.SHADOW,
    (State.SHADOW, Act.ACTIVATE): State.ACTIVE,
    (State.SHADOW, Act.ROLLBACK): State.APPROVED,
    (State.ACTIVE, Act.SHADOW): State.SHADOW,
    (State.ACTIVE, Act.SUPERSEDE): State.APPROVED,
    (State.ACTIVE, Act.ROLLBACK): State.APPROVED,
    (State.REGISTERED, Act.RETIRE): State.RETIRED,
    (State.APPROVED, Act.RETIRE): State.RETIRED,
    (State.SHADOW, Act.RETIRE): State.RETIRED,
    (State.ACTIVE, Act.RETIRE): State.RETIRED,
}


def transition(state: State | str, act: Act | str) -> State:
    """Return the state after `act`; raises IllegalTransition with what is possible instead."""
    try:
        now, step = State(state), Act(act)
    except ValueError as error:
        raise IllegalTransition(f"unknown state or act: {state!s}, {act!s}") from error
    after = _TABLE.get((now, step))
    if after is None:
        possible = ", ".join(a for (s, a) in _TABLE if s is now) or "nothing"
        raise IllegalTransition(f"a model that is {now} cannot {step}; possible: {possible}")
    return after
