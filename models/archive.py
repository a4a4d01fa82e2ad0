"""A package as one file on its way to a site: a zip of its folder and its signature.

NAME/configs/metadata.json, NAME/models/model.onnx, …
NAME.sig
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from models.errors import PackageError
from models.unzip import Bounds, unzip

__all__ = ["pack", "unpack"]

_CHUNK: Final = 1 << 20


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


def unpack(archive: Path, into: Path, bounds: Bounds) -> Path:
    """Unpack into an empty folder: `into`/package and `into`/package.sig; gives the former.

    Raises PackageError for what is no such archive (`models.unzip`), and OSError where the disk
    does not take it. Nothing outside of `into` is written.
    """
    tops: set[str] = set()

    def target_of(path: tuple[str, ...]) -> Path:
        first, *rest = path
        tops.add(first if rest else first.removesuffix(".sig"))
        if len(tops) > 1 or not (rest or first.endswith(".sig")):
            raise _otherwise()
        return into.joinpath("package", *rest) if rest else into / "package.sig"

    unzip(archive, target_of, bounds)
    root = into / "package"
    if not root.is_dir() or not root.with_suffix(".sig").is_file():
        raise _otherwise()
    return root


def _otherwise() -> PackageError:
    return PackageError(
        "the archive", "", "must hold one folder NAME and its signature NAME.sig, nothing beside",
        "Make it anew: `zip -r pkg.zip PKG PKG.sig`, or `radseal model push --to`.",
    )  # fmt: skip
