"""A site from its backup (`radseal restore`): compared whole, migrated, verified, then there.

Everything happens in a folder beside the wanted one, which is renamed at the end: a restore that
stops half-way leaves no site. A log that is behind what was published must not be appended to:
whoever knows that says so, and the site starts with a new log (bridge/continuity/succession.py).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bridge import site
from bridge.continuity import succession, tar
from bridge.continuity.backup import keys_file
from bridge.continuity.tar import Progress
from bridge.engine import EngineClient
from bridge.errors import NotFound, Refused, WrongUse
from bridge.files import Files, fsync_folder
from bridge.home import database_of
from bridge.logstore import PostgresStore
from bridge.origins.ended import place, store_of
from bridge.origins.published import Standing, compare, fetch, own_vkeys
from bridge.site import Site
from bridge.store import copies
from bridge.store.database import migrate
from bridge.turns import Busy, Turns
from bridge.vault import make_tables
from ledger.checkpoint import Checkpoint
from ledger.errors import LedgerError
from ledger.log import Log
from ledger.verify import verify_log

__all__ = ["Plan", "Restored", "restore"]

_SITE = re.compile(
    r"(site\.toml|ledger\.(vkey|policy)|db/.*|(ledger|ledger-closed|models|artifacts|work)/.*"
    r"|instances/.*)"
)
_VAULT = re.compile(r"db/(vault\.db|public\.vault_[a-z]+\.copy)")
_VAULT_ROWS = "vault-rows"
_KEYS = re.compile(r"keys/.*\.(pem|key|json)")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be restored, and what is known of the world outside.

    `published` is where a checkpoint can be read that others have seen; `behind` is a person's
    word that leaves were published after the backup; `next` the origin of a new log.
    """

    archive: Path
    vault: Path | None = None
    keys: Path | None = None
    published: str | None = None
    behind: bool = False
    next: str | None = None
    expired: bool = False
    by: str = "unknown"


@dataclass(frozen=True, slots=True)
class Restored:
    """What is there now; `standing` says how the log stands to what was published, if known."""

    folder: Path
    about: dict[str, Any]
    size: int
    standing: Standing | None
    vault: bool
    keys: bool


def restore(plan: Plan, target: Path, now: datetime, progress: Progress) -> Restored:
    """Restore a site into an empty folder; raises WrongUse, Refused, NotFound, StorageFull."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WrongUse(f"{target} is not empty; choose a new folder")
    part = target.with_name(f"{target.name}.restoring")
    part.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(part):
        try:
            _clear(part)
            said = _unpack(plan, part, now, progress)
            vault = (part / _VAULT_ROWS).exists()
            settings = _settle(part)
            size, standing = _judge(plan, settings)
            os.sync()  # everything that was unpacked, before it gets its name
            if target.exists():
                target.rmdir()
            part.rename(target)
            fsync_folder(target.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return Restored(target, said, size, standing, vault, (target / "keys/site.key").exists())


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Have the folder alone; the lock stays ours when it gets its name."""
    with ExitStack() as stack:
        try:
            stack.enter_context(Turns(part / ".locks").changing(0.0))
        except Busy:
            raise Refused(f"another restore works in {part}; wait for its end") from None
        yield


def _clear(part: Path) -> None:
    """Remove what a restore left that was killed."""
    for path in part.iterdir():
        if path.is_dir() and path.name != ".locks":
            shutil.rmtree(path)
        elif not path.is_dir():
            path.unlink()


def _unpack(plan: Plan, part: Path, now: datetime, progress: Progress) -> dict[str, Any]:
    said = tar.about(plan.archive)
    if said.get("kind") != "site" or said.get("format") != 1:
        raise Refused(f"{plan.archive} is no backup of a site that this release can read")
    said = tar.read(plan.archive, part, _matching(_SITE), progress)
    for path, kind, pattern in (
        (plan.vault or _newest_vault(plan.archive), "vault", _VAULT),
        (plan.keys or keys_file(plan.archive), "keys", _KEYS),
    ):
        given = plan.vault if kind == "vault" else plan.keys
        if path is None or not path.exists():
            if given is not None:
                raise NotFound(f"{given} is not there")
            continue
        other = tar.about(path)
        if other.get("kind") != kind or other.get("origin") != said.get("origin"):
            raise Refused(f"{path} is not the {kind} of this site")
        expires = other.get("expires")
        if expires and datetime.fromisoformat(expires) < now and not plan.expired:
            raise Refused(
                f"{path} expired on {expires[:10]} and should have been deleted; with --expired it "
                "is used, and every erasure since it was made must be done again"
            )
        tar.read(path, part / _VAULT_ROWS if kind == "vault" else part, _matching(pattern))
    return said


