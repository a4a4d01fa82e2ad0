"""Composition root: settings → rooms → listener, indexer, worker, publisher, HTTP; in reverse back.

    listener    a process of its own: bytes to disk, no database (bridge/intake/dimse.py)
    indexer     a thread: files become rows
    worker      the durable workflows (bridge/pipeline.py)
    publisher   a thread: pending leaves become a signed checkpoint, at most 200 ms later
    witnesses   a thread for each witness that is asked; nothing waits for it
    http        a thread: pages, API, health, and the witness that we are for others

Any of them may die at any moment; the next start goes on from what is durable.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import IO

import sqlalchemy
import uvicorn

from bridge import ambient, in_force, logs, metrics, pipeline, quorum
from bridge.api.app import create_app
from bridge.api.wire import AccessLine
from bridge.catalog import upload
from bridge.catalog.fitness import FAILED
from bridge.engine import Engine
from bridge.erasure import erase
from bridge.errors import RadsealError, Refused, SettingsError, WrongUse
from bridge.front import Front
from bridge.home import open_rooms
from bridge.indexing import ATTRIBUTES, readable, same_pixels
from bridge.infer import LIMITS
from bridge.receive import Indexer
from bridge.report.errors import ReportError
from bridge.site import Site
from bridge.turns import Busy, using
from bridge.witnessing import cosigning, witnesses
from bridge.witnessing.witnesses import Witnesses
from ledger.cosigner import Cosigner
from ledger.errors import LedgerError, SecondSequencer
from ledger.sequencer import Sequencer
from models import cell, sandbox
from models.errors import ModelError

__all__ = ["Service", "serve", "work"]

_PUBLISH_EVERY = 0.2
_INDEX_EVERY = 0.15
_ERASE_EVERY = 5.0
_KEEP_EVERY = 5.0
_LOST_AFTER = 120.0


class _Loop(threading.Thread):
    """A thread that repeats one task until it is told to stop; the only broad except of ours."""

    def __init__(self, name: str, task: Callable[[], float]) -> None:
        super().__init__(name=name, daemon=True)
        self._task = task
        self._ended = threading.Event()
        self.healthy = True

    def run(self) -> None:
        """Repeat; an error is logged by its class, the task is tried again a second later."""
        log = logs.get()
        while not self._ended.is_set():
            try:
                pause = self._task()
                self.healthy = True
            except Exception as error:  # noqa: BLE001 - the worker: one bad pass must not end it
                self.healthy = False
                log.error("loop.failed", where=self.name, code=type(error).__name__)
                pause = 1.0
            self._ended.wait(pause)

    def leave(self) -> None:
        """End after the current pass; nobody waits for it."""
        self._ended.set()

    def stop(self) -> None:
        """End after the current pass."""
        self._ended.set()
        self.join(timeout=10)


class Service:
    """A site at work. `listen` adds the DICOM listener, the indexer and HTTP to the worker."""

    def __init__(self, site: Site, *, listen: bool) -> None:
        self._site = site
        self._listen = listen
        self._log = logs.get()
        self._lock: IO[str] | None = None
        self._listener: subprocess.Popen[str] | None = None
        self._loops: list[_Loop] = []
        self._askers: list[_Loop] = []
        self._http: uvicorn.Server | None = None
        self._sequencer: Sequencer | None = None
        self._waits = False
        self._asking = threading.Lock()
        self._witnesses: tuple[Sequencer, Witnesses] | None = None
        self._stopping = False
        # Until the process is gone: a step that still runs at the end may append, too.
        self._using = using(site.folder)
        self._using.__enter__()
        node = socket.gethostname().split(".")[0] or "node"
        locks = site.folder / ".locks"
        locks.mkdir(exist_ok=True, mode=0o700)
        self.engine = Engine(site.database_url, locks, node, speakable=_speakable())
        self.rooms = open_rooms(site, self.engine, prepare=listen)
        pipeline.declare(self.engine, self.rooms)

    def start(self) -> None:
        """Start everything; raises WrongUse when the site is served already or a port is taken."""
        if self._listen:
            self._claim()
            upload.clear(self._site.folder / "models")
            in_force.say_changed(self.rooms)
        cell.keep_spare()
        self._screen()
        self.engine.launch()
        self._loop("publisher", self._publish)
        self._loop("models", self._keep_warm)
        self._ask_witnesses()
        if not self._listen:
            return
        indexer = self._indexer()
        self._loop("indexer", lambda: self._index(indexer))
        self._open_http()
        self._start_listener()
        self._loop("listener", self._watch_listener)
        self._loop("eraser", self._erase)

    def stop(self) -> None:
        """Stop in reverse order; what is under way goes on at the next start."""
        self._stopping = True
        if self._listener is not None:
            self._listener.terminate()
        if self._http is not None:
            self._http.should_exit = True
        for asker in self._askers:
            asker.leave()
        for loop in reversed(self._loops):
            if loop.name != "publisher":
                loop.stop()
        self.engine.close(timeout=5)
        for loop in self._loops:
            loop.stop()
        if self._sequencer is not None:
            with contextlib.suppress(LedgerError):  # what is pending is durable: the next start
                self._sequencer.sequence(ambient.now())
            self._sequencer.__exit__(None, None, None)

    def healthy(self) -> dict[str, bool]:
        """Say which parts live."""
        parts = {loop.name: loop.is_alive() and loop.healthy for loop in self._loops}
        parts["worker"] = self.engine.alive()
        if self._listen:
            parts["dicom"] = self._listener is not None and self._listener.poll() is None
        return parts

    def _screen(self) -> None:
        """Take models out of routing that fail their self-test here; before any of them runs.

        A model that passed with this runtime on such a machine is not tested again.
        """
        for model_id in self.rooms.fitness.screen(self.rooms.lifecycle, ambient.now):
            self._log.error("model.suspended", where=model_id, code=FAILED)

    def _claim(self) -> None:
        self._lock = (self._site.folder / ".locks" / "serve").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongUse(
                f"{self._site.folder} is served already by another process; stop that one first"
            ) from None

    def _loop(self, name: str, task: Callable[[], float]) -> None:
        loop = _Loop(name, task)
        self._loops.append(loop)
        loop.start()

    def _publish(self) -> float:
        """Sequence what is pending, while we hold the log's lock; else try for it."""
        if self._sequencer is None:
            sequencer = Sequencer(self.rooms.record.log)
            try:
                sequencer.__enter__()
            except SecondSequencer:
                if not self._waits:
                    self._waits = True
                    self._log.info("publisher.waits", where="another process sequences the log")
                return 1.0
            self._sequencer, self._waits = sequencer, False
        try:
            if self._sequencer.sequence(ambient.now()):
                metrics.LEAVES.set(self.rooms.record.log.size())
        except LedgerError:
            # Never sign after a failed write: a new sequencer compares files and store first.
            self._sequencer.__exit__(None, None, None)
            self._sequencer = None
            raise
        return _PUBLISH_EVERY

    def _ask_witnesses(self) -> None:
        """Start a loop for each witness; readiness does not count them, for care does not."""
        for one in quorum.partners(quorum.asked(self._site.ledger.witnesses)):
            loop = _Loop(f"witness {one.name}", partial(self._ask, one))
            self._askers.append(loop)
            loop.start()

    def _ask(self, partner: quorum.Partner) -> float:
        """Ask one witness while we are the one who publishes."""
        with self._asking:
            sequencer = self._sequencer
            if sequencer is None or self._stopping:
                return 1.0
            if self._witnesses is None or self._witnesses[0] is not sequencer:
                # Another process may have published, and asked, since: what we know is read anew.
                made = witnesses.of_log(self.rooms.record, self._site.ledger)
                self._witnesses = (sequencer, made)
            asker = self._witnesses[1]
        return asker.ask(partner)

    def _witness(self) -> Cosigner | None:
        """Open the witness that we are for others. Where it does not open, the rest goes on."""
        folder = self._site.witness_folder
        try:
            return None if folder is None else cosigning.open_witness(folder)
        except SettingsError:
            self._log.error("witness.off", where="cosigner", code="see-radseal-doctor")
            return None

    def _index(self, indexer: Indexer) -> float:
        indexed = indexer.index(self.rooms.clock.steady())
        metrics.WAITING.set(self.rooms.files.waiting() if indexed else 0)
        return 0.0 if indexed else _INDEX_EVERY

    def _keep_warm(self) -> float:
        """Keep a process ready for each model in routing, and none for the others."""
        sandbox.keep_warm((package for _, package in self.rooms.catalog.active()), LIMITS)
        return _KEEP_EVERY

    def _erase(self) -> float:
        """Finish erasures that two people decided on and a crash left unfinished."""
        with contextlib.suppress(Busy):
            erase.go_on(self.rooms, seconds=1.0)
        return _ERASE_EVERY

    def _indexer(self) -> Indexer:
        rooms = self.rooms

        def opened(connection: sqlalchemy.Connection, study_id: str, generation: int) -> None:
            self.engine.enqueue_in(
                connection, "study", "study", f"study/{study_id}/{generation}", study_id,
                generation,
            )  # fmt: skip

        return Indexer(
            engine=rooms.database, files=rooms.files, keywords=ATTRIBUTES,
            issuer_of=self._site.issuer_of, same_pixels=same_pixels, subject_of=rooms.subject,
            opened=opened, readable=lambda sop_class: readable(rooms, sop_class),
            new_id=ambient.new_id,
        )  # fmt: skip

    def _start_listener(self) -> None:
        self.rooms.files.clear_parts()
        process = subprocess.Popen(
            [sys.executable, "-m", "bridge.intake.dimse", str(self._site.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line.startswith("ready"):
            process.wait()
            raise WrongUse(
                f"the DICOM listener did not start on port {self._site.listener.port}; "
                "is the port taken?"
            )
        self._listener = process  # from here on it answers: /health/ready may say so
        self._log.info("listener.ready", port=int(line.split()[1]))

    def _watch_listener(self) -> float:
        if not self._stopping and self._listener is not None and self._listener.poll() is not None:
            self._log.error("listener.died", status=self._listener.returncode)
            self._start_listener()
        return 0.5

    def _open_http(self) -> None:
        http = self._site.http
        app = create_app(Front(self.rooms, self.healthy), _access, self._witness())
        bound = socket.socket(socket.AF_INET6 if ":" in http.host else socket.AF_INET)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((http.host, http.port))
        except OSError as error:
            raise WrongUse(
                f"the HTTP port {http.host}:{http.port} cannot be opened ({error.strerror}); "
                "choose another [http] port"
            ) from None
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
        self._http = uvicorn.Server(config)
        thread = threading.Thread(
            target=self._http.run, kwargs={"sockets": [bound]}, name="http", daemon=True
        )
        thread.start()
        self._log.info("http.ready", host=http.host, port=http.port)


def _speakable() -> tuple[type[Exception], ...]:
    """Which errors' texts are known to hold no patient data and may be kept with a step."""
    return (RadsealError, ReportError, ModelError, LedgerError)


def _access(line: AccessLine) -> None:
    logs.get().info(
        "http", method=line.method, route_template=line.route, status=line.status,
        seconds=round(line.ms / 1000, 4), role=line.role,
    )  # fmt: skip


def _hear() -> threading.Event:
    """Take SIGTERM and SIGINT from now on: who is told to end while he starts, ends in order."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told


def _until(told: threading.Event, service: Service) -> None:
    alive_at = ambient.monotonic()
    while not told.wait(1.0):
        now = ambient.monotonic()
        if service.engine.alive():
            alive_at = now
        elif now - alive_at > _LOST_AFTER:
            # A dead thread, or a database that stays away: end, so that whoever supervises starts
            # us again. Until then images are still taken, and a database that comes back is met.
            logs.get().error("worker.lost")
            os._exit(70)
    service.stop()


def serve(site: Site, ready: Callable[[Service], None]) -> None:
    """Serve a site until SIGTERM or SIGINT; `ready` is called once everything answers."""
    told, service = _hear(), Service(site, listen=True)
    service.start()
    ready(service)
    _until(told, service)
    _end()


def work(site: Site) -> None:
    """Be one more worker of a site on PostgreSQL; raises Refused on SQLite."""
    if not site.on_postgresql:
        raise Refused(
            'one more worker needs PostgreSQL: set [database] url = "postgresql+psycopg://…"'
        )
    told, service = _hear(), Service(site, listen=False)
    service.start()
    logs.get().info("worker.ready")
    _until(told, service)
    _end()


def _end() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    # A step that still runs keeps its thread; it goes on at the next start, so do not wait.
    os._exit(0)
