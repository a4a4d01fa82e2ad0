"""Logs as JSON lines with an allow-list of fields, so that no patient data can slip in.

An event is a constant; what is not on the list is dropped and counted by name
only. UIDs are not on the list: logs speak of our own study ids (design §4.11).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO

import structlog

__all__ = ["ALLOWED", "get", "setup"]

ALLOWED = frozenset({
    "event", "level", "timestamp", "study", "route", "run", "model", "destination", "source",
    "generation", "stage", "code", "count", "seconds", "status", "workflow", "worker", "port",
    "state", "attempt", "error", "where", "method", "route_template", "role", "size", "pid",
    "dropped", "host", "url",
})  # fmt: skip


def _only_allowed(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    unknown = sorted(key for key in event if key not in ALLOWED)
    for key in unknown:
        del event[key]
    if unknown:
        event["dropped"] = unknown
    return event


def setup(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send structlog's events to `stream` (standard error) as JSON, one a line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _only_allowed,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    warnings.showwarning = _warned
    for name in ("pydicom", "pynetdicom", "highdicom", "uvicorn", "sqlalchemy", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _warned(
    message: Warning | str,  # noqa: ARG001 - a library's text may quote the value it dislikes
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,  # noqa: ARG001 - Python's signature
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Log a library's warning by its kind and place, without its words."""
    where = f"{Path(filename).name}:{lineno}"
    get().warning("library.warned", code=category.__name__, where=where)


def get() -> Any:
    """Give the logger."""
    return structlog.get_logger()
