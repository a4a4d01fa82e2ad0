"""The engine's counter: what may be asked of workflows from outside them, without any thread.

`EngineClient` is for the command line while a service runs; `Engine` is one too, and adds the
running. Every workflow carries the name of its queue with it, because DBOS forgets the queue of a
cancelled or dead one and would put it back into an internal queue without limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from dbos import DBOSClient, EnqueueOptions, PortableWorkflowError, WorkflowStatus
from dbos._error import DBOSConflictingWorkflowError, DBOSException

from bridge.engine import checks
from bridge.engine.database import connect, migrate
from bridge.engine.errors import EngineError
from bridge.errors import NotFound

__all__ = ["ROUTINE", "TOPIC", "URGENT", "Dead", "EngineClient", "options", "taken"]

TOPIC = "wake"
"""The one topic on which workflows are woken."""

ROUTINE, URGENT = 100, 10
"""Priorities of what waits in a queue: the smaller number goes first."""

_DEAD = ["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_OVER = ["SUCCESS", "CANCELLED"]
_UNFINISHED = ["ENQUEUED", "DELAYED", "PENDING"]
_KEPT = {
    "workflow_status", "workflow_input", "workflow_output", "operation_outputs", "notifications",
    "workflow_events", "workflow_events_history", "streams",
}  # fmt: skip
_BATCH = 500


@dataclass(frozen=True)
class Dead:
    """A workflow that ended in an error and waits for somebody to retry or cancel it."""

    workflow_id: str
    name: str
    queue: str
    error: str
    """The class of the error, or `MAX_RECOVERY_ATTEMPTS_EXCEEDED`."""
    text: str
    when: datetime


def options(
    queue: str, name: str, workflow_id: str, priority: int, partition: str | None, delay: float
) -> EnqueueOptions:
    """Build what every enqueue of ours has: an id, a priority, our version, its queue's name."""
    if priority < 1:
        msg = f"priority {priority} would overtake everything; 1 is the most urgent"
        raise EngineError(msg)
    chosen: EnqueueOptions = {
        "workflow_name": name,
        "queue_name": queue,
        "workflow_id": workflow_id,
        "priority": priority,
        "app_version": checks.WORKFLOW_VERSION,
        "application_name": checks.APPLICATION,
        "attributes": {"queue": queue},
    }
    if partition is not None:
        chosen["queue_partition_key"] = partition
    if delay > 0:
        chosen["delay_seconds"] = delay
    return chosen


