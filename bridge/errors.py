"""The errors of bridge: one small tree. A docstring is the default message.

RadsealError
├── SettingsError        site.toml or the environment is wrong          exit 2
├── WrongUse             a command was asked for what cannot be          exit 2
├── NotFound             no such study, model, artifact, …               exit 1, HTTP 404
├── Refused              checked, and the answer is no                   exit 1, HTTP 409
│   └── TooLarge         more than this site takes                       exit 1, HTTP 413
├── TryAgain             busy with the same for somebody else            exit 1, HTTP 503
├── NotAllowed           the caller's role does not permit it            HTTP 403
├── BadInstance          a received object cannot be indexed             quarantine
└── StorageFull          the disk is below its watermark                 DIMSE 0xA700
"""

from __future__ import annotations

import inspect

__all__ = [
    "BadInstance",
    "NotAllowed",
    "NotFound",
    "RadsealError",
    "Refused",
    "SettingsError",
    "StorageFull",
    "TooLarge",
    "TryAgain",
    "WrongUse",
]


class RadsealError(Exception):
    """Something went wrong; see the log of the service."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)))


class SettingsError(RadsealError):
    """site.toml is not usable; correct the key that is named."""


class WrongUse(RadsealError):
    """A command cannot be used like that; see --help."""


class NotFound(RadsealError):
    """There is no such thing here; look at the list."""


class Refused(RadsealError):
    """It was checked, and the answer is no."""


class TooLarge(Refused):
    """It is larger than this site takes; ask its administrator."""


class TryAgain(RadsealError):
    """The same is being done for somebody else; try again in a minute."""


class NotAllowed(RadsealError):
    """Your role does not permit this; ask an administrator for another token."""


class BadInstance(RadsealError):
    """A received object cannot be read as DICOM; send it again from the source."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StorageFull(RadsealError):
    """The disk is nearly full; free space, nothing was lost."""
