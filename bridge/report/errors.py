"""What this room can refuse."""

from __future__ import annotations

from bridge.errors import RadsealError, Refused

__all__ = ["ContentError", "ReceiptError", "ReportError"]


class ReportError(RadsealError):
    """These findings cannot be written as an object; the run stays as it is."""


class ContentError(Refused):
    """The object holds something that radseal never writes, so its content cannot be proven."""


class ReceiptError(Refused):
    """The object carries no receipt that can be read; ask the site for the object again."""
