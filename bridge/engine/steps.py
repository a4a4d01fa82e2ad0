"""How a step is tried, and how a workflow pauses: what happens inside a running workflow."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from dbos import DBOS, DBOSClient

from bridge import logs
from bridge.engine.errors import EngineError, EngineStopping, StepFailed, portable
from bridge.engine.waiting import Waiting

__all__ = ["Tries", "in_workflow", "note", "pause"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LONGEST = 300.0
"""Seconds at most between two tries of a step; longer outages are the workflow's to sleep over."""


@dataclass(frozen=True)
class Tries:
    """How often a step is tried, how far apart (seconds), and after which errors."""

    name: str
    attempts: int
    interval: float
    backoff: float
    retry_on: Callable[[Exception], bool] | None
    speakable: tuple[type[Exception], ...]
    stopping: threading.Event

    def __post_init__(self) -> None:
        if self.attempts < 1:
            msg = f"step {self.name} may be tried {self.attempts} times"
            raise EngineError(msg)

    def run(self, function: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call `function` until it answers or the tries are used up; raises the stored form."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  (the worker: every error is an outcome)
                note("step_failed", self.name, error, attempt)
                if attempt >= self.attempts or not self._again(error):
                    raise portable(error, self.speakable) from None
            if self.stopping.wait(min(_LONGEST, self.interval * self.backoff ** (attempt - 1))):
                raise EngineStopping

    def _again(self, error: Exception) -> bool:
        return self.retry_on is None or self.retry_on(error)


def note(event: str, name: str, error: Exception, attempt: int = 1) -> None:
    """Log the class and the place of an error, never its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    kind = error.kind if isinstance(error, StepFailed) else type(error).__name__
    logs.get().warning(f"engine_{event}", workflow=name, error=kind, where=place, attempt=attempt)


def pause(
    client: DBOSClient,
    waiting: Waiting,
    now: Callable[[], datetime],
    seconds: float,
    *,
    wakeable: bool,
) -> None:
    """Keep the moment to rise at, then sleep; a replay that is past this point does not.

    The first time the monotonic clock counts, so that no step of the wall clock shortens the
    sleep; after a restart the wall clock decides how much is left, at most `seconds`.
    """
    fresh: list[bool] = []

    def moment() -> list[float]:
        fresh.append(True)
        return [now().timestamp() + seconds, float(DBOS.step_id or 0)]

    until, position = DBOS.run_step({"name": "pause"}, moment)
    workflow_id, left = str(DBOS.workflow_id), seconds
    if not fresh:
        steps = client.list_workflow_steps(workflow_id, load_output=False)
        if any(one["function_id"] > position for one in steps):
            return
        left = min(seconds, until - now().timestamp())
    with waiting.sleeper(workflow_id, wakeable=wakeable) as event:
        event.wait(max(0.0, left))


def in_workflow() -> bool:
    """Tell whether this is a workflow's own body: not a step of it, not outside."""
    return DBOS.workflow_id is not None and DBOS.step_id is None
