"""The engine itself: workflows and steps are declared, then launched, then run until closed.

    engine = Engine(url, folder, node)
    engine.queue("study", concurrency=50)
    fetch = engine.step("fetch", attempts=3)(fetch)
    engine.workflow("study")(lambda study: fetch(study))
    engine.launch()
    engine.enqueue("study", "study", "study/1", 1)

A **workflow** must do the same when run again: it asks no clock, no random generator and no
database, and does everything else in steps. A **step** runs at least once and its result, a JSON
value, is kept exactly once; a finished step never runs again. One engine runs per process.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dbos import DBOS, DBOSClient, PortableWorkflowError
from dbos._error import DBOSConflictingWorkflowError, DBOSException
from sqlalchemy.exc import SQLAlchemyError

from bridge import ambient, logs
from bridge.engine import checks, health, wiring
from bridge.engine.client import ROUTINE, TOPIC, EngineClient, options, taken
from bridge.engine.database import connect, migrate
from bridge.engine.errors import EngineError, EngineStopping, StepFailed, portable
from bridge.engine.lease import Lease, lease
from bridge.engine.steps import Tries, in_workflow, note, pause
from bridge.engine.takeover import Takeover, put_back
from bridge.engine.waiting import Waiting
from bridge.errors import RadsealError

__all__ = ["Engine"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_RECOVERIES = 100
"""Starts of one workflow before it is a dead letter; a crash counts against the innocent too."""


class Engine(EngineClient):
    """Durable workflows on the database of `url`; `folder` is for lock files, `node` a host name.

    `speakable` are the exceptions whose text carries no patient's data and is kept with a failed
    step; of every other only the class is kept. `now` is the wall clock.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        node: str,
        *,
        speakable: tuple[type[Exception], ...] = (RadsealError,),
        now: Callable[[], datetime] = ambient.now,
    ) -> None:
        self.url = url
        self._folder = folder
        self._node = checks.safe_name(node)
        self._speakable = speakable
        self._now = now
        self._workflows: dict[str, Callable[..., Any]] = {}
        self._queues: dict[str, wiring.Queue] = {}
        self._client: DBOSClient | None = None
        self._dbos: DBOS | None = None
        self._lease: Lease | None = None
        self._takeover: Takeover | None = None
        self._waiting: Waiting | None = None
        self._stopping = threading.Event()

    def workflow(self, name: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """Declare a workflow under the name it is enqueued by; returns the function unchanged."""

        def declare(function: Callable[_P, _R]) -> Callable[_P, _R]:
            self._before_launch()
            if name in self._workflows:
                msg = f"two workflows are called {name}"
                raise EngineError(msg)
            self._workflows[name] = function
            return function

        return declare

    def step(
        self,
        name: str,
        *,
        attempts: int = 1,
        interval: float = 1.0,
        backoff: float = 2.0,
        retry_on: Callable[[Exception], bool] | None = None,
    ) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
        """Make a function a step: within a workflow its result is kept, elsewhere it is itself.

        It is tried up to `attempts` times, `interval` × `backoff`ⁿ seconds apart (300 at most), as
        long as `retry_on` says yes to the exception (default: to each). When it gives up the
        workflow gets `StepFailed`. Tries are counted in memory: a restart begins anew.
        """
        tries = Tries(name, attempts, interval, backoff, retry_on, self._speakable, self._stopping)

        def declare(function: Callable[_P, _R]) -> Callable[_P, _R]:
            @functools.wraps(function)
            def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
                if not in_workflow():
                    return function(*args, **kwargs)
                self._still_open()
                body = functools.partial(tries.run, function)
                try:
                    return DBOS.run_step({"name": name}, body, *args, **kwargs)
                except PortableWorkflowError as error:
                    raise StepFailed(error.name, error.message, error.code) from error

            return call

        return declare

    def queue(
        self, name: str, concurrency: int, *, partitioned: bool = False, poll: float = 0.2
    ) -> None:
        """Declare a queue, at most `concurrency` of whose workflows run in one process at a time.

        If it is `partitioned`, that many per partition in all processes together. `poll` is in
        seconds; a workflow that sleeps or waits holds its place.
        """
        self._before_launch()
        self._queues[name] = wiring.Queue(concurrency, partitioned, poll)

    def launch(self, work: bool = True) -> None:
        """Check the machine, make the tables, take the lock, and run.

        Without `work` no queue is served. Raises `StartRefused` with a sentence that says what to
        change; the engine is then as before.
        """
        self._before_launch()
        migrate(self.url)
        self._stopping.clear()
        self._lease = lease(self.url, self._folder, self._node)
        launched = False
        try:
            self._start(self._lease, self._queues if work else {})
            launched = True
        finally:
            if not launched:
                self.close(timeout=0)

    def close(self, timeout: float = 10.0) -> None:
        """Stop: sleepers go, running steps get `timeout` seconds, the rest goes on elsewhere.

        What is unfinished is put back for another process or the next start. A step that still
        runs keeps its thread, and Python waits for it at exit: a service ends with `os._exit`.
        The same engine may be launched again; a new one may be made with the same names.
        """
        if self._lease is None:
            return
        self._stopping.set()
        if self._takeover is not None:
            self._takeover.stop()
        if self._waiting is not None:
            self._waiting.close()
        until = time.monotonic() + timeout
        while self._running() and time.monotonic() < until:
            time.sleep(0.02)
        if self._dbos is not None:
            DBOS.destroy(destroy_registry=True)
            checks.quieten()
            self._hand_over(self._lease.executor)
        self._lease.release()
        self._client = self._dbos = self._lease = self._takeover = self._waiting = None

    def alive(self) -> bool:
        """Tell whether the engine runs, holds its lock and all its threads live."""
        if self._dbos is None or self._takeover is None or self._waiting is None:
            return False
        threads = [one for one in self._dbos._background_threads if "notifi" not in one.name]
        return (
            self._takeover.alive()
            and self._waiting.alive()
            and all(one.is_alive() for one in threads)
        )

    def health(self) -> dict[str, Any]:
        """Give queue depths, ages, dead letters and orphans; see `bridge.engine.health`."""
        return health.report(self)

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
        """Ask for a run; see `EngineClient.enqueue`. Within a workflow it becomes its child."""
        if not in_workflow():
            super().enqueue(
                queue, name, workflow_id, *args, priority=priority, partition=partition, delay=delay
            )
            return
        self._still_open()
        chosen = options(queue, name, workflow_id, priority, partition, delay)
        try:
            DBOS.enqueue_workflow_with_options(chosen, *args)
        except DBOSConflictingWorkflowError as error:
            raise taken(workflow_id) from error

    def wake(self, workflow_id: str) -> bool:
        """Wake a workflow that waits; see `EngineClient.wake`."""
        if in_workflow():
            return self.step("wake", attempts=5)(self.wake)(workflow_id)
        found = super().wake(workflow_id)
        if self._waiting is not None:
            self._waiting.poke(workflow_id)
        return found

    def sleep(self, seconds: float) -> None:
        """Sleep within a workflow, through crashes and restarts, until the same moment."""
        self._pause(seconds, wakeable=False)

    def wait(self, seconds: float) -> bool:
        """Sleep at most `seconds`; True at once when somebody woke us, before or during it."""
        self._pause(seconds, wakeable=True)
        return DBOS.recv(TOPIC, timeout_seconds=0) is not None

    def current_id(self) -> str:
        """Give the id of the workflow that runs here."""
        found = DBOS.workflow_id
        if found is None:
            msg = "this does not run within a workflow"
            raise EngineError(msg)
        return found

    def patched(self, name: str) -> bool:
        """Tell whether this workflow began after the change called `name`; see DBOS.patch."""
        return DBOS.patch(name)

    def _before_launch(self) -> None:
        if self._dbos is not None:
            msg = "the engine is launched already"
            raise EngineError(msg)

    def _still_open(self) -> None:
        if self._stopping.is_set():
            raise EngineStopping

    def _start(self, lease: Lease, listened: Iterable[str]) -> None:
        self._dbos = DBOS(config=wiring.config(self.url, lease.executor))
        DBOS.listen_queues(list(listened))
        for name, function in self._workflows.items():
            DBOS.workflow(name=name, max_recovery_attempts=_RECOVERIES)(self._body(function))
        wiring.declare_queues(self.url, self._queues)
        DBOS.launch()
        self._client = connect(self.url, self._dbos._sys_db.engine)
        self._waiting = Waiting(self._client, lease.executor)
        self._takeover = Takeover(self._client, lease, self._running)
        self._takeover.start()

    def _hand_over(self, executor: str) -> None:
        """Put our unfinished workflows back, so that others need not wait for us to be dead."""
        client = connect(self.url)
        try:
            put_back(client, executor)
        except SQLAlchemyError as error:
            logs.get().warning("engine_closed_without_handing_over", error=type(error).__name__)
        finally:
            client.destroy()

    def _running(self) -> set[str]:
        return set(self._dbos._active_workflows_set.activeList()) if self._dbos else set()

    def _body(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def body(*args: Any) -> Any:
            self._still_open()
            try:
                return function(*args)
            except (DBOSException, PortableWorkflowError):
                raise
            except SQLAlchemyError as error:
                # A workflow speaks to no database: this is the engine's own, full or absent. It
                # goes on where it stood, put back by the sweep; it has not failed.
                note("workflow_interrupted", function.__name__, error)
                raise EngineStopping from None
            except Exception as error:  # noqa: BLE001  (the worker: every error is an outcome)
                note("workflow_failed", function.__name__, error)
                raise portable(error, self._speakable) from None

        return body

    def _pause(self, seconds: float, *, wakeable: bool) -> None:
        self._still_open()
        self.current_id()
        if self._waiting is None:
            raise EngineStopping
        pause(self._desk, self._waiting, self._now, seconds, wakeable=wakeable)
        self._still_open()
