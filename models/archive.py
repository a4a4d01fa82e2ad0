"""A package as one file on its way to a site: a zip of its folder and its signature.

    NAME/configs/metadata.json, NAME/models/model.onnx, …
    NAME.sig

`unpack` believes nothing of it: what is written is counted while it is written, names that lead
anywhere else, links, encrypted and doubled entries are refused before the first byte.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from models.errors import PackageError
from models.folder import MAX_FILES

__all__ = ["Limits", "pack", "unpack"]

_CHUNK: Final = 1 << 20
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DEPTH: Final = 16
_MOST_LISTED: Final = 8 << 20
# The end of a zip (APPNOTE 4.3.14 to 4.3.16): signature, size of the list, length of the comment.
_END: Final = struct.Struct("<4s8xI4xH")
_END64: Final = struct.Struct("<4s36xQ8x")
_LOCATOR_SIZE: Final = 20
_AGAIN: Final = "Make it anew: `zip -r pkg.zip PKG PKG.sig`, or `radseal model push --to`."


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that an archive may hold once it is unpacked: bytes and entries."""

    size: int
    entries: int = MAX_FILES


def pack(root: Path, signature: Path, out: IO[bytes], progress: Callable[[int], None]) -> None:
    """Write a package folder and its signature as a zip; `progress` is told of bytes read.

    Not compressed: weights hardly shrink. Raises PackageError where a file cannot be read.
    """
    files = [(signature, "package.sig")]
    files += [
        (path, f"package/{path.relative_to(root).as_posix()}")
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path, name in files:
            try:
                with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as entry:
                    while chunk := source.read(_CHUNK):
                        entry.write(chunk)
                        progress(len(chunk))
            except OSError as error:
                fix = "Check the path and its owner; `radseal model sign` writes the signature."
                raise PackageError(path.name, "", f"{error.strerror}", fix) from None


def unpack(archive: Path, into: Path, limits: Limits) -> Path:
    """Unpack into an empty folder: `into`/package and `into`/package.sig; gives the former.

    Raises PackageError for what is no such archive, and OSError where the disk does not take it.
    Nothing outside of `into` is written, and at most `limits.size` bytes.
    """
    _look_at_its_end(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = opened.infolist()
            for entry, target in zip(entries, _targets(entries, into, limits), strict=True):
                if target is not None:
                    _write(opened, entry, target)
    except (FileExistsError, NotADirectoryError):
        raise _refused("uses one name for a file and a folder") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, RuntimeError) as error:
        # RuntimeError is how zipfile says "encrypted"; the texts name entries of the sender.
        raise _refused(f"is no whole zip ({type(error).__name__})") from None
    root = into / "package"
    if not root.is_dir() or not root.with_suffix(".sig").is_file():
        raise _refused("must hold one folder NAME and its signature NAME.sig")
    return root


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


def _targets(entries: Sequence[zipfile.ZipInfo], into: Path, limits: Limits) -> list[Path | None]:
    """Say where each entry goes, all before any is written; None: a folder, made by its files."""
    if len(entries) > limits.entries:
        raise _refused(f"has {len(entries)} entries; at most {limits.entries} are taken")
    if sum(entry.file_size for entry in entries) > limits.size:
        raise _refused(f"unpacks to more than {limits.size} bytes")
    top = _parts(entries[0])[0].removesuffix(".sig") if entries else ""
    seen: set[str] = set()
    targets: list[Path | None] = []
    for entry in entries:
        first, *rest = _parts(entry)
        name = "/".join((first, *rest)).casefold()
        if name in seen:
            raise _refused("holds a name twice")
        seen.add(name)
        if entry.is_dir():
            target = None
        elif rest and first == top:
            target = into.joinpath("package", *rest)
        elif not rest and first == f"{top}.sig":
            target = into / "package.sig"
        else:
            raise _refused("must hold one folder NAME and its signature NAME.sig, nothing beside")
        targets.append(target)
    return targets


def _parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused("holds a link or a device")
    if entry.flag_bits & 0x1 or entry.compress_type not in _METHODS:
        raise _refused("is encrypted or compressed by a method other than deflate")
    name = entry.filename.removesuffix("/")
    parts = PurePosixPath(name).parts
    # orig_filename: zipfile cuts a name at its first NUL.
    odd = entry.orig_filename != entry.filename or "\\" in name or not name.isprintable()
    if odd or not parts or "/".join(parts) != name or len(parts) > _DEPTH:
        raise _refused("holds a name that is no plain path")
    if any(part in ("..", ".") or len(part.encode()) > 200 for part in parts):
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
    return PackageError("the archive", "", words, _AGAIN)
