"""Where a model stands, in the words that people are shown. Pure."""

from __future__ import annotations

from bridge.store.catalog import ModelRow
from models.registry import State

__all__ = ["alias", "why_out"]

_ALIASES = {State.ACTIVE: "live", State.SHADOW: "shadow"}


def alias(row: ModelRow) -> str:
    """Give `live` or `shadow` for the version of a model id that is, else an empty text."""
    return next((name for state, name in _ALIASES.items() if row.state == state), "")


def why_out(row: ModelRow, *, approvals: int, proven: bool = False, broken: str = "") -> str:
    """Say why a model is out of routing and what brings it in; empty where nothing is to say.

    `approvals` is how many persons the site asks for, `proven` whether each must have signed,
    `broken` what is wrong with its files.
    """
    if row.state == State.REGISTERED:
        done = len(row.approvers(proven=proven))
        return f"approved by {done} of {approvals} persons; next: approve"
    if row.state == State.RETIRED:
        return f"retired by {row.acts[-1]['by']}"
    if row.state == State.SUSPENDED:
        return f"{_reason(row)}; when that is mended: activate or shadow"
    if row.state == State.APPROVED:
        return _reason(row) or "approved; next: shadow or activate"
    return broken


def _reason(row: ModelRow) -> str:
    last = row.newest("activated", "suspended", "superseded")
    return "" if last is None else str(last.get("reason", ""))
