"""Who may touch a study's data now: every stage shares it, an erasure has it alone.

Locks of the operating system on files in `.locks/`: they hold across processes and end with the
process that dies. A stage holds its study for one step, never while it waits for images or for a
peer to come back, so whoever wants it alone waits for one step at most.

    .locks/indexing        one pass of the indexer, or an erasure
    .locks/study-00 … ff   steps of the studies whose id begins so (shared), or an erasure (alone)
    .locks/erasing         one erasure at a time
    .locks/models          one package at a time is copied into the site
    .locks/log             who has the log open (shared), or who ends it, moves it or changes its
                           keys (alone): taken before site.toml is read, which changes then, too
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bridge.errors import Refused, SettingsError

__all__ = ["WAIT", "Busy", "Turns", "using"]

WAIT = 5.0
"""Seconds that a command waits for another one that changes the log."""

_LOOK_EVERY = 0.05


class Busy(Refused):
    """Somebody else is at this data; nothing is lost, try again in a moment."""


class Turns:
    """The locks of one site, which its processes share. `folder` is made when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def share(self, study_id: str) -> Iterator[None]:
        """Hold a study for one step, together with others; waits while it is being erased."""
        with self._held(_slot(study_id), fcntl.LOCK_SH, None):
            yield

    @contextmanager
    def alone(self, study_ids: Iterable[str], until: float) -> Iterator[None]:
        """Hold these studies alone; raises Busy if a step is still at one of them at `until`.

        `until` is a moment of the monotonic clock, in seconds.
        """
        with ExitStack() as stack:
            for slot in sorted({_slot(study_id) for study_id in study_ids}):
                stack.enter_context(self._held(slot, fcntl.LOCK_EX, until))
            yield

    @contextmanager
    def indexing(self, until: float | None = None) -> Iterator[None]:
        """Hold the inbox: nobody else makes rows of files. Raises Busy after `until`."""
        with self._held("indexing", fcntl.LOCK_EX, until):
            yield

    @contextmanager
    def erasing(self, until: float) -> Iterator[None]:
        """Be the only one who erases. Raises Busy after `until`."""
        with self._held("erasing", fcntl.LOCK_EX, until):
            yield

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Be the only one who copies a package into the site; waits for whoever does."""
        with self._held("models", fcntl.LOCK_EX, None):
            yield

    @contextmanager
    def sharing_log(self, until: float) -> Iterator[None]:
        """Have the log open, as others have. Raises Busy after `until`."""
        with self._held("log", fcntl.LOCK_SH, until):
            yield

    @contextmanager
    def changing(self, until: float) -> Iterator[None]:
        """Be the only one who has the log. Raises Busy if somebody has it open at `until`."""
        with self._held("log", fcntl.LOCK_EX, until):
            yield

    @contextmanager
    def _held(self, name: str, how: int, until: float | None) -> Iterator[None]:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        handle = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, how if until is None else how | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if until is not None and time.monotonic() > until:
                        raise Busy from None
                    time.sleep(_LOOK_EVERY)
            yield
        finally:
            os.close(handle)


def _slot(study_id: str) -> str:
    """Name the lock of a study: 256 files are enough, however many studies there are."""
    return f"study-{study_id[:2]}"


@contextmanager
def using(site_folder: Path) -> Iterator[None]:
    """Keep a site's log where it is and what it is, while a process has it open.

    Enter this before site.toml is read. Raises Refused while the log is continued, restored or
    its keys change; SettingsError where the lock cannot be made. Where no site is, nothing is made.
    """
    with ExitStack() as stack:
        if (site_folder / "site.toml").exists():
            try:
                turn = Turns(site_folder / ".locks").sharing_log(time.monotonic() + WAIT)
                stack.enter_context(turn)
            except Busy:
                raise Refused(
                    "another command (radseal ledger continue, key rotate or key retire-old) "
                    "changes this site's log; try again when it has ended"
                ) from None
            except OSError as error:
                raise SettingsError(
                    f"{site_folder}/.locks cannot be used: {error.strerror}; check its owner"
                ) from None
        yield
