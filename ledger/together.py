"""Callers that arrive together are served together: one fsync for all of them.

The first to come commits; whoever comes meanwhile waits, and the first of those commits for
all that wait. Nobody but the next one is woken before there is an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ledger.errors import StorageFailed

__all__ = ["Together"]

Asked = TypeVar("Asked")
Told = TypeVar("Told")


class _Ticket(Generic[Asked, Told]):
    """One caller's request; `gate` opens once it is answered, or once it is to commit."""

    __slots__ = ("answer", "asked", "gate")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.answer: Told | StorageFailed | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class Together(Generic[Asked, Told]):
    """Groups calls of many threads for `commit`, which answers each request, in order.

    What `commit` raises as StorageFailed is raised to everyone of the group.
    """

    def __init__(self, commit: Callable[[Sequence[Asked]], Sequence[Told]]) -> None:
        self._commit = commit
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[Asked, Told]] = []
        self._led = False

    def ask(self, asked: Asked) -> Told:
        """Return the answer once it is committed; raises StorageFailed."""
        ticket = _Ticket[Asked, Told](asked)
        with self._lock:
            self._waiting.append(ticket)
            leads, self._led = not self._led, True
        if not leads:
            ticket.gate.acquire()
        if ticket.answer is None:
            self._lead(ticket)
        if ticket.answer is None:
            raise StorageFailed
        if isinstance(ticket.answer, StorageFailed):
            raise ticket.answer
        return ticket.answer

    def _lead(self, mine: _Ticket[Asked, Told]) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            answers = self._commit([one.asked for one in batch])
            for one, answer in zip(batch, answers, strict=True):
                one.answer = answer
        except StorageFailed as error:
            for one in batch:
                one.answer = error
        finally:
            # Also where this thread is killed: the others must not wait for it.
            for one in batch:
                if one.answer is None:
                    one.answer = StorageFailed()
                if one is not mine:
                    one.gate.release()
            with self._lock:
                self._led = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].gate.release()
