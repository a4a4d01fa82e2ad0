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
from models.fault import Fault

__all__ = ["MAX_BYTES", "MAX_FILES", "file_digest", "file_digests", "survey", "tree_digest"]

MAX_FILES: Final = 10_000
MAX_BYTES: Final = 64 * 1024**3
_UNSIGNED: Final = frozenset({".git", ".gitignore", ".gitattributes", ".github"})
_EXECUTABLE: Final = frozenset({
    ".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".js",
    ".pt", ".pth", ".ts", ".pkl", ".pickle", ".joblib", ".ort", ".engine",
})  # fmt: skip


def _entries(root: Path) -> Iterator[tuple[str, os.stat_result] | Fault]:
    stack = [root]
    while stack:
        folder = stack.pop()
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            name = Path(entry.path).relative_to(root).as_posix()
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISLNK(info.st_mode):
                yield Fault(name, "", "is a symbolic link", "Put the file itself there.")
            elif entry.name in _UNSIGNED:
                yield Fault(name, "", "is left out of every signature by the signing tool",
                            "Remove it.")  # fmt: skip
            elif stat.S_ISDIR(info.st_mode):
                stack.append(Path(entry.path))
            elif stat.S_ISREG(info.st_mode):
                yield name, info
            else:
                yield Fault(name, "", "is neither a file nor a folder", "Remove it.")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below `root` by POSIX path relative to it, names ascending.

    Raises PackageError for links, special files, executable kinds, names the
    signing tool ignores, more than MAX_FILES files or MAX_BYTES bytes.
    """
    found, faults = survey(root)
    for fault in faults:
        raise PackageError(fault.file, fault.key, fault.text, fault.fix)
    return found


def survey(root: Path) -> tuple[dict[str, str], list[Fault]]:
    """Give the digests as `file_digests` does, with everything that must not lie in the folder."""
    if root.is_symlink() or not root.is_dir():
        return {}, [Fault(str(root.name), "", "is not a folder", "Name the package's folder.")]
    found: dict[str, str] = {}
    faults: list[Fault] = []
    total = 0
    for entry in _entries(root):
        if isinstance(entry, Fault):
            faults.append(entry)
            continue
        name, info = entry
        total += info.st_size
        if Path(name).suffix.lower() in _EXECUTABLE:
            faults.append(
                Fault(name, "", "can carry code",
                      "Ship the ONNX graph only; no code runs from a package.")
            )  # fmt: skip
            continue
        if len(found) >= MAX_FILES or total > MAX_BYTES:
            faults.append(
                Fault(name, "", "the package is too large", "Ship fewer or smaller files.")
            )
            break
        found[name] = file_digest(root / name)
    return dict(sorted(found.items())), faults


def tree_digest(digests: Mapping[str, str]) -> str:
    """One digest over all files: SHA-256 of the raw digests in order of their names.

    This is the subject digest of OpenSSF Model Signing v1.0, so a signed
    statement and our package digest are the same number.
    """
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(bytes.fromhex(digests[name]))
    return whole.hexdigest()
