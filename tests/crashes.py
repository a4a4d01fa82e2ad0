"""Crashes at will: after the n-th write of a kind, before it happened or when nobody was told.

`Clock` strikes; `watch_files` and `watch_sqlite` say what counts as a write; `Disk` knows
which of the writes a power cut would have left.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FILE_ACTS = (
    (os, "open"), (os, "write"), (os, "fsync"),
    (Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (Path, "rmdir"),
)  # fmt: skip


class Crash(BaseException):
    """The process is gone."""


def crash(_name: str) -> None:
    """What a strike is unless it is something else."""
    raise Crash


@dataclass
class Clock:
    """Counts acts; at the `at`-th it strikes, before the act or after it."""

    at: int = 0
    after: bool = False
    strike: Callable[[str], Any] = crash
    count: int = 0
    names: list[str] = field(default_factory=list)

    def wrap(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*given: Any, **named: Any) -> Any:
            self.count += 1
            self.names.append(name)
            struck = self.count == self.at
            if struck and not self.after:
                self.strike(name)
            result = act(*given, **named)
            if struck and self.after:
                self.strike(name)
            return result

        return acted


def watch_files(clock: Clock, patch: pytest.MonkeyPatch) -> None:
    """Count whatever `ledger.durable` and the sequencer do to files."""
    for owner, name in FILE_ACTS:
        patch.setattr(owner, name, clock.wrap(name, getattr(owner, name)))


class Watched:
    """A SQLite connection each of whose statements is an act."""

    def __init__(self, clock: Clock, connection: Any) -> None:
        self._clock, self._connection = clock, connection

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        return self._clock.wrap(name, found) if name.startswith("execute") else found


def watch_sqlite(clock: Clock, patch: pytest.MonkeyPatch, store: Any) -> None:
    """Count the statements of a store's writing connection, BEGIN and COMMIT among them."""
    patch.setattr(store, "_writer", Watched(clock, store._writer))


@dataclass
class Disk:
    """What is on the platters: contents as of their fsync, names as of their folder's.

    Install it before the Clock, so that a write that the Clock let happen is known here. At
    first everything below `root` is durable.
    """

    root: Path
    names: dict[Path, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self._live()
        for path, inode in self.names.items():
            if path.is_file():
                self.contents[inode] = path.read_bytes()

    def _live(self) -> dict[Path, int]:
        return {path: path.lstat().st_ino for path in self.root.rglob("*")}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        opened, synced = os.open, os.fsync

        def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            is_new = flags & os.O_CREAT and not os.path.exists(path)
            handle = opened(path, flags, *rest, **named)
            if is_new:  # a number that another file had before
                self.contents.pop(os.fstat(handle).st_ino, None)
            return handle

        def fsync(handle: int) -> None:
            synced(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if not path.is_dir():
                self.contents[os.fstat(handle).st_ino] = path.read_bytes()
                return
            known = {name: ino for name, ino in self.names.items() if name.parent != path}
            self.names = known | {one: one.lstat().st_ino for one in path.iterdir()}

        patch.setattr(os, "open", open_)
        patch.setattr(os, "fsync", fsync)

    def after_power_cut(self, target: Path, chance: random.Random | None) -> None:
        """Lay out in `target` what a power cut leaves: of what was not synced nothing
        (`chance` None), or each name and each content by itself, perhaps.
        """
        live = self._live()
        is_folder = {path for path in live if path.is_dir()}
        target.mkdir()
        for path in sorted({*live, *self.names}):
            versions = {self.names.get(path), live.get(path)}
            inode = self.names.get(path)
            if len(versions) > 1 and chance is not None and chance.random() < 0.5:
                inode = live.get(path)
            copy = target / path.relative_to(self.root)
            if inode is None or not copy.parent.is_dir():
                continue
            if path in is_folder or (path not in live and inode not in self.contents):
                copy.mkdir()
            else:
                copy.write_bytes(self._content(path, inode, chance))

    def _content(self, path: Path, inode: int, chance: random.Random | None) -> bytes:
        durable = self.contents.get(inode, b"")
        if chance is None or not path.is_file() or path.lstat().st_ino != inode:
            return durable
        now = path.read_bytes()
        if now == durable:
            return durable
        torn = now[: len(now) // 2] + bytes(len(now) - len(now) // 2)
        return chance.choice([durable, now, torn, b""])


def copy_database(source: Path, target: Path) -> None:
    """What SQLite has committed: its own files, as they are."""
    for suffix in ("", "-wal", "-shm"):
        path = source.with_name(source.name + suffix)
        if path.exists():
            shutil.copy(path, target.with_name(target.name + suffix))
