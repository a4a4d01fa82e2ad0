"""Files that are there after a power cut, or were never there.

The sequence for each batch, and why:

    open temp, write, fsync, close     the bytes are on the disk under a name nobody reads
    rename temp → path                 readers see the old file or the new one, never a part
    fsync(folder of path)              the new name itself is on the disk

New folders are made durable in their parents before anything is put into them. After a
failed fsync the kernel may have dropped the pages: `StorageFailed` means stop and restart,
never "try again and sign".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ledger.errors import StorageFailed

__all__ = ["make_folder", "remove", "sync_folder", "write"]


def write(files: Mapping[Path, bytes], scratch: Path) -> None:
    """Make each file durable under its path, whole or not at all.

    `scratch` is a folder on the same file system for the temporary names; only one
    writer may use it at a time. Raises StorageFailed.
    """
    try:
        folders = {path.parent for path in files}
        for folder in {*folders, scratch}:
            make_folder(folder)
        waiting = []
        for number, (path, data) in enumerate(files.items()):
            temporary = scratch / str(number)
            _write_one(temporary, data)
            waiting.append((temporary, path))
        for temporary, path in waiting:
            temporary.rename(path)
        for folder in folders:
            sync_folder(folder)
    except OSError as error:
        raise StorageFailed(
            f"writing the log failed ({error.strerror}): free or repair the disk, then restart"
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, each durable in its own parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file, and the folder it leaves empty; not durable, for what may come back."""
    path.unlink(missing_ok=True)
    try:
        path.parent.rmdir()
    except OSError:
        return  # not empty: others live there


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_one(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)
