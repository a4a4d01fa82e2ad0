"""What can go wrong in the engine, and the one form in which a step's error is kept.

An error that a step raised is written to the database and read again after a restart. So that a
workflow sees the same thing both times, every error reaches it as `StepFailed`; and so that no
patient's name is ever stored by accident, the text of a foreign exception is not kept, only its
class (design §4.11).
"""

from __future__ import annotations

from dbos import PortableWorkflowError

from bridge.errors import RadsealError

__all__ = ["EngineError", "EngineStopping", "StartRefused", "StepFailed", "portable"]


class EngineError(RadsealError):
    """The engine cannot do this; see the log of the service."""


class StartRefused(EngineError):
    """The engine does not start on this machine; the message says what to change."""


class StepFailed(EngineError):
    """A step gave up. The same object on the first run and on every replay.

    `kind` is the class name of the original exception, `text` its message where that class is
    known to carry none of a patient's data (else empty), `code` its `code` attribute if any.
    """

    def __init__(self, kind: str, text: str = "", code: str | int | None = None) -> None:
        super().__init__(f"{kind}: {text}" if text else kind)
        self.kind = kind
        self.text = text
        self.code = code


class EngineStopping(BaseException):
    """Unwinds a workflow when the engine closes, or its database fails; it goes on where it stood.

    Not an `Exception`, so that no workflow mistakes it for an error of its own.
    """


def portable(error: Exception, speakable: tuple[type[Exception], ...]) -> PortableWorkflowError:
    """Give the stored form of `error`: its class, its code, and its text if speakable.

    DBOS stores the name of the class, so the result is of a class that bears the original's name.
    """
    if isinstance(error, PortableWorkflowError):
        return error
    if isinstance(error, StepFailed):
        kind, text, code = error.kind, error.text, error.code
    else:
        kind, code = type(error).__name__, getattr(error, "code", None)
        text = str(error) if isinstance(error, speakable) else ""
    named: type[PortableWorkflowError] = type(kind, (PortableWorkflowError,), {})
    return named(text, kind, code if isinstance(code, str | int) else None)
