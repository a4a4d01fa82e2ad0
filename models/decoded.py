"""Decoded pixels that two routes of one study share: by hard links, for the very same files.

A child decodes the files of one input, so what it says counts for these files only, and
only as long as they are unchanged. Each route's folder holds links of its own and goes
with its route; the last one frees the disk. Nothing is held in memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["PIXELS", "note", "take", "turn"]

PIXELS: Final = "pixels"
_NOTE: Final = "sealed.json"

_lock = threading.Lock()
_turns: weakref.WeakValueDictionary[tuple[Path, ...], threading.Lock] = (
    weakref.WeakValueDictionary()
)


@contextlib.contextmanager
def turn(paths: Sequence[Path]) -> Iterator[None]:
    """Let one thread at a time decode these files; the next one finds what the first left."""
    key = tuple(sorted(paths))
    with _lock:
        mine = _turns.get(key)
        if mine is None:
            mine = _turns[key] = threading.Lock()
    with mine:
        yield


def _stamps(paths: Sequence[Path]) -> dict[str, list[int]]:
    return {str(path): [(info := path.stat()).st_size, info.st_mtime_ns] for path in paths}


def note(paths: Sequence[Path], work: Path, answer: Mapping[str, Any]) -> None:
    """Keep what a child said of these files, beside their pixels."""
    part = work / f"{_NOTE}.part"
    part.write_text(json.dumps({"files": _stamps(paths), "answer": dict(answer)}), encoding="utf-8")
    part.replace(work / _NOTE)


def take(paths: Sequence[Path], work: Path, beside: Sequence[Path]) -> dict[str, Any] | None:
    """Find what was said of these very files, and link their pixels into `work`; None if nothing.

    A run checks each array against its digest once more, and decodes anew what is not sound.
    Where nothing is found no pixels are left in `work`: written over, a link would change those
    of the other route.
    """
    for folder in (work, *beside):
        try:
            said = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
            if said["files"] != _stamps(paths) or not (folder / PIXELS).is_dir():
                continue
            if folder != work:
                _link(folder, work)
        except (OSError, ValueError, KeyError, TypeError):  # gone meanwhile, or half written
            continue
        answer: dict[str, Any] = said["answer"]
        return answer
    shutil.rmtree(work / PIXELS, ignore_errors=True)
    return None


def _link(folder: Path, work: Path) -> None:
    target = work / PIXELS
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in (folder / PIXELS).iterdir():
        os.link(path, target / path.name, follow_symlinks=False)
    shutil.copyfile(folder / _NOTE, work / _NOTE)