class EngineClient:
    """Asks for workflows and looks after them; runs none."""

    def __init__(self, url: str) -> None:
        self.url = url
        migrate(url)
        self._client: DBOSClient | None = connect(url)

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        if self._client is not None:
            self._client.destroy()
            self._client = None

    @property
    def _desk(self) -> DBOSClient:
        if self._client is None:
            msg = "the engine is closed"
            raise EngineError(msg)
        return self._client

    def enqueue(
        self,
        queue: str,
        name: str,
        workflow_id: str,
        *args: Any,
        priority: int = ROUTINE,
        partition: str | None = None,
        delay: float = 0.0,
    ) -> None:
        """Ask for one run of workflow `name`; a second call with the same id changes nothing.

        `args` are JSON values (ids and object keys, never a patient's data: they are stored);
        `priority` 1 is the most urgent; `delay` in seconds. Raises `EngineError` if the id is
        taken by a workflow of another name.
        """
        chosen = options(queue, name, workflow_id, priority, partition, delay)
        try:
            self._desk.enqueue(chosen, *args)
        except DBOSConflictingWorkflowError as error:
            raise taken(workflow_id) from error

    def enqueue_in(
        self,
        connection: sa.Connection,
        queue: str,
        name: str,
        workflow_id: str,
        *args: Any,
        priority: int = ROUTINE,
        partition: str | None = None,
        delay: float = 0.0,
    ) -> None:
        """Ask for a run within the caller's transaction: it exists if and only if that commits.

        `connection` must stand on the engine's database; the caller begins, commits and retries.
        """
        chosen = options(queue, name, workflow_id, priority, partition, delay)
        try:
            self._desk.enqueue_in_transaction(connection, chosen, *args)
        except DBOSConflictingWorkflowError as error:
            raise taken(workflow_id) from error

    def wake(self, workflow_id: str) -> bool:
        """Wake a workflow that waits, now or when it next waits; many calls wake it once.

        Returns False where there is no such workflow, or it is over.
        """
        with self._database.begin() as connection:
            return self.wake_in(connection, workflow_id)

    def wake_in(self, connection: sa.Connection, workflow_id: str) -> bool:
        """Wake within the caller's transaction; see `wake`."""
        self._desk._sys_db._apply_caller_schema(connection)
        tables = self._desk._sys_db.tables
        flow, note = tables.workflow_status, tables.notifications
        waiting = connection.execute(
            sa.select(
                flow.c.status.in_(["PENDING", "ENQUEUED", "DELAYED"]),
                sa.exists().where(
                    note.c.destination_uuid == flow.c.workflow_uuid,
                    note.c.topic == TOPIC,
                    note.c.consumed.is_(False),
                ),
            ).where(flow.c.workflow_uuid == workflow_id)
        ).first()
        if waiting is None or not waiting[0]:
            return False
        if not waiting[1]:
            self._desk.send_in_transaction(connection, workflow_id, 1, TOPIC)
        return True

    def cancel(self, workflow_id: str, *, children: bool = False) -> None:
        """Cancel: at once if it is queued or waits, after its present step if it runs one.

        With `children` also what it enqueued itself (not what `enqueue_in` did). An unknown or
        finished workflow is left as it is.
        """
        self._desk.cancel_workflow(workflow_id, cancel_children=children)

    def retry(self, workflow_id: str, *, since: str | None = None) -> bool:
        """Put a dead or cancelled workflow back into its own queue; finished steps stay finished.

        A workflow that ended in an error goes on at the last step that failed, or at its last
        step if it raised the error itself, or at the last step called `since`. Returns False if
        it is still under way or ended well; raises `NotFound` if there is none.
        """
        found = self._find(workflow_id)
        if found is None:
            msg = f"there is no workflow {workflow_id}"
            raise NotFound(msg)
        queue = _queue(found)
        try:
            if found.status == "ERROR":
                self._desk.rewind_workflow(
                    workflow_id,
                    start_step=self._resume_at(workflow_id, since),
                    queue_name=queue,
                    queue_partition_key=found.queue_partition_key,
                    application_version=checks.WORKFLOW_VERSION,
                )
            elif found.status in {"CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"}:
                self._desk.resume_workflow(workflow_id, queue_name=queue)
            else:
                return False
        except DBOSException as error:
            msg = f"{workflow_id} changed while it was put back; try again"
            raise EngineError(msg) from error
        return True

    def status(self, workflow_id: str) -> str | None:
        """Give ENQUEUED, DELAYED, PENDING, SUCCESS, ERROR, CANCELLED, MAX_RECOVERY… or None."""
        found = self._find(workflow_id)
        return None if found is None else found.status

    def dead(self, limit: int = 1000) -> list[Dead]:
        """List the dead letters, newest first."""
        listed = self._desk.list_workflows(
            status=_DEAD,
            limit=limit,
            sort_desc=True,
            load_input=False,
            application_name=checks.APPLICATION,
        )
        return [_dead(one) for one in listed]

    def prune(self, before: datetime, *, dead: bool = False) -> int:
        """Delete what ended before `before` and return how many; dead letters only with `dead`.

        A deleted id may be used again: our own tables stay the truth of what was done.
        """
        status = _OVER + _DEAD if dead else _OVER
        count = 0
        while True:
            listed = self._desk.list_workflows(
                status=status,
                completed_before=before.astimezone(UTC).isoformat(),
                limit=_BATCH,
                load_input=False,
                load_output=False,
                application_name=checks.APPLICATION,
            )
            if not listed:
                return count
            self._desk.delete_workflows([one.workflow_id for one in listed])
            count += len(listed)

    def stop(self, prefixes: Sequence[str]) -> None:
        """Cancel every unfinished workflow whose id begins so; see `cancel`."""
        for prefix in prefixes:
            listed = self._desk.list_workflows(
                workflow_id_prefix=prefix, status=_UNFINISHED, load_input=False, load_output=False
            )
            if listed:
                self._desk.cancel_workflows([one.workflow_id for one in listed])

    def forget(self, prefixes: Sequence[str]) -> None:
        """Delete what is kept of the workflows whose ids begin so, as if they had never been.

        Stop them first and wait for their steps; a step that still runs fails when it ends.
        """
        tables = self._desk._sys_db.tables
        payload = (tables.workflow_input, tables.workflow_output, tables.operation_outputs)
        with self._database.begin() as connection:
            self._desk._sys_db._apply_caller_schema(connection)
            for table in (*payload, tables.workflow_status):  # what else there is goes with it
                for prefix in prefixes:
                    mine = table.c.workflow_uuid.startswith(prefix, autoescape=True)
                    connection.execute(sa.delete(table).where(mine))

    def tables(self) -> list[str]:
        """Name the engine's tables as SQL calls them, for whoever rewrites them."""
        inspector = sa.inspect(self._database)
        sqlite = self._database.dialect.name == "sqlite"
        schema = None if sqlite else self._desk._sys_db.schema
        names = [name for name in inspector.get_table_names(schema=schema) if name in _KEPT]
        return [name if schema is None else f"{schema}.{name}" for name in names]

    @property
    def _database(self) -> sa.Engine:
        return self._desk._sys_db.engine

    def _find(self, workflow_id: str) -> WorkflowStatus | None:
        found = self._desk.list_workflows(
            workflow_ids=[workflow_id], load_input=False, load_output=False
        )
        return found[0] if found else None

    def _resume_at(self, workflow_id: str, since: str | None) -> int:
        steps = self._desk.list_workflow_steps(workflow_id)
        if since is not None:
            named = [one for one in steps if one["function_name"] == since]
            if not named:
                msg = f"{workflow_id} has no step {since}"
                raise NotFound(msg)
            return named[-1]["function_id"]
        failed = [one for one in steps if one["error"] is not None]
        chosen: Iterable[int] = (one["function_id"] for one in failed or steps)
        return max(chosen, default=1)


def _queue(found: WorkflowStatus) -> str:
    """Read the queue that every workflow of ours carries with it."""
    name = (found.attributes or {}).get("queue") or found.queue_name
    if not isinstance(name, str):
        msg = f"{found.workflow_id} does not say to which queue it belongs"
        raise EngineError(msg)
    return name


def _dead(found: WorkflowStatus) -> Dead:
    error = found.error
    text = error.message if isinstance(error, PortableWorkflowError) else ""
    name = error.name if isinstance(error, PortableWorkflowError) else found.status
    at = found.completed_at or found.updated_at or 0
    return Dead(
        workflow_id=found.workflow_id,
        name=found.name,
        queue=_queue(found),
        error=name,
        text=text,
        when=datetime.fromtimestamp(at / 1000, UTC),
    )


def taken(workflow_id: str) -> EngineError:
    """Give the error for an id that is in use."""
    return EngineError(f"the id {workflow_id} belongs to a workflow of another name")
