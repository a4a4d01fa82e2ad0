"""The life of a model at a site: states and the acts that change them. Pure.

    registered --approve--> approved --activate--> active --retire--> retired
                            approved --shadow--> shadow --activate--> active
    active --supersede--> approved   (a newer version took over)
    active, shadow --rollback--> approved
    active, shadow --suspend--> suspended --activate, shadow--> ...   (its self-test failed here)

Who may act, with which signature, and that one version of a model is active and one
a shadow at a time, is the site's business; the rows live there too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from models.errors import IllegalTransition

__all__ = ["ROUTED", "Act", "State", "approval", "transition"]


class State(StrEnum):
    """Where a model stands; only `active` and `shadow` are routed, only `active` is delivered."""

    REGISTERED = "registered"
    APPROVED = "approved"
    ACTIVE = "active"
    SHADOW = "shadow"
    SUSPENDED = "suspended"
    RETIRED = "retired"


ROUTED: Final = (State.ACTIVE, State.SHADOW)
"""The states in which a model sees studies."""


class Act(StrEnum):
    """What a person, a newer version or the site itself does to a model."""

    APPROVE = "approve"
    ACTIVATE = "activate"
    SHADOW = "shadow"
    SUPERSEDE = "supersede"
    ROLLBACK = "rollback"
    SUSPEND = "suspend"
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
    (State.SHADOW, Act.SUPERSEDE): State.APPROVED,
    (State.ACTIVE, Act.SUSPEND): State.SUSPENDED,
    (State.SHADOW, Act.SUSPEND): State.SUSPENDED,
    (State.SUSPENDED, Act.ACTIVATE): State.ACTIVE,
    (State.SUSPENDED, Act.SHADOW): State.SHADOW,
    (State.SUSPENDED, Act.RETIRE): State.RETIRED,
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


def approval(state: State | str, *, before: int, needed: int) -> State:
    """Return the state after one more person approved, `before` others having done so.

    It stays registered until `needed` persons have; one that is approved takes more approvals
    only where a site asks for more than it has. Raises IllegalTransition.
    """
    if state == State.APPROVED and before < needed:
        return State.APPROVED
    after = transition(state, Act.APPROVE)
    return after if before + 1 >= needed else State.REGISTERED
