"""A backup's file: a plain ustar archive that ends with the SHA-256 of all before it.

    about.json      what this is, of which site and release, when made
    …               regular files only
    manifest.txt    the same line of JSON, then "SHA-256  size  name" of each file, in their order

Any `tar` reads it. `read` believes nothing of it: names that lead out of the folder, links,
devices, sparse files and anything after the manifest are refused, every byte is hashed, and
nothing is used before all of it was compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bridge.errors import NotFound, Refused, StorageFull, WrongUse
from bridge.files import fsync_folder

__all__ = ["Progress", "Writer", "about", "read", "writing"]

Progress = Callable[[int], None]
"""Told how many more bytes were written or read."""

_BLOCK, _CHUNK, _USTAR_MOST = 512, 1 << 20, 8 << 30
_ABOUT, _MANIFEST = "about.json", "manifest.txt"
_MOST_ABOUT = 1 << 20
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ._+@=,~-]{0,99}")
_DEPTH = 16


class Writer:
    """Appends files to an archive; errors of the disk come out as StorageFull."""

    def __init__(self, file: IO[bytes], lines: IO[bytes], said: bytes, progress: Progress) -> None:
        self._file, self._lines, self._progress = file, lines, progress
        self._lines.write(said)
        self.add(_ABOUT, said)

    def add(self, name: str, data: bytes) -> None:
        """Append a file with these bytes."""
        self._member(name, len(data), iter([data]))

    def add_file(self, name: str, path: Path) -> bool:
        """Append a file as it is now; False where it is gone. Raises Refused if it shrinks."""
        try:
            source = path.open("rb")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Refused(f"{name} cannot be read: {error.strerror}; check its owner") from None
        with source:
            size = os.fstat(source.fileno()).st_size
            self._member(name, size, _exactly(source, size, name))
        return True

    def close(self) -> None:
        """Append the manifest and the end."""
        size = self._lines.tell()
        self._lines.seek(0)
        self._member(_MANIFEST, size, _exactly(self._lines, size, _MANIFEST))
        self._put(bytes(2 * _BLOCK))

    def _member(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        _check(name)
        head = tarfile.TarInfo(name)
        head.size, head.mode = size, 0o600
        try:
            if size < _USTAR_MOST:
                block = head.tobuf(tarfile.USTAR_FORMAT)
            else:
                block = head.tobuf(tarfile.GNU_FORMAT)
        except ValueError:
            raise Refused(f"{name}: the name is too long for a backup") from None
        self._put(block)
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
            self._put(chunk)
        self._put(bytes(-size % _BLOCK))
        if name != _MANIFEST:
            self._lines.write(_line(digest.hexdigest(), size, name))

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _full(error) from None
        self._progress(len(data))


@contextmanager
def writing(
    path: Path, said: Mapping[str, Any], progress: Progress = lambda _count: None
) -> Iterator[Writer]:
    """Write an archive that is there whole, readable by us alone, or not at all.

    Raises WrongUse where the name is taken, StorageFull.
    """
    if path.exists():
        raise WrongUse(f"{path} is there already; choose another name")
    part = path.with_name(f"{path.name}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        file = os.fdopen(handle, "wb", buffering=0)  # a full disk is met here, not when it closes
    except OSError as error:
        raise WrongUse(f"{path} cannot be written: {error.strerror}") from None
    try:
        with file, tempfile.TemporaryFile() as lines:
            line = json.dumps(dict(said), sort_keys=True).encode() + b"\n"
            writer = Writer(file, lines, line, progress)
            yield writer
            writer.close()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise _full(error) from None
        part.rename(path)
        fsync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def about(path: Path) -> dict[str, Any]:
    """Read what an archive says of itself, before anything was compared; raises Refused."""
    with _opened(path) as file:
        found = _next(file, "its beginning")
        if found is None or found.name != _ABOUT or found.size > _MOST_ABOUT:
            raise Refused(f"{path} is no backup of radseal")
        return _parsed(file.read(found.size))


def read(
    path: Path,
    target: Path,
    allowed: Callable[[str], bool],
    progress: Progress = lambda _count: None,
) -> dict[str, Any]:
    """Unpack an archive into an empty folder and compare every file; what it says of itself.

    Raises Refused with the name of the first file that is damaged or may not be there; what
    was unpacked by then is the caller's to remove.
    """
    before = "its beginning"
    with _opened(path) as file, tempfile.TemporaryFile() as lines:
        while True:
            found = _next(file, before)
            if found is None:
                raise Refused(f"{path} ends before its manifest, after {before}: it is damaged")
            before = found.name
            if found.name == _MANIFEST:
                return _compare(file, found.size, lines, path)
            if found.name == _ABOUT:
                data = file.read(found.size) if found.size <= _MOST_ABOUT else b""
                lines.write(data)
                digest = hashlib.sha256(data).hexdigest()
            elif allowed(found.name):
                digest = _unpack(file, found, target, progress)
            else:
                raise Refused(f"{found.name} does not belong into such a backup")
            lines.write(_line(digest, found.size, found.name))
            file.read(-found.size % _BLOCK)


def _unpack(file: IO[bytes], found: tarfile.TarInfo, target: Path, progress: Progress) -> str:
    place = target / found.name
    digest = hashlib.sha256()
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as out:
            for chunk in _exactly(file, found.size, found.name):
                digest.update(chunk)
                out.write(chunk)
                progress(len(chunk))
    except (FileExistsError, NotADirectoryError):
        raise Refused(f"{found.name} stands twice in the backup") from None
    except OSError as error:
        raise _full(error) from None
    return digest.hexdigest()


def _compare(file: IO[bytes], size: int, lines: IO[bytes], path: Path) -> dict[str, Any]:
    end = file.tell() + size
    lines.seek(0)
    first = file.readline(_MOST_ABOUT)
    if lines.readline() != first:
        raise Refused(f"{_ABOUT} or {_MANIFEST} is damaged")
    for mine in lines:
        said = file.readline(len(mine) + _BLOCK)
        if said != mine:
            raise Refused(f"{mine[:-1].decode().split('  ', 2)[2]} is damaged: use another copy")
    if file.tell() != end:
        raise Refused(f"{path} lacks files that its manifest names: use another copy")
    if file.read(-size % _BLOCK + 2 * _BLOCK).strip(b"\0") or file.read(1):
        raise Refused(f"{path} goes on after its end: it is not as it was written")
    return _parsed(first)


def _next(file: IO[bytes], before: str) -> tarfile.TarInfo | None:
    block = file.read(_BLOCK)
    if len(block) < _BLOCK or not block.strip(b"\0"):
        return None
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError):
        raise Refused(f"the backup is damaged after {before}: use another copy") from None
    if found.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or found.size < 0:
        raise Refused(f"{found.name!r} is no regular file: this is not as radseal writes backups")
    _check(found.name)
    return found


def _check(name: str) -> None:
    parts = name.split("/")
    if len(parts) > _DEPTH or not all(_PART.fullmatch(part) for part in parts):
        raise Refused(f"{name!r} is no name for a file in a backup")


def _exactly(file: IO[bytes], size: int, name: str) -> Iterator[bytes]:
    while size:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise Refused(f"{name} ends too early: it is damaged, or was changed while it was read")
        size -= len(chunk)
        yield chunk


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield file


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(f"{_ABOUT} is damaged: use another copy")
    return found


def _line(digest: str, size: int, name: str) -> bytes:
    return f"{digest}  {size}  {name}\n".encode()


def _full(error: OSError) -> StorageFull:
    return StorageFull(f"the disk did not take it ({error.strerror}): free space, then try again")
