"""Who sleeps or waits in this process, and the one thread that looks whether to wake them.

DBOS asks the database once per waiting workflow; this asks once for all of them, and a sleeper
also rises when its workflow was cancelled, moved to another process, or the engine closes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from dbos import DBOSClient
from sqlalchemy.exc import SQLAlchemyError

from bridge import logs
from bridge.engine.client import TOPIC

__all__ = ["Waiting"]

_BATCH = 400


class Waiting:
    """The register of sleepers; its thread looks every `every` seconds, and only if any sleep."""

    def __init__(self, client: DBOSClient, executor: str, every: float = 0.25) -> None:
        self._client = client
        self._executor = executor
        self._every = every
        self._lock = threading.Lock()
        self._sleepers: list[tuple[str, bool, threading.Event]] = []
        self._some = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-waiting", daemon=True)
        self._thread.start()

    @contextmanager
    def sleeper(self, workflow_id: str, *, wakeable: bool) -> Iterator[threading.Event]:
        """Register one sleeper; its event is set when it should look up before its time."""
        event = threading.Event()
        entry = (workflow_id, wakeable, event)
        with self._lock:
            self._sleepers.append(entry)
            self._some.set()
        if self._closed.is_set():
            event.set()
        try:
            yield event
        finally:
            with self._lock:
                self._sleepers.remove(entry)
                if not self._sleepers:
                    self._some.clear()

    def poke(self, workflow_id: str) -> None:
        """Wake a sleeper of this process at once; its message is already committed."""
        self._set({workflow_id}, wakeable_only=True)

    def close(self) -> None:
        """Raise everybody and stop the thread."""
        self._closed.set()
        self._some.set()
        with self._lock:
            for _, _, event in self._sleepers:
                event.set()
        self._thread.join(timeout=10)

    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def _set(self, ids: set[str], *, wakeable_only: bool) -> None:
        with self._lock:
            for workflow_id, wakeable, event in self._sleepers:
                if workflow_id in ids and (wakeable or not wakeable_only):
                    event.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._some.wait()
            if self._closed.wait(self._every):
                return
            with self._lock:
                ids = sorted({one for one, _, event in self._sleepers if not event.is_set()})
            try:
                for start in range(0, len(ids), _BATCH):
                    self._look(ids[start : start + _BATCH])
            except SQLAlchemyError as error:
                logs.get().warning("engine_waiting_not_seen", error=type(error).__name__)
                self._closed.wait(1.0)

    def _look(self, ids: list[str]) -> None:
        database = self._client._sys_db
        flow, note = database.tables.workflow_status, database.tables.notifications
        called = sa.select(note.c.destination_uuid).where(
            note.c.destination_uuid.in_(ids), note.c.topic == TOPIC, note.c.consumed.is_(False)
        )
        ours = sa.select(flow.c.workflow_uuid).where(
            flow.c.workflow_uuid.in_(ids),
            flow.c.status == "PENDING",
            flow.c.executor_id == self._executor,
        )
        with database.engine.begin() as connection:
            self._set(set(connection.scalars(called)), wakeable_only=True)
            lost = set(ids) - set(connection.scalars(ours))
        self._set(lost, wakeable_only=False)
