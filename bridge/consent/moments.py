"""FHIR's partial dates as spans of time.

"2022-12" is the whole of December: a period that ends with it ends when January begins. A date
without a zone is read as UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

__all__ = ["ALWAYS", "Span", "span"]

_FORM = re.compile(
    r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d))?)?)?",
    re.ASCII,
)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)


class Span(NamedTuple):
    """A half-open span of time in UTC: ``start`` belongs to it, ``end`` does not."""

    start: datetime
    end: datetime

    def holds(self, other: Span) -> bool:
        """Whether the other span lies wholly inside this one."""
        return self.start <= other.start and other.end <= self.end

    def meets(self, other: Span) -> bool:
        """Whether the two have a moment in common."""
        return self.start < other.end and other.start < self.end

    def contains(self, at: datetime) -> bool:
        """Whether the moment belongs to this span."""
        return self.start <= at < self.end


ALWAYS = Span(_FIRST, _LAST)


def span(text: str) -> Span:
    """Return the span that a FHIR date, dateTime or instant names; raises ValueError."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError("no FHIR date: YYYY[-MM[-DD[Thh:mm:ss[.s]zone]]]")
    year, month, day, hour, _, second, _, zone = found.groups()
    if zone is not None:
        return _moment(text, hour == "24" or int(second) > 60)
    start = datetime(int(year), int(month or 1), int(day or 1), tzinfo=UTC)
    try:
        if day is not None:
            return Span(start, start + timedelta(days=1))
        if month is not None:
            return Span(start, (start + timedelta(days=31)).replace(day=1))
        return Span(start, start.replace(year=start.year + 1))
    except (OverflowError, ValueError):
        return Span(start, _LAST)  # the last day, month or year there is


def _moment(text: str, impossible: bool) -> Span:
    if impossible:
        raise ValueError("no time of day")
    leap = text[17:19] == "60"
    plain = text[:17] + "59" + text[19:] if leap else text
    cut = re.sub(r"(\.\d{6})\d+", r"\1", plain).replace("Z", "+00:00")
    try:
        start = datetime.fromisoformat(cut).astimezone(UTC) + timedelta(seconds=1 if leap else 0)
        step = timedelta(microseconds=1) if "." in text else timedelta(seconds=1)
        return Span(start, start + step)
    except OverflowError as error:
        raise ValueError("a date outside of the calendar") from error
