"""What this room can refuse."""

from __future__ import annotations

from bridge.errors import RadsealError, Refused

__all__ = ["ContentError", "ReportError"]


class ReportError(RadsealError):
    """These findings cannot be written as an object; the run stays as it is."""


class ContentError(Refused):
    """The object holds something that radseal never writes, so its content cannot be proven."""
