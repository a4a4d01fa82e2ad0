"""A copy of a whole site, taken while it works (`radseal backup`).

Three files, because they must not lie together. FILE: settings, rows, images, results, models,
work under way, and the log. FILE.keys: `keys/`, without which nothing can be signed or read.
FILE.vault-until-DATE: the patients' keys, which must expire, or an erasure would not be one.

One order makes the copy consistent without stopping anything:

    1  rows of state.db          what they name was durable before them: found below
    2  rows of ledger.db         every leaf that a row names was appended before it
    3  vault                     every patient that a row names had his key before it
    4  files; an image that has no row in the copy goes into its inbox, and is indexed again
    5  the log, exactly as far as the copied rows signed it: never ahead of them
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bridge.continuity.tar import Progress, Writer, writing
from bridge.errors import Refused, WrongUse
from bridge.home import VERSION, database_of
from bridge.logstore import head_in
from bridge.origins.ended import number_of_log, place, under_way
from bridge.site import Site
from bridge.store import arrivals, copies
from bridge.store.database import open_engine, reading
from ledger import leaf
from ledger.log import read_tile
from ledger.store import Head, SqliteStore
from ledger.tiles import ENTRIES, WIDTH, Tile

__all__ = ["Made", "back_up", "keys_file", "vault_file"]

_PLAIN = ("site.toml", "ledger.vkey", "ledger.policy")


@dataclass(frozen=True, slots=True)
class Made:
    """What was written; `vault` and `keys` are None where the site has none."""

    site: Path
    vault: Path | None
    keys: Path | None
    size: int


def keys_file(path: Path) -> Path:
    """Give the default name of the file with the keys."""
    return path.with_name(f"{path.name}.keys")


def vault_file(path: Path, until: datetime) -> Path:
    """Give the default name of the file with the vault."""
    return path.with_name(f"{path.name}.vault-until-{until:%Y%m%d}")


def back_up(
    site: Site,
    path: Path,
    *,
    vault: Path | None,
    keys: Path | None,
    days: int,
    now: datetime,
    progress: Progress,
) -> Made:
    """Copy a site, which may be at work, into new files; raises WrongUse, Refused, StorageFull."""
    _whole(site)
    until = now + timedelta(days=days)
    vault, keys = vault or vault_file(path, until), keys or keys_file(path)
    if len({path, vault, keys}) < 3:
        raise WrongUse("site, vault and keys need a file each")
    with ExitStack() as stack:
        copy = stack.enter_context(_copied(site, path.parent))
        head = copy.head
        said = {
            "format": 1, "release": VERSION, "made": now.isoformat(timespec="seconds"),
            "origin": site.origin, "size": head.size, "root": leaf.ref(head.root),
            "database": "postgresql" if site.on_postgresql else "sqlite",
        }  # fmt: skip
        expires = {**said, "kind": "vault", "expires": until.isoformat(timespec="seconds")}
        made_vault = _write_vault(copy, vault, expires)
        made_keys = _write_keys(site.folder / "keys", keys, {**said, "kind": "keys"})
        with writing(path, {**said, "kind": "site"}, progress) as archive:
            _write_site(site, copy, archive)
    return Made(path, vault if made_vault else None, keys if made_keys else None, head.size)


@dataclass(frozen=True, slots=True)
class _Copy:
    """The rows of one moment, and what lay in work/ then."""

    rows: tuple[Path, ...]
    vault: tuple[Path, ...]
    arrivals: frozenset[str]
    head: Head
    work: Path


@contextmanager
def _copied(site: Site, beside: Path) -> Iterator[_Copy]:
    links = site.folder / ".backup"
    shutil.rmtree(links, ignore_errors=True)  # of one that was killed
    try:
        with tempfile.TemporaryDirectory(dir=beside, prefix=".radseal-backup-") as place_:
            # Outcomes of runs, which a later step needs, may be removed while we copy: names of
            # our own keep them. Before the rows and after them, so that none is between.
            _link(site.folder / "work", links)
            copy = _of_postgresql if site.on_postgresql else _of_sqlite
            rows, vault, known, head = copy(site, Path(place_))
            _link(site.folder / "work", links)
            yield _Copy(rows, vault, known, head, links)
    except OSError as error:
        raise Refused(f"the copy could not be made ({error.strerror}): free space there") from None
    finally:
        shutil.rmtree(links, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    for top, _, names in os.walk(source):
        folder = target / Path(top).relative_to(source)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in names:
            try:
                (folder / name).unlink(missing_ok=True)
                os.link(Path(top) / name, folder / name)
            except FileNotFoundError:
                continue


def _of_sqlite(
    site: Site, folder: Path
) -> tuple[tuple[Path, ...], tuple[Path, ...], frozenset[str], Head]:
    names = {"state.db": Path(site.database_url.removeprefix("sqlite:///"))}
    names["ledger.db"] = site.folder / "ledger.db"
    for number in range(1, number_of_log(site.folder)):
        names[f"ledger-closed-{number}.db"] = place(site.folder, number) / "ledger.db"
    names["vault.db"] = site.folder / "vault.db"
    for name, source in names.items():
        if source.exists():
            copies.copy_sqlite(source, folder / name)
    store = SqliteStore(folder / "ledger.db")
    head = store.head()
    store.settle()
    store.close()
    engine = open_engine(f"sqlite:///{folder / 'state.db'}")
    with reading(engine) as connection:
        known = arrivals.all_arrivals(connection)
    engine.dispose()
    rows = tuple(folder / name for name in names if name != "vault.db" and (folder / name).exists())
    vault = (folder / "vault.db",) if (folder / "vault.db").exists() else ()
    return rows, vault, known, head


def _of_postgresql(
    site: Site, folder: Path
) -> tuple[tuple[Path, ...], tuple[Path, ...], frozenset[str], Head]:
    engine = database_of(site)
    with copies.one_moment(engine) as connection:
        written = copies.dump(connection, folder)
        known, head = arrivals.all_arrivals(connection), head_in(connection)
    engine.dispose()
    vault = tuple(path for path in written if path.name.split(".")[1] in copies.VAULT)
    return tuple(path for path in written if path not in vault), vault, known, head


def _write_site(site: Site, copy: _Copy, archive: Writer) -> None:
    for name in _PLAIN:
        archive.add_file(name, site.folder / name)
    for path in copy.rows:
        archive.add_file(f"db/{path.name}", path)
    _write_log(site.folder / "ledger", copy.head, archive)
    for number in range(1, number_of_log(site.folder)):
        for name in (*_PLAIN, "continued.json"):
            archive.add_file(f"ledger-closed/{number}/{name}", place(site.folder, number) / name)
        inner = f"ledger-closed/{number}/ledger"
        _write_tree(archive, site.folder / inner, inner)
    for name in ("models", "artifacts"):
        _write_tree(archive, site.folder / name, name)
    _write_tree(archive, copy.work, "work")
    _write_images(site.instances, copy.arrivals, archive)


def _write_log(folder: Path, head: Head, archive: Writer) -> None:
    """Append the tiles of exactly this many leaves, and the checkpoint that signs them."""
    if head.size == 0:
        return
    archive.add("ledger/checkpoint", head.text.encode())
    level, count = ENTRIES, head.size
    while count:
        whole, rest = divmod(count, WIDTH)
        tiles = [Tile(level, index) for index in range(whole)]
        tiles += [Tile(level, whole, rest)] if rest else []
        for tile in tiles:
            archive.add(f"ledger/{tile.path()}", read_tile(folder, tile))
        count = count if level == ENTRIES else whole
        level += 1


def _write_tree(archive: Writer, source: Path, name: str) -> None:
    """Append the finished files below a folder; those that go meanwhile are left out."""
    for top, folders, names in os.walk(source):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for one in sorted(names):
            if one.endswith(".part") or one.startswith("."):
                continue
            inner = (Path(top) / one).relative_to(source)
            archive.add_file(f"{name}/{inner.as_posix()}", Path(top) / one)


def _write_images(instances: Path, known: frozenset[str], archive: Writer) -> None:
    """Append the images; one that no row of the copy knows goes into the inbox."""
    waiting: set[str] = set()
    inbox = instances / "inbox"
    # The inbox first: an image leaves it only after it has its place in a study's folder.
    for top in (inbox, *sorted(one for one in instances.iterdir() if one.is_dir())):
        if top.name == "parts" or (top == inbox and waiting):
            continue
        for path in sorted(top.rglob("*.dcm")):
            if path.stem in known and top != inbox:
                archive.add_file(f"instances/{path.relative_to(instances).as_posix()}", path)
            elif (
                path.stem not in known
                and path.stem not in waiting
                and archive.add_file(f"instances/inbox/{path.name}", path)
            ):
                waiting.add(path.stem)


def _write_vault(copy: _Copy, path: Path, said: Mapping[str, Any]) -> bool:
    if copy.vault:
        with writing(path, said) as archive:
            for one in copy.vault:
                archive.add_file(f"db/{one.name}", one)
    return bool(copy.vault)


def _write_keys(folder: Path, path: Path, said: Mapping[str, Any]) -> bool:
    if folder.is_dir():
        with writing(path, said) as archive:
            _write_tree(archive, folder, "keys")
    return folder.is_dir()


def _whole(site: Site) -> None:
    """Refuse what this copy would not hold: rows or images outside of the site folder."""
    if under_way(site.folder) is not None:
        raise Refused("`radseal ledger continue` was not finished; type it again, then back up")
    outside = [] if site.on_postgresql else [("[database] url", site.database_url[10:])]
    for key, where in (*outside, ("[storage] url", str(site.instances))):
        if not Path(where).is_relative_to(site.folder):
            raise Refused(f"{key} lies outside of {site.folder}; back that up with your own tools")
