"""The container of an audit bundle: a zip with one spelling, read as hostile input.

What `write` writes any unzip opens: members in ascending order of name, stored as they are,
all of 1 January 1980, readable by their owner, no comment and no extra field. `Archive` reads
exactly that and nothing else: it walks the members from byte 0, writes the directory that
must follow them, and compares. So nothing can hide between members, no name stands twice or
leads out of a folder, nothing inflates, and equal members give equal bytes.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from ledger.errors import VerifyError

__all__ = ["MOST_BYTES", "Archive", "Member", "is_archive", "write"]

MOST_BYTES = (1 << 32) - 2
MOST_MEMBERS = 65_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,4}")
_LONGEST_NAME = 200
_CHUNK = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION, _UNIX, _TIME, _DATE = 20, 3 << 8, 0, 0x21
_MODE = 0o100600 << 16
_OTHERWISE = "is not as radseal writes bundles: use the file as the hospital wrote it"


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes lie in the file."""

    name: str
    start: int
    size: int
    crc: int

    def local(self) -> bytes:
        """Return the header before its bytes."""
        name = self.name.encode("ascii")
        sizes = (self.crc, self.size, self.size, len(name), 0)
        return _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, _TIME, _DATE, *sizes) + name

    def central(self) -> bytes:
        """Return its entry in the directory."""
        name = self.name.encode("ascii")
        offset = self.start - _LOCAL.size - len(name)
        return (
            _CENTRAL.pack(
                b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, _TIME, _DATE, self.crc, self.size,
                self.size, len(name), 0, 0, 0, 0, _MODE, offset,
            )
            + name
        )  # fmt: skip


def _tail(members: list[Member]) -> bytes:
    central = b"".join(one.central() for one in members)
    start = members[-1].start + members[-1].size if members else 0
    count = len(members)
    return central + _END.pack(b"PK\5\6", 0, 0, count, count, len(central), start, 0)


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def write(file: IO[bytes], contents: Mapping[str, bytes | Path]) -> None:
    """Write a bundle's members: bytes, or files whose bytes are copied.

    Raises ValueError for a name that `Archive` would refuse, for more than 4 GiB or 65,000
    members, and where a file changes while it is copied.
    """
    if len(contents) > MOST_MEMBERS:
        raise ValueError(f"a bundle holds at most {MOST_MEMBERS} members")
    members: list[Member] = []
    place = 0
    for name, content in sorted(contents.items()):
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise ValueError("a member's name holds what does not belong into a bundle")
        size, crc = _measure(content)
        one = Member(name, place + _LOCAL.size + len(name), size, crc)
        place = one.start + size
        if place > MOST_BYTES:
            raise ValueError("a bundle holds at most 4 GiB")
        file.write(one.local())
        again = 0
        for piece in _pieces(content):
            again = zlib.crc32(piece, again)
            file.write(piece)
        if again != crc:
            raise ValueError("a file changed while it was copied")
        members.append(one)
    file.write(_tail(members))


def _measure(content: bytes | Path) -> tuple[int, int]:
    size, crc = 0, 0
    for piece in _pieces(content):
        size, crc = size + len(piece), zlib.crc32(piece, crc)
    return size, crc


def is_archive(path: Path) -> bool:
    """Whether a file begins as a zip does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


class Archive:
    """A bundle opened for reading; every fault is a VerifyError that names the member."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise VerifyError(path.name, f"cannot be read: {error.strerror}") from None
        try:
            self.members = {one.name: one for one in self._walk(path.name)}
        except VerifyError:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, name: str, most: int) -> bytes:
        """Return a member's bytes; refuses one that is missing, changed, or longer than `most`."""
        one = self.members.get(name)
        if one is None:
            raise VerifyError(name, "is missing from the bundle")
        if one.size > most:
            raise VerifyError(name, f"has {one.size} bytes; at most {most} belong there")
        data = b"".join(self._bytes(one))
        if zlib.crc32(data) != one.crc:
            raise VerifyError(name, "was changed")
        return data

    def sha256(self, name: str) -> bytes:
        """Return the SHA-256 of a member of any size."""
        digest = hashlib.sha256()
        for piece in self._bytes(self.members[name]):
            digest.update(piece)
        return digest.digest()

    def _bytes(self, one: Member) -> Iterator[bytes]:
        self._file.seek(one.start)
        left = one.size
        while left:
            piece = self._file.read(min(left, _CHUNK))
            if not piece:
                raise VerifyError(one.name, "ends early")
            left -= len(piece)
            yield piece

    def _walk(self, whole: str) -> list[Member]:
        size = self._file.seek(0, 2)
        if size > MOST_BYTES + (1 << 24):
            raise VerifyError(whole, "has more than 4 GiB: this is no bundle")
        members: list[Member] = []
        place = 0
        while (one := self._next(whole, place, size)) is not None:
            if members and one.name <= members[-1].name:
                raise VerifyError(one.name, "stands twice, or out of order")
            members.append(one)
            place = one.start + one.size
            if len(members) > MOST_MEMBERS:
                raise VerifyError(whole, f"has more than {MOST_MEMBERS} members: this is no bundle")
        expected = _tail(members)
        self._file.seek(place)
        if not members or size - place != len(expected) or self._file.read() != expected:
            raise VerifyError(whole, f"the directory at its end {_OTHERWISE}")
        return members

    def _next(self, whole: str, place: int, size: int) -> Member | None:
        """Read the member that begins at `place`; None where none does."""
        self._file.seek(place)
        head = self._file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or not head.startswith(b"PK\3\4"):
            return None
        fields = _LOCAL.unpack(head)
        raw = self._file.read(min(fields[9], _LONGEST_NAME + 1))
        name = raw.decode("ascii", "replace")
        if not _NAME.fullmatch(name) or len(raw) > _LONGEST_NAME:
            raise VerifyError(whole, "has a member whose name does not belong into a bundle")
        one = Member(name, place + _LOCAL.size + len(raw), fields[7], fields[6])
        if one.local() != head + raw or one.start + one.size > size:
            raise VerifyError(name, f"its header {_OTHERWISE}")
        return one
