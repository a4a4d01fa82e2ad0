"""A log ends and another goes on under a new origin (`radseal ledger continue`).

Why: the log was restored from a copy behind what was published (appending to it would be a second
history), its keys are compromised, or it has grown as large as it should. Then, in this order:

    0  nobody else has the log open, from before site.toml is read until the end (`alone`)
    1  continuing.json says what will be done; every other command now refuses
    2  the old log takes no more leaves; where it can be signed honestly, log.closed is its last
    3  its folder, rows and vkeys move to ledger-closed/<n>/
    4  new keys; `origin` in site.toml is the new one, and the new log, empty, is bound to it
    5  continuing.json becomes ledger-closed/<n>/continued.json: **now the new log is open**

The next who opens the site says log.continued, and carries over what the old log had taken and
not published. Each step looks whether it was done, so the command is typed again after a crash.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from bridge import ambient, site
from bridge.errors import Refused, WrongUse
from bridge.files import fsync_folder
from bridge.logstore import PostgresStore, has_schema
from bridge.origins.ended import (
    Continuation,
    number_of_log,
    origins,
    place,
    store_of,
    under_way,
    write_plan,
)
from bridge.origins.signing import drop_all, folder_of, make_pair, pairs, write_secret
from bridge.record import SYSTEM
from bridge.site import Site
from bridge.turns import Busy, Turns
from ledger import leaf
from ledger.checkpoint import Checkpoint
from ledger.errors import SecondSequencer
from ledger.log import open_log
from ledger.merkle import EMPTY
from ledger.sequencer import Sequencer
from ledger.store import SqliteStore

__all__ = ["WAIT", "alone", "begin", "finish"]

WAIT = 10.0
"""Seconds that we wait for short commands to end."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only one who has a site's log, while it or its keys change.

    Enter this before site.toml is read. Short commands are waited for. Raises WrongUse while
    `radseal serve` runs, Refused while a worker or another command does, SettingsError where no
    site is.
    """
    site.read(folder)
    locks = folder / ".locks"
    locks.mkdir(exist_ok=True, mode=0o700)
    with (locks / "serve").open("w") as lock, ExitStack() as stack:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongUse("`radseal serve` runs on this site; stop it first") from None
        try:
            stack.enter_context(Turns(locks).changing(ambient.monotonic() + WAIT))
        except Busy:
            raise Refused(
                "a `radseal worker` or another command uses this site's log; end it, then type "
                "this again"
            ) from None
        yield


def begin(settings: Site, origin: str, newer: Checkpoint | None, reason: str, by: str) -> None:
    """Write down that the log goes on as `origin`; nothing else is changed yet.

    `newer` is the newest checkpoint that others may have seen, where it is not ours: then the
    old log is left as it is. None where ours is the newest: then it is closed. Raises WrongUse,
    SettingsError where the new origin cannot be.
    """
    if origin in origins(settings):
        raise WrongUse(f"{origin} is or was the name of a log of this site; choose another one")
    site.renamed(settings, origin)
    end = newer or Checkpoint(settings.origin, 0, EMPTY)  # of a closed log it is known at its end
    told = Continuation(
        number_of_log(settings.folder), settings.origin, origin, end.size, leaf.ref(end.root),
        reason, by, closed=newer is None,
    )  # fmt: skip
    write_plan(settings.folder, told)


def finish(folder: Path) -> None:
    """Do what continuing.json says, whatever of it was done before; nothing where there is none.

    Raises Refused where another process uses the log, LedgerError where a log that shall be
    closed cannot be signed.
    """
    told, settings = under_way(folder), site.read(folder)
    if told is None:
        return
    target = place(folder, told.number)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for made in (folder, target.parent):  # before anything moves into what might not be there
        fsync_folder(made)
    if not _is_put_away(settings, told):
        told = _end(settings, told)
    for name in ("ledger", "ledger.vkey", "ledger.policy"):
        if (folder / name).exists() and not (target / name).exists():
            (folder / name).rename(target / name)
    make_pair(folder_of(folder, told.number + 1), told.origin, 1, ambient.entropy, {})
    if settings.origin != told.origin:
        write_secret(folder / "site.toml", site.renamed(settings, told.origin).encode())
    _bind(settings, told.origin)
    fsync_folder(target)
    fsync_folder(folder)
    if told.closed:
        # Nothing will ever be signed by them again. Those of a log that was left open stay: whoever
        # finds its newest state can still close it.
        drop_all(folder_of(folder, told.number))
    (folder / "continuing.json").rename(target / "continued.json")
    fsync_folder(target)
    fsync_folder(folder)


def _bind(settings: Site, origin: str) -> None:
    """Give the new log its name before anybody opens it."""
    store = store_of(settings)
    try:
        store.pin(origin)
    finally:
        store.close()


def _is_put_away(settings: Site, told: Continuation) -> bool:
    if settings.on_postgresql:
        return has_schema(settings.database_url, f"ledger_closed_{told.number}")
    return (place(settings.folder, told.number) / "ledger.db").exists()


def _end(settings: Site, told: Continuation) -> Continuation:
    """Shut the old log and put its rows away; returns the plan with the size it ended at."""
    store = store_of(settings)
    try:
        if told.closed:
            _close(settings, told, store, ambient.now())
            head = store.head()
            told = replace(told, size=head.size, root=leaf.ref(head.root))
            write_plan(settings.folder, told)
        else:
            if not store.claim():
                raise Refused("a `radseal worker` runs on this site; stop it first")
            store.shut(None)
        # A crash before this: shut, and still in its place; the next try finds it so.
        if isinstance(store, PostgresStore):
            store.put_away(f"ledger_closed_{told.number}")
        else:
            store.settle()
            fsync_folder(settings.folder)  # what lay beside it is gone
            target = place(settings.folder, told.number) / "ledger.db"
            (settings.folder / "ledger.db").rename(target)
            fsync_folder(target.parent)
    finally:
        store.close()
    return told


def _close(
    settings: Site, told: Continuation, store: SqliteStore | PostgresStore, now: datetime
) -> None:
    """Publish what waits, then log.closed as the last leaf; of a log without leaves, nothing."""
    keys = pairs(folder_of(settings.folder, told.number), told.previous)
    signers = [signer for pair in keys for signer in pair.signers]
    log = open_log(settings.folder / "ledger", store, told.previous, signers)
    idem = "log/closed"
    made = leaf.record(
        id=ambient.new_leaf_id(now), type="log.closed", time=now, node="radseal", actor=SYSTEM,
        idem=idem, body={"reason": told.reason, "next": told.origin, "by": told.by},
    )  # fmt: skip
    try:
        with Sequencer(log) as sequencer:
            if not log.began():  # made, and never opened
                log.shut()
                return
            sequencer.sequence(now)
            log.shut(idem, leaf.render(made))
            sequencer.sequence(now)
    except SecondSequencer:
        raise Refused("another process publishes this log; stop it first") from None
