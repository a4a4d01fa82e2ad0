"""The only room that asks the clock, the random generator and for new ids."""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime, timedelta

__all__ = ["Clock", "entropy", "monotonic", "new_id", "new_leaf_id", "now"]


def now() -> datetime:
    """Give the wall clock's time, in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Seconds that no clock step touches."""
    return time.monotonic()


def entropy(size: int) -> bytes:
    """Random bytes for keys and tokens."""
    return os.urandom(size)


def new_id() -> str:
    """Give a new id for a row: 32 hex digits."""
    return uuid.uuid4().hex


def new_leaf_id(at: datetime) -> str:
    """Give a UUID version 7 for a ledger record (RFC 9562 §5.7), from its time."""
    milliseconds = int(at.timestamp() * 1000) & ((1 << 48) - 1)
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & ((1 << 62) - 1)
    return str(uuid.UUID(int=value))


class Clock:
    """A clock that no step of the wall clock can move while the process lives.

    `started` is the wall time at which it was made; `steady()` counts on from there
    by the monotonic clock. Quiet periods are measured with it (design §4.14).
    """

    def __init__(self) -> None:
        self.started = now()
        self._origin = time.monotonic()

    def steady(self) -> datetime:
        """Give the time since `started`, as a UTC instant."""
        return self.started + timedelta(seconds=time.monotonic() - self._origin)
