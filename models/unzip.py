"""Take files out of a stranger's ZIP archive: bounded, below one folder, no links.

Names, sizes and compression are held against limits before anything is written, and sizes
again while bytes come out, for an archive may lie about them.
"""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from models.errors import PackageError
from models.folder import MAX_FILES

__all__ = ["Bounds", "unzip"]

_CHUNK: Final = 1 << 20
_SMALL: Final = 1 << 20
_LONGEST: Final = 200
_DEPTH: Final = 16
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# RuntimeError is how zipfile says "encrypted"; ValueError comes of a name that is no UTF-8, it and
# OverflowError of a place that no file has. Their texts name entries of the sender.
_BROKEN: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError,
)  # fmt: skip
_MOST_LISTED: Final = 8 << 20
# The end of a zip (APPNOTE 4.3.14 to 4.3.16): signature, size of the list, length of the comment.
_END: Final = struct.Struct("<4s8xI4xH")
_END64: Final = struct.Struct("<4s36xQ8x")
_LOCATOR_SIZE: Final = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most entries, most bytes of all files together, most times that a file may grow."""

    entries: int = MAX_FILES
    size: int = 8 * 1024**3
    ratio: int = 200


def unzip(
    archive: Path, target_of: Callable[[tuple[str, ...]], Path | None], bounds: Bounds
) -> None:
    """Write each file of an archive to where `target_of` says for its path; None leaves it out.

    Raises PackageError, before anything is written, for a name that leads elsewhere or stands
    twice, a link, an encrypted file, or more than `bounds`; OSError where the disk is full.
    """
    _look_at_its_end(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            _bounded(entries, bounds)
            paths = _paths(entries)
            places = [
                (entry, target_of(path))
                for entry, path in zip(entries, paths, strict=True)
                if not entry.is_dir()  # the files in it make it
            ]
            for entry, target in places:
                if target is not None:
                    _write(opened, entry, target)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _refused("uses one name for a file and a folder") from None
    except _BROKEN as error:
        raise _refused(f"is no whole zip ({type(error).__name__})") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _refused("is no whole zip (it points outside of itself)") from None


def _look_at_its_end(archive: Path) -> None:
    """Refuse a list of entries that would not fit into memory: zipfile reads it whole.

    A comment at the end is refused, so that these are the records that zipfile finds, too.
    """
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - _END.size - _LOCATOR_SIZE - _END64.size))
        tail = file.read()
    if len(tail) < _END.size or not tail[-_END.size :].startswith(b"PK\5\6"):
        raise _refused("is no whole zip (without a comment at its end)")
    _, size, comment = _END.unpack(tail[-_END.size :])
    before = tail[: -_END.size]
    if before[-_LOCATOR_SIZE:].startswith(b"PK\6\7"):
        record = before[:-_LOCATOR_SIZE][-_END64.size :]
        if len(record) < _END64.size or not record.startswith(b"PK\6\6"):
            raise _refused("is no whole zip")
        _, size = _END64.unpack(record)
    if comment or size > _MOST_LISTED:
        raise _refused("has a comment at its end, or a list of entries that is too long")


def _bounded(entries: Sequence[zipfile.ZipInfo], bounds: Bounds) -> None:
    if len(entries) > bounds.entries:
        raise _refused(f"has {len(entries)} entries; at most {bounds.entries} are taken")
    if sum(entry.file_size for entry in entries) > bounds.size:
        raise _refused(f"unpacks to more than {bounds.size} bytes")
    for entry in entries:
        grows = entry.file_size > bounds.ratio * max(entry.compress_size, 1)
        if entry.file_size > _SMALL and grows:
            raise _refused(f"holds a file that grows more than {bounds.ratio} times")


def _paths(entries: Sequence[zipfile.ZipInfo]) -> list[tuple[str, ...]]:
    paths = [_path(entry) for entry in entries]
    if len({"/".join(path).casefold() for path in paths}) < len(paths):
        raise _refused("holds a name twice")
    return paths


def _path(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """Give the parts of an entry's name; raises PackageError unless it is plainly a path below."""
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused("holds a link or a special file")
    if entry.flag_bits & 0x1 or entry.compress_type not in _METHODS:
        raise _refused("is encrypted or compressed by a method other than deflate")
    name = entry.filename.removesuffix("/")
    parts = PurePosixPath(name).parts
    # orig_filename: zipfile cuts a name at its first NUL.
    odd = entry.orig_filename != entry.filename or not name.isprintable()
    if odd or any(c in name for c in "\\:") or not parts or "/".join(parts) != name:
        raise _refused("holds a name that is no plain path")
    if ".." in parts or len(parts) > _DEPTH or any(len(p.encode()) > _LONGEST for p in parts):
        raise _refused("holds a name that leads out of its folder, or is too long")
    return parts


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with opened.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise _refused("holds a file that is longer than it says")
            file.write(chunk)
    if left:
        raise _refused("holds a file that is shorter than it says")


def _refused(words: str) -> PackageError:
    return PackageError("the archive", "", words, "Pack plain files anew, with any zip program.")