def _matching(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda name: pattern.fullmatch(name) is not None


def _newest_vault(archive: Path) -> Path | None:
    return max(archive.parent.glob(f"{archive.name}.vault-until-*"), default=None)


def _settle(part: Path) -> Site:
    """Put rows where the settings want them, and bring them to this release."""
    settings = site.read(part)
    rows = part / "db"
    if settings.on_postgresql:
        _fill(settings, [*rows.iterdir(), *(part / _VAULT_ROWS / "db").glob("*")])
    else:
        names = {
            rows / "state.db": Path(settings.database_url.removeprefix("sqlite:///")),
            rows / "ledger.db": part / "ledger.db",
            part / _VAULT_ROWS / "db/vault.db": part / "vault.db",
        }
        for path in rows.glob("ledger-closed-*.db"):
            names[path] = place(part, int(path.stem.rsplit("-", 1)[1])) / "ledger.db"
        for source, wanted in names.items():
            if not source.exists():
                continue
            if not wanted.is_relative_to(part):
                raise Refused("[database] url of the backup lies outside of its site folder")
            if not copies.is_sound(source):
                raise Refused(f"{source.name} of the backup is damaged: use another copy")
            source.rename(wanted)
    for folder in (rows, part / _VAULT_ROWS):
        shutil.rmtree(folder, ignore_errors=True)
    engine = database_of(settings)
    migrate(engine)
    engine.dispose()
    Files(part, settings.instances, settings.storage.watermark_mb).prepare()
    return settings


def _fill(settings: Site, paths: list[Path]) -> None:
    engine = database_of(settings)
    if copies.is_filled(engine):
        raise Refused(
            "the database of [database] url holds a site already; name an empty one in "
            "RADSEAL_DATABASE__URL, and afterwards in site.toml"
        )
    migrate(engine, copies.version_of(paths) or "head")
    EngineClient(settings.database_url).close()
    store = PostgresStore(settings.database_url)
    for schema in sorted({path.name.split(".")[0] for path in paths}):
        if schema.startswith("ledger_closed_"):
            PostgresStore(settings.database_url, schema).close()
    make_tables(engine)
    copies.load(engine, paths)
    store.close()
    engine.dispose()


def _judge(plan: Plan, settings: Site) -> tuple[int, Standing | None]:
    """Verify the log, compare it with the world, and begin a new one where it must not go on."""
    folder = settings.folder
    vkeys = own_vkeys(folder)
    store = store_of(settings)
    head = store.head()
    try:
        if head.size:
            report = verify_log(folder / "ledger", vkeys)
            if (report.size, report.root) != (head.size, head.root):
                raise Refused("the backup's log is not the one of its rows: use another copy")
        newer, standing = None, None
        if plan.published is not None:
            newer = fetch(plan.published, vkeys)
            standing = compare(Log(folder / "ledger", store, settings.origin, ()), newer)
    except LedgerError as error:
        raise Refused(f"the backup's log does not verify: {error}") from None
    finally:
        store.close()
    if standing in (Standing.EQUAL, Standing.AHEAD):
        newer = None
    if plan.behind and newer is None:
        standing = standing or Standing.BEHIND
        newer = Checkpoint(settings.origin, head.size, head.root)
    if newer is not None and plan.next is None:
        raise Refused(
            f"leaves were published after this backup (it ends at {head.size}); the log must not "
            "be appended to: add --continue-as NEW_ORIGIN, under which a new log goes on"
        )
    if plan.next is not None:
        end = newer or Checkpoint(settings.origin, head.size, head.root)
        succession.begin(settings, plan.next, end, "restored", plan.by)
        succession.finish(folder)
    return head.size, standing
