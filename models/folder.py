"""The files of a package: what may lie in it, and their digests.

Nothing executable, no links, no names that the standard signing tool leaves
out of its signature (OpenSSF Model Signing ignores .git*), so that "signed"
means every byte in the folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from models.errors import PackageError

__all__ = ["MAX_BYTES", "MAX_FILES", "file_digest", "file_digests", "tree_digest"]

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 64 * 1024**3
_UNSIGNED: Final = frozenset({".git", ".gitignore", ".gitattributes", ".github"})
_EXECUTABLE: Final = frozenset({
    ".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".js",
    ".pt", ".pth", ".ts", ".pkl", ".pickle", ".joblib", ".ort", ".engine",
})  # fmt: skip


def _entries(root: Path) -> Iterator[tuple[str, os.stat_result]]:
    stack = [root]
    while stack:
        folder = stack.pop()
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            name = Path(entry.path).relative_to(root).as_posix()
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                raise PackageError(name, "", "is a symbolic link", "Put the file itself there.")
            if entry.name in _UNSIGNED:
                raise PackageError(
                    name, "", "is left out of every signature by the signing tool", "Remove it."
                )
            if stat.S_ISDIR(info.st_mode):
                stack.append(Path(entry.path))
            elif stat.S_ISREG(info.st_mode):
                yield name, info
            else:
                raise PackageError(name, "", "is neither a file nor a folder", "Remove it.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below `root` by POSIX path relative to it, names ascending.

    Raises PackageError for links, special files, executable kinds, names the
    signing tool ignores, more than MAX_FILES files or MAX_BYTES bytes.
    """
    if root.is_symlink() or not root.is_dir():
        raise PackageError(str(root.name), "", "is not a folder", "Name the package's folder.")
    found: dict[str, str] = {}
    total = 0
    for name, info in _entries(root):
        total += info.st_size
        if Path(name).suffix.lower() in _EXECUTABLE:
            raise PackageError(
                name, "", "can carry code", "Ship the ONNX graph only; no code runs from a package."
            )
        if len(found) >= MAX_FILES or total > MAX_BYTES:
            raise PackageError(name, "", "the package is too large", "Ship fewer or smaller files.")
        found[name] = file_digest(root / name)
    return dict(sorted(found.items()))


def tree_digest(digests: Mapping[str, str]) -> str:
    """One digest over all files: SHA-256 of the raw digests in order of their names.

    This is the subject digest of OpenSSF Model Signing v1.0, so a signed
    statement and our package digest are the same number.
    """
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(bytes.fromhex(digests[name]))
    return whole.hexdigest()
