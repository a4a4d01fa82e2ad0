"""Durable workflows: the only room that knows DBOS, behind about ten verbs.

A reader of `bridge.pipeline` needs `Engine`; the command line needs `EngineClient`; both may
meet `StepFailed`. The rows of the engine are execution state only: what is true of a study
stands in our own tables, and both change in one transaction (`enqueue_in`, `wake_in`).
"""

from __future__ import annotations

from bridge.engine.client import ROUTINE, URGENT, Dead, EngineClient
from bridge.engine.core import Engine
from bridge.engine.errors import EngineError, EngineStopping, StartRefused, StepFailed

__all__ = [
    "ROUTINE",
    "URGENT",
    "Dead",
    "Engine",
    "EngineClient",
    "EngineError",
    "EngineStopping",
    "StartRefused",
    "StepFailed",
]
