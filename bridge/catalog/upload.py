"""A package that arrives as a stream: into a folder of its own, measured, unpacked, removed."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bridge.errors import Refused, StorageFull, TooLarge
from models import archive
from models.errors import PackageError
from models.unzip import Bounds

__all__ = ["clear", "unpacked"]

_PREFIX: Final = ".incoming-"


@contextmanager
def unpacked(chunks: Iterable[bytes], folder: Path, most: int) -> Iterator[Path]:
    """Write a zip's bytes below `folder` and give the package in it; both go afterwards.

    `most` bounds the zip and what it unpacks to, in bytes each. Raises TooLarge, Refused with
    what is wrong with the archive, StorageFull; nothing stays behind whichever it is.
    """
    try:
        folder.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as room:
            zipped = Path(room) / "package.zip"
            _write(chunks, zipped, most)
            root = archive.unpack(zipped, Path(room), Bounds(size=most))
            zipped.unlink()
            yield root
    except PackageError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk of this site is full; nothing was registered") from None
        raise


def _write(chunks: Iterable[bytes], target: Path, most: int) -> None:
    size = 0
    with target.open("xb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > most:
                raise TooLarge(f"a package may have {most >> 20} MB here ([models] max_package_mb)")
            file.write(chunk)


def clear(folder: Path) -> None:
    """Remove what a dead process was receiving; for the one that receives now, at its start."""
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
