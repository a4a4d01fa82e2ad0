"""One thing that is wrong with a package, said so that a vendor can mend it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fault"]


@dataclass(frozen=True, slots=True)
class Fault:
    """Which file, which key, what is wrong, what to do. A `warning` does not stop admission."""

    file: str
    key: str
    text: str
    fix: str
    warning: bool = False
