"""Dead processes' work goes on elsewhere: the sweep that DBOS's free core leaves out.

Once a second each process asks which ids stand beside running workflows, which of those processes
still hold their lock (`lease`), and puts the work of the dead back into its queue. The update is
guarded by state and owner, so that several sweeps, or a wrong one, cannot run a workflow twice to
its end: whoever lost it has every later write refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import sqlalchemy as sa
from dbos import DBOSClient
from dbos._utils import INTERNAL_QUEUE_NAME
from sqlalchemy.exc import SQLAlchemyError

from bridge import logs
from bridge.engine.checks import WORKFLOW_VERSION
from bridge.engine.lease import FileLease, Lease

__all__ = ["Takeover", "put_back"]

_STRAY = 5.0
"""Seconds after which a workflow of ours that no thread runs is put back."""


def put_back(client: DBOSClient, executor: str) -> int:
    """Return what `executor` is running, by the book, to its queues; returns how many that were.

    This is the body of DBOS's own recovery, without its launched instance. Only rows that are
    still `executor`'s move, so that it may be called twice, and by several at once.
    """
    database = client._sys_db
    running = database.get_pending_workflows(executor, WORKFLOW_VERSION)
    moved = [
        database.reenqueue_for_recovery(one.workflow_id, [executor], INTERNAL_QUEUE_NAME)
        for one in running
    ]
    return sum(moved)


class Takeover:
    """The sweeping thread of one process."""

    def __init__(
        self,
        client: DBOSClient,
        lease: Lease,
        running: Callable[[], set[str]],
        every: float = 1.0,
    ) -> None:
        self._client = client
        self._lease = lease
        self._running = running
        self._every = every
        self._free_since: dict[str, float] = {}
        self._stray_since: dict[str, float] = {}
        self._held = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine-takeover", daemon=True)

    def start(self) -> None:
        """Sweep now and then every second."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the lock stays held."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def alive(self) -> bool:
        """Tell whether the thread runs and our own lock is held."""
        return self._thread.is_alive() and self._held

    def adopt(self, executor: str) -> int:
        """Put back whatever `executor` was running; returns how many workflows that were."""
        return put_back(self._client, executor)

    def owners(self) -> dict[str, int]:
        """Count the running workflows of each process that the database names."""
        database = self._client._sys_db
        flow = database.tables.workflow_status
        with database.engine.begin() as connection:
            rows = connection.execute(
                sa.select(flow.c.executor_id, sa.func.count())
                .where(flow.c.status == "PENDING")
                .group_by(flow.c.executor_id)
            )
            return {executor or "": count for executor, count in rows}

    def sweep(self) -> None:
        """Look once; raises SQLAlchemyError while the database does not answer."""
        self._held = self._lease.renew()
        if not self._held:
            self._free_since.clear()
            return
        now = time.monotonic()
        owners = self.owners()
        seen: dict[str, float] = {}
        for executor in owners:
            if executor == self._lease.executor or not self._lease.dead(executor):
                continue
            seen[executor] = self._free_since.get(executor, now)
            if now - seen[executor] >= self._lease.grace:
                count = self.adopt(executor)
                logs.get().warning("engine_took_over", count=count)
        self._free_since = seen
        self._strays(now)

    def _strays(self, now: float) -> None:
        """Put back what is ours by the database and in no thread of ours, after five seconds."""
        database = self._client._sys_db
        flow = database.tables.workflow_status
        with database.engine.begin() as connection:
            mine = set(
                connection.scalars(
                    sa.select(flow.c.workflow_uuid).where(
                        flow.c.status == "PENDING", flow.c.executor_id == self._lease.executor
                    )
                )
            )
        strays = mine - self._running()
        self._stray_since = {one: self._stray_since.get(one, now) for one in strays}
        for workflow_id, since in self._stray_since.items():
            if now - since >= _STRAY:
                database.reenqueue_for_recovery(
                    workflow_id, [self._lease.executor], INTERNAL_QUEUE_NAME
                )
                logs.get().warning("engine_put_back_a_stray")

    def _run(self) -> None:
        rounds = 0
        while True:
            try:
                self.sweep()
                if rounds % 600 == 0 and isinstance(self._lease, FileLease):
                    self._lease.sweep(set(self.owners()))
            except SQLAlchemyError as error:
                logs.get().warning("engine_sweep_failed", error=type(error).__name__)
            rounds += 1
            if self._stop.wait(self._every):
                return
