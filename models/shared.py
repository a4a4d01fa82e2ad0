"""Tensors between processes: one sealed memory file, and a table of what lies where in it.

The file has no name (memfd) and is sealed before it is handed over: nobody can change or
shorten it afterwards, so what the parent checked is what the other child reads, and it is
gone with the last process that holds it. A table row is [name, type, shape, offset];
nothing in it is trusted: types come from a closed list, and every tensor must lie inside
the file. A tensor may be empty: no boxes are an answer.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Table", "check", "put", "view"]

Array = npt.NDArray[Any]
Table = list[tuple[str, str, tuple[int, ...], int]]

_TYPES: Final = frozenset({
    "float16", "float32", "float64", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool",
})  # fmt: skip
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
_ALIGNED: Final = 64
_MOST_TENSORS: Final = 64
_MOST_AXES: Final = 8
_LONGEST: Final = 1 << 31  # an axis; an empty tensor could else say any number of the others
_PIECE: Final = 64 * 1024**2


def put(arrays: Mapping[str, Array]) -> tuple[int, list[list[Any]]]:
    """Write tensors into a sealed memory file; returns it, open, and its table."""
    file = os.memfd_create("tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rows: list[list[Any]] = []
    place = 0
    try:
        for name, array in arrays.items():
            rows.append([name, array.dtype.name, list(array.shape), place])
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            _write(file, flat, place)
            place += -(-flat.nbytes // _ALIGNED) * _ALIGNED
        os.ftruncate(file, max(place, _ALIGNED))
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(file)
        raise
    return file, rows


def _write(file: int, data: memoryview, place: int) -> None:
    done = 0
    while done < data.nbytes:
        done += os.pwrite(file, data[done : done + _PIECE], place + done)


def check(file: int | None, rows: Any, types: Mapping[str, str], most_bytes: int) -> Table:
    """Check a file and its table from a process that may be hostile; raises ValueError.

    `types` are the tensors that must be there, each with its type; no other may be.
    `most_bytes` bounds the file.
    """
    if file is None or not isinstance(rows, list) or not 0 < len(rows) <= _MOST_TENSORS:
        raise ValueError("no tensors were handed over")
    size = os.fstat(file).st_size
    try:
        seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS != _SEALS:
        raise ValueError("the tensors could still be changed")
    if size > most_bytes:
        raise ValueError("the tensors are larger than a run may be")
    found = [_row(row, size) for row in rows]
    if {name: kind for name, kind, _, _ in found} != dict(types) or len(found) != len(types):
        raise ValueError("the tensors are not the ones that the manifest names")
    return found


def _row(row: Any, size: int) -> tuple[str, str, tuple[int, ...], int]:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("a tensor is not described")
    name, kind, shape, place = row
    if not isinstance(name, str) or not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError("a tensor is of no known type")
    if not isinstance(shape, list) or len(shape) > _MOST_AXES:
        raise ValueError("a tensor has no shape")
    if any(type(n) is not int or not 0 <= n <= _LONGEST for n in shape) or type(place) is not int:
        raise ValueError("a tensor has no possible shape")
    if place < 0 or place % _ALIGNED or place + _bytes(kind, shape) > size:
        raise ValueError("a tensor does not lie inside its file")
    return name, kind, tuple(shape), place


def _bytes(kind: str, shape: list[int]) -> int:
    return int(np.dtype(kind).itemsize) * math.prod(shape)


def view(file: int, table: Any) -> dict[str, Array]:
    """Give the tensors of a checked file in place, read-only, and close it.

    The memory goes with the last of these arrays.
    """
    try:
        memory = mmap.mmap(file, 0, prot=mmap.PROT_READ)
    finally:
        os.close(file)
    whole = np.frombuffer(memory, np.uint8)
    return {
        name: whole[place : place + _bytes(kind, list(shape))].view(kind).reshape(shape)
        for name, kind, shape, place in table
    }
