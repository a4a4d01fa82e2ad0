"""What can go wrong with a model, in one small tree.

A `PackageError` or `SignatureError` is the vendor's to mend, a `RunFailed` is
the outcome of one run, an `IllegalTransition` is a person's mistake. No text
ever holds a value that a patient's images brought along.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "NO_ROOM",
    "RUN_CODES",
    "IllegalTransition",
    "ModelError",
    "PackageError",
    "RunFailed",
    "SignatureError",
]

NO_ROOM = 74
"""Exit code of a child that found the disk full: nobody's fault, to be tried again."""

RUN_CODES: Final = frozenset(
    {
        "timeout",
        "memory",
        "crashed",
        "undecodable",
        "bad_geometry",
        "bad_pixels",
        "bad_input",
        "bad_model",
        "not_finite",
        "bad_output",
    }
)


class ModelError(Exception):
    """Anything this package raises on purpose."""


class PackageError(ModelError):
    """A package cannot be used as it stands: which file, which key, why, and the fix."""

    def __init__(self, file: str, key: str, text: str, fix: str) -> None:
        self.file = file
        self.key = key
        self.text = text
        self.fix = fix
        where = f"{file}: {key}" if key else file
        super().__init__(f"{where}: {text}. {fix}")


class SignatureError(ModelError):
    """A signature does not prove what it should."""


class IllegalTransition(ModelError):
    """A model in this state cannot take this step."""


class RunFailed(ModelError):
    """A run ended without findings; `code` is one of RUN_CODES, `text` a sentence for a person."""

    def __init__(self, code: str, text: str) -> None:
        if code not in RUN_CODES:
            raise ValueError(f"unknown code {code!r}")
        self.code = code
        self.text = text
        super().__init__(f"{code}: {text}")
